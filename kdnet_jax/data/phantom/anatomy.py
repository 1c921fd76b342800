"""Anatomy of a phantom: the MNI152 tissue maps, deformed differently for every patient."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from kdnet_jax.core import typed

# How far anatomy is moved (mm, standard deviation) and over which distance the movement varies.
_SHIFT_MM, _SHIFT_SCALE_MM = 2.5, 22.0
_MARGIN_MM = 9.0


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Tissue shares of every voxel, RAS axes.

    Attributes:
        grey: share of grey matter.
        white: share of white matter.
        fluid: share of cerebrospinal fluid.
        brain: voxels inside the skull-stripped brain.
    """

    grey: Float[np.ndarray, "x y z"]
    white: Float[np.ndarray, "x y z"]
    fluid: Float[np.ndarray, "x y z"]
    brain: Bool[np.ndarray, "x y z"]


@functools.lru_cache(maxsize=4)
def _templates(spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns grey matter, white matter and brain mask of MNI152 at `spacing` mm, with a margin.

    The files are those that nilearn ships; nothing is downloaded.
    """
    # Imported here: it takes a second, and every command imports this file.
    from nilearn import datasets

    loaders = (
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    # 1 mm is what nilearn has on disk: it is smoothed and sampled here, so that a coarse phantom
    # has partial volumes as a coarse scan has.
    volumes = [np.asarray(load(resolution=1).dataobj, np.float32) for load in loaders]
    sigma = max(spacing - 1, 0) / 2
    coarse = [
        np.asarray(ndimage.zoom(ndimage.gaussian_filter(v, sigma), 1 / spacing, order=1))
        for v in volumes
    ]
    inside = ndimage.find_objects((coarse[2] > 0.5).astype(np.uint8))[0]
    margin = round(_MARGIN_MM / spacing)
    return typed.triple(np.pad(volume[inside], margin) for volume in coarse)


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], scale: float
) -> Float[np.ndarray, "x y z"]:
    """Returns Gaussian noise of mean 0 and SD 1 that varies over `scale` voxels.

    It is drawn on a grid as coarse as the scale allows and interpolated: fast for large scales.
    """
    step = max(int(scale / 2), 1)
    small = [-(-size // step) + 3 for size in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(small, np.float32), scale / step)
    if step > 1:
        noise = ndimage.zoom(noise, step, order=1, grid_mode=True, mode="nearest")
    noise = np.asarray(noise)
    noise = noise[tuple(slice(size) for size in shape)]
    return (noise - noise.mean()) / noise.std()


def make_anatomy(rng: np.random.Generator, spacing: float) -> Anatomy:
    """Draws one patient's anatomy: size, mirror image and a smooth deformation."""
    grey, white, brain = _templates(spacing)
    if rng.random() < 0.5:
        grey, white, brain = grey[::-1], white[::-1], brain[::-1]
    shape = brain.shape
    scales = rng.uniform(0.93, 1.06, 3)
    middle = (np.asarray(shape) - 1) / 2
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij")
    coordinates = [
        (axis - centre) / scale
        + centre
        + _SHIFT_MM / spacing * smooth_noise(rng, shape, _SHIFT_SCALE_MM / spacing)
        for axis, centre, scale in zip(axes, middle, scales, strict=True)
    ]
    grey, white, brain = (
        ndimage.map_coordinates(volume, coordinates, order=1) for volume in (grey, white, brain)
    )
    mask = brain > 0.5
    total = np.maximum(grey + white, 1.0)
    grey, white = grey / total, white / total
    fluid = np.clip(1 - grey - white, 0, 1)
    grey, white, fluid = (np.where(mask, tissue, 0) for tissue in (grey, white, fluid))
    return Anatomy(grey, white, fluid, mask)
