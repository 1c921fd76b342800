"""Shape of a synthetic glioma: irregular core, rim and necrosis, edema along white matter."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from kdnet_jax.data.phantom import anatomy as anatomy_lib

NCR, ED, ET = 1, 2, 3
# Shares of the cohort.
_WITHOUT_ET, _MULTIFOCAL = 0.15, 0.15


@dataclasses.dataclass(frozen=True)
class Tumour:
    """Labels of a tumour, and what kind it is.

    Attributes:
        labels: 0 background, 1 NCR (necrosis and non-enhancing core), 2 ED, 3 ET.
        necrosis: voxels of NCR that are liquid rather than solid.
        has_et: whether it enhances at all; one that does not is called low-grade.
        multifocal: whether it has two cores.
    """

    labels: UInt8[np.ndarray, "x y z"]
    necrosis: Bool[np.ndarray, "x y z"]
    has_et: bool
    multifocal: bool


def make_tumour(rng: np.random.Generator, anatomy: anatomy_lib.Anatomy, spacing: float) -> Tumour:
    """Draws a tumour inside `anatomy`."""
    has_et = bool(rng.random() >= _WITHOUT_ET)
    multifocal = bool(rng.random() < _MULTIFOCAL)
    labels = np.zeros(anatomy.brain.shape, np.uint8)
    necrosis = np.zeros(anatomy.brain.shape, bool)
    first = _centre(rng, anatomy, spacing, None)
    _add_focus(rng, anatomy, spacing, first, 1.0, has_et, labels, necrosis)
    if multifocal:
        second = _centre(rng, anatomy, spacing, first)
        _add_focus(rng, anatomy, spacing, second, 0.65, has_et, labels, necrosis)
    return Tumour(labels, necrosis, has_et, multifocal)


def _centre(
    rng: np.random.Generator,
    anatomy: anatomy_lib.Anatomy,
    spacing: float,
    near: np.ndarray | None,
) -> np.ndarray:
    """Draws a voxel of white matter away from the brain's surface, 25 to 50 mm from `near`."""
    depth = np.asarray(ndimage.distance_transform_edt(anatomy.brain, sampling=spacing))
    candidates = np.argwhere((anatomy.white > 0.5) & (depth > 12))
    if near is not None:
        distance = np.linalg.norm((candidates - near) * spacing, axis=1)
        ring = candidates[(distance > 25) & (distance < 50)]
        candidates = ring if len(ring) else candidates
    return candidates[rng.integers(len(candidates))]


def _add_focus(
    rng: np.random.Generator,
    anatomy: anatomy_lib.Anatomy,
    spacing: float,
    centre: np.ndarray,
    size: float,
    has_et: bool,
    labels: UInt8[np.ndarray, "x y z"],
    necrosis: Bool[np.ndarray, "x y z"],
) -> None:
    """Paints one core with its edema over `labels` and `necrosis`."""
    shape = labels.shape
    core_radius = size * np.clip(rng.lognormal(np.log(16), 0.25), 10, 25)
    distance = _irregular_distance(rng, shape, centre, spacing, core_radius)
    core = anatomy.brain & (distance < core_radius)

    # Oedema runs along white matter and hardly into grey matter and fluid.
    reach = rng.uniform(6, 20) * size
    spread = 0.25 + 0.75 * ndimage.gaussian_filter(anatomy.white, 4 / spacing)
    lobes = 1 + 0.35 * anatomy_lib.smooth_noise(rng, shape, 10 / spacing)
    edema = (distance - core_radius) < reach * spread * np.clip(lobes, 0.1, None)
    edema &= anatomy.brain & (anatomy.fluid < 0.6)
    labels[edema & (labels == 0)] = ED

    # The rim's thickness varies, and it is missing here and there.
    thickness = rng.uniform(4.5, 8) * size
    thickness = thickness * (1 + 0.35 * anatomy_lib.smooth_noise(rng, shape, 8 / spacing))
    inner = core & (distance < core_radius - np.maximum(thickness, 1.5))
    gaps = anatomy_lib.smooth_noise(rng, shape, 9 / spacing) < -1.7
    labels[core] = ET if has_et else NCR
    labels[core & gaps] = NCR
    labels[inner] = NCR
    necrosis[core] = False
    necrosis[inner] = has_et


def _irregular_distance(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    centre: np.ndarray,
    spacing: float,
    radius: float,
) -> Float[np.ndarray, "x y z"]:
    """Returns mm from the centre, stretched by axis and bent by noise: level sets are lobed."""
    stretch = rng.uniform(0.8, 1.25, 3)
    axes = [
        (np.arange(n, dtype=np.float32) - c) * spacing * s
        for n, c, s in zip(shape, centre, stretch, strict=True)
    ]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance = np.sqrt(sum(grid**2 for grid in grids))
    coarse = anatomy_lib.smooth_noise(rng, shape, 0.6 * radius / spacing)
    fine = anatomy_lib.smooth_noise(rng, shape, 5 / spacing)
    return distance + 0.16 * radius * coarse + 0.9 * fine
