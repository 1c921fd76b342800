"""Space of an image: where its voxels lie, as its header says."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel import affines, spatialimages

from kdnet_jax.core import typed

# Headers that place every voxel alike to within this are one: float32 rounding stays far below.
SAME_PLACE_MM: Final = 0.05
# Beyond these a header is damaged, or in another unit: 7 T scans have 0.2 mm, localisers 10 mm.
FINEST_MM, COARSEST_MM = 0.01, 100.0
# sform and pixdim may differ by rounding.
_SAME_SIZE: Final = 0.01

# How the sentences begin that are warnings wherever a scan is segmented.
NO_ORIENTATION: Final = "the header does not say how the voxels are stored"
LOST: Final = "the affine is the identity"
CONTRADICTION: Final = "the header contradicts itself"
ODD_UNIT: Final = "the header gives lengths in"
UNSAID: Final = (NO_ORIENTATION, LOST)  # settled where the orientation is given
DOUBTS: Final = (*UNSAID, CONTRADICTION, ODD_UNIT)
_SAY_HOW: Final = (
    "If that is wrong, set the orientation, such as --orientation=LPS "
    '(--config.data.orientation=LPS; in Python orientation="LPS")'
)

# From the axes of DICOM and ITK to those of NIfTI, and back.
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])

# The fields of a NIfTI header that place its voxels; of pixdim the first four.
_PLACING: Final = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_SPATIAL_UNIT: Final = 0b111  # the bits of xyzt_units that are of space
_MILLIMETRE: Final = 2
_UNITS: Final = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}  # code -> name, mm

Affine = Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """Where the voxels of an image lie.

    Attributes:
        affine: 4x4 float64, voxel index to mm, RAS+.
        stored: the fields of the NIfTI header that say so, as they are stored, in JSON's types;
            None for an image that has no such header.
        is_known: whether the header says where the voxels lie, rather than nothing (`affine` is
            then a guess of nibabel) or the identity.
        doubts: a sentence about everything that was assumed.
    """

    affine: Affine
    stored: typed.JsonView | None = None
    is_known: bool = True
    doubts: tuple[str, ...] = ()


def of_fields(fields: nib.Nifti1Header) -> Space:
    """Returns the space of a NIfTI header (1 or 2).

    Lengths in metres or micrometres become mm; where that cannot be right, the numbers are taken
    as mm. The sform counts before the qform, and both before pixdim.
    """
    affine = np.array(fields.get_best_affine())
    unit, doubts = _unit(fields, affine)
    affine[:3] *= unit
    oriented = bool(int(fields["sform_code"]) > 0 or int(fields["qform_code"]) > 0)
    if not oriented:
        doubts.append(_no_orientation(affine, "sform_code and qform_code are 0"))
    doubts += _lost(affine) + _other_sizes(fields, unit) + _mirrored(fields)
    stored = {name: fields[name].tolist() for name in _PLACING}
    stored["pixdim"] = fields["pixdim"][:4].tolist()
    stored["unit"] = int(fields["xyzt_units"]) & _SPATIAL_UNIT or _MILLIMETRE
    return Space(affine, stored, oriented and not is_identity(affine), tuple(doubts))


def of_affine(affine: Affine) -> Space:
    """Returns the space of an image whose affine (mm, RAS+) is all that is known."""
    affine = np.array(affine, np.float64)
    return Space(affine, None, not is_identity(affine), tuple(_lost(affine)))


def of_itk(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Space:
    """Returns the space of an image of ITK, whose axes are LPS.

    Args:
        spacing: mm per voxel.
        origin: mm.
        direction: 3x3, row by row.
    """
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    lps[:3, 3] = origin
    affine = LPS_TO_RAS @ lps
    if not is_identity(lps):
        return Space(affine, None)
    doubt = f"{LOST}, so the header may be lost: the voxels were taken as stored in LPS with 1 mm."
    return Space(affine, None, False, (f"{doubt} {_SAY_HOW}",))


def of_image(image: spatialimages.SpatialImage) -> Space:
    """Returns the space of an image of nibabel, of any format.

    Analyze files, and SPM's without their .mat, know no orientation: nibabel guesses.
    """
    header, affine = image.header, image.affine
    guess = header.get_best_affine() if isinstance(header, nib.AnalyzeHeader) else None
    if affine is None:
        affine = np.eye(4) if guess is None else guess
    if guess is None or not np.allclose(affine, guess):
        return of_affine(affine)
    if isinstance(header, nib.Nifti1Header):
        return of_fields(header)
    return Space(guess, None, False, (_no_orientation(guess, "its format cannot"),))


def _no_orientation(affine: Affine, why: str) -> str:
    axes = "".join(nib.aff2axcodes(affine))
    return (
        f"{NO_ORIENTATION} ({why}): they were taken as stored in {axes}, as nibabel does; ITK, for "
        f"one, takes LPS. {_SAY_HOW}"
    )


def _lost(affine: Affine) -> list[str]:
    if not is_identity(affine):
        return []
    return [
        f"{LOST}, so the header may be lost: the voxels were taken as stored in RAS with 1 mm. "
        f"{_SAY_HOW}"
    ]


def _unit(fields: nib.Nifti1Header, affine: Affine) -> tuple[float, list[str]]:
    """Returns how many mm one unit of the header is, and a sentence where that is not 1."""
    code = int(fields["xyzt_units"]) & _SPATIAL_UNIT
    if code not in _UNITS:
        return 1.0, []
    name, unit = _UNITS[code]
    sizes = affines.voxel_sizes(affine)
    if sizes.min() * unit >= FINEST_MM and sizes.max() * unit <= COARSEST_MM:
        return unit, [f"{ODD_UNIT} {name}: they were converted to mm"]
    return 1.0, [
        f"{ODD_UNIT} {name}, which would make voxels of {times(sizes * unit)} mm: they were taken "
        "as mm. Repair the header (xyzt_units)"
    ]


def _other_sizes(fields: nib.Nifti1Header, unit: float) -> list[str]:
    pixdim = np.abs(fields["pixdim"][1:4].astype(np.float64))
    if int(fields["sform_code"]) <= 0 or not np.all(np.isfinite(pixdim) & (pixdim > 0)):
        return []
    sizes = affines.voxel_sizes(np.array(fields.get_sform()))
    if np.all(np.abs(sizes / pixdim - 1) <= _SAME_SIZE):
        return []
    return [
        f"{CONTRADICTION}: by its sform the voxels are {times(sizes * unit)} mm, by its pixdim "
        f"{times(pixdim * unit)} mm. The sform was taken, for volumes and distances too; if it is "
        "wrong, repair the header"
    ]


def _mirrored(fields: nib.Nifti1Header) -> list[str]:
    """Says where sform and qform are mirror images, which no registration makes of them."""
    if int(fields["sform_code"]) <= 0 or int(fields["qform_code"]) <= 0:
        return []
    # A quaternion turns; the sign of pixdim[0] alone mirrors.
    qform = -1 if fields["pixdim"][0] < 0 else 1
    if np.linalg.det(np.array(fields.get_sform())[:3, :3]) * qform >= 0:
        return []
    return [
        f"{CONTRADICTION}: its sform and its qform are mirror images of each other. The sform was "
        "taken; programs built on ITK take the qform. Repair the wrong one"
    ]


def times(numbers: Iterable[object]) -> str:
    """Returns such as "240 x 240 x 155"."""
    return " x ".join(f"{n}" if isinstance(n, int) else f"{n:.4g}" for n in numbers)


# -------------------------------------------------------------------------- for what is written


def write(header: nib.Nifti1Header, affine: Affine, stored: typed.JsonView | None) -> None:
    """Places the voxels of a new image as those of its scan, for every reader.

    Readers differ in which of sform, qform and pixdim they follow, so all are taken over, with
    their codes. Without a header to follow, both forms get the affine, or the sform alone where a
    qform cannot hold it (shear).

    Args:
        header: of the new image, with its shape; changed.
        affine: voxel index to mm; used where `stored` is None.
        stored: of the scan's `Space`.
    """
    if stored is None:
        header.set_xyzt_units("mm")
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner")
        written = np.array(header.get_qform())
        if displacement(written, affine, header.get_data_shape()[:3]) > SAME_PLACE_MM:
            header.set_qform(None, code="unknown")
        return
    for name in _PLACING:
        header[name] = stored[name]
    header["pixdim"][:4] = stored["pixdim"]
    header["xyzt_units"] = stored["unit"]


# ------------------------------------------------------------------------------------- comparisons


def is_identity(affine: Affine) -> bool:
    """Returns whether the affine is that of a header that says nothing."""
    return np.array_equal(affine, np.eye(4))


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Returns the edges of a voxel in mm, in the order of the stored axes."""
    return typed.triple(affines.voxel_sizes(affine).tolist())


