"""Synthetic gliomas in real anatomy, a pure function of (seed, index).

They prove nothing clinical.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, Int16, UInt8

from kdnet_jax.data.phantom import anatomy, contrast, tumour
from kdnet_jax.data.scans import nifti
from kdnet_jax.data.sources import labels as label_lib
from kdnet_jax.errors import UserError

# The template has voxels of 1 mm; above 10 mm the brain is too few voxels for a tumour.
_FINEST_MM, _COARSEST_MM = 1.0, 10.0
# Numbers the random streams: the same anatomy whatever the tumour draws.
_ANATOMY, _TUMOUR, _IMAGES = range(3)


@dataclasses.dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient, on the grid of its scan, stored LPS as BraTS stores its scans.

    Attributes:
        case_id: such as "phantom-0003".
        images: modality -> intensities, background 0.
        affine: voxel to RAS mm.
        labels: 0 background, 1 NCR, 2 ED, 3 ET.
        grade: "HGG", or "LGG" for a tumour without ET.
    """

    case_id: str
    images: dict[str, Int16[np.ndarray, "x y z"]]
    affine: Float[np.ndarray, "4 4"]
    labels: UInt8[np.ndarray, "x y z"]
    grade: str


def generate(seed: int, index: int, spacing: float) -> PhantomCase:
    """Makes one case.

    Args:
        seed: of the cohort, 0 or more.
        index: of the case in it.
        spacing: edge of the cubic voxels in mm, 1 to 10.

    Raises:
        UserError: a negative seed, or voxels that are too fine or too coarse.
    """
    _check(seed, spacing)
    streams = [np.random.default_rng([seed, index, name]) for name in range(3)]
    body = anatomy.make_anatomy(streams[_ANATOMY], spacing)
    lesion = tumour.make_tumour(streams[_TUMOUR], body, spacing)
    images = contrast.make_images(streams[_IMAGES], body, lesion, spacing)
    return PhantomCase(
        case_id=f"phantom-{index:04d}",
        images={name: _stored(image) for name, image in images.items()},
        affine=_affine(body.brain.shape, spacing),
        labels=_stored(lesion.labels),
        grade="HGG" if lesion.has_et else "LGG",
    )


def _check(seed: int, spacing: float) -> None:
    if seed < 0:
        raise UserError(f"seed: {seed} was given, 0 or more was expected")
    if not _FINEST_MM <= spacing <= _COARSEST_MM:
        raise UserError(
            f"spacing: {spacing:g} mm was given; a synthetic case has voxels of "
            f"{_FINEST_MM:g} to {_COARSEST_MM:g} mm"
        )


def _stored(volume: np.ndarray) -> np.ndarray:
    # RAS to LPS.
    return np.ascontiguousarray(volume[::-1, ::-1])


def _affine(shape: tuple[int, ...], spacing: float) -> Float[np.ndarray, "4 4"]:
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[1, 3] = (shape[1] - 1) * spacing
    affine[0, 3] = (shape[0] - 1) * spacing
    return affine


def write_scans(folder: pathlib.Path, *, seed: int, cases: int, spacing: float) -> None:
    """Writes a cohort as NIfTI files in the layout and with the labels of BraTS 2021.

    `<folder>/phantom-0003/phantom-0003_t1ce.nii.gz`, and so on with t1, t2, flair and seg.

    Raises:
        UserError: no case was requested, or one that `generate` refuses.
    """
    if cases < 1:
        raise UserError(f"cases: {cases} was given, a number above 0 was expected")
    for index in range(cases):
        case = generate(seed, index, spacing)
        for name, image in case.images.items():
            path = folder / case.case_id / f"{case.case_id}_{name}.nii.gz"
            nifti.write_image(path, image, case.affine)
        path = folder / case.case_id / f"{case.case_id}_seg.nii.gz"
        nifti.write_mask(path, label_lib.from_classes(case.labels, "brats2021"), case.affine)