def voxel_ml(affine: Affine) -> float:
    """Returns the volume of a voxel, ml."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def displacement(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """Returns by how many mm two affines place a voxel apart, at the worst corner."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    apart = affines.apply_affine(first - second, corners)
    return float(np.linalg.norm(apart, axis=1).max())


Turn = Float[np.ndarray, "3 2"]


def turn(
    affine: Affine, shape: tuple[int, ...], onto: Affine, onto_shape: tuple[int, ...]
) -> Turn | None:
    """Returns how to reorder the axes of one grid so that it becomes another, or None.

    Args:
        affine: of the voxels to turn.
        shape: of these voxels.
        onto: affine of the other grid.
        onto_shape: of the other grid.

    Returns:
        nibabel's orientation transform, if both grids are the same set of voxel centres.
    """
    way = nib.orientations.io_orientation(np.linalg.inv(onto) @ affine)
    if np.isnan(way).any():
        return None
    places = way[:, 0].astype(int)
    if any(onto_shape[place] != size for place, size in zip(places, shape, strict=True)):
        return None
    turned = affine @ nib.orientations.inv_ornt_aff(way, shape)
    return way if displacement(turned, onto, onto_shape) < SAME_PLACE_MM else None


def is_unturned(way: Turn) -> bool:
    """Returns whether `turn` leaves the axes as they are."""
    return np.array_equal(way, [[0, 1], [1, 1], [2, 1]])
