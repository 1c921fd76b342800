"""A DICOM series as one volume: its slices checked, its voxels read, masks turned onto it."""

from typing import Any, Final

import nibabel as nib
import numpy as np
from jaxtyping import Float, UInt8

from kdnet_jax.data.scans import dicom, nifti, nifti_header, spaces
from kdnet_jax.errors import UserError

# Slices are one stack where their directions agree to this (cosines), ...
_SAME_DIRECTION: Final = 1e-3
# ... their distances to this share, or to rounding in mm, ...
_SAME_GAP, _ROUNDING_MM = 0.01, 0.01
# ... and the stack runs along their normal to this angle, degrees.
_UPRIGHT: Final = 0.5


def check(series: dicom.Series) -> None:
    """Refuses a series whose slices are no regular stack, by what its headers say.

    Raises:
        UserError: slices that are missing, doubled, tilted, turned, of other sizes or distances.
    """
    where = f"{series.place}: {series}"
    if series.unplaced or not series.planes:
        which = series.unplaced[0] if series.unplaced else "none of its files"
        raise UserError(
            f"{where}: {which} does not say where its slices lie (or has colours); expected Image "
            f"Position, Image Orientation and Pixel Spacing. {dicom.AGAIN}."
        )
    if series.enhanced and len(series.files) > 1:
        raise UserError(
            f"{where}: {len(series.files)} files, and at least one of them has several frames; "
            "expected one such file, with all slices. Give that file alone."
        )
    first = series.planes[0]
    for plane in series.planes:
        off = np.abs(np.subtract(plane.orientation, first.orientation)).max()
        if off > _SAME_DIRECTION:
            raise UserError(
                f"{where}: its slices have mixed orientations ({first.name} and {plane.name}); "
                f"expected one stack. {dicom.AGAIN}."
            )
        if plane.size != first.size or not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise UserError(
                f"{where}: {first.name} has {_grid(first)}, {plane.name} {_grid(plane)}; expected "
                f"one grid. {dicom.AGAIN}."
            )
    _check_stack(series, where)
    rows, columns = first.size
    nifti_header.check_voxels((columns, rows, len(series.planes)), series.place)


def _grid(plane: dicom.Plane) -> str:
    return f"{spaces.times(plane.size)} voxels of {spaces.times(plane.spacing)} mm"


def _check_stack(series: dicom.Series, where: str) -> None:
    if len(series.planes) < 2:
        raise UserError(f"{where}: expected a volume of at least 2 slices.")
    normal = series.planes[0].normal
    planes = _stacked(series)
    gaps = np.diff([np.dot(normal, plane.position) for plane in planes])
    usual = float(np.median(gaps))
    for place in np.flatnonzero(gaps < _ROUNDING_MM):
        doubled = int(np.count_nonzero(gaps < _ROUNDING_MM))
        raise UserError(
            f"{where}: {planes[place].name} and {planes[place + 1].name} lie at the same place "
            f"(doubled slices: {doubled}); expected one volume, not several echoes, phases or "
            f"times. {dicom.AGAIN}, one volume alone."
        )
    uneven = np.flatnonzero(np.abs(gaps - usual) > max(_SAME_GAP * usual, _ROUNDING_MM))
    if uneven.size:
        at = uneven[np.argmax(np.abs(gaps[uneven] - usual))]
        gap = float(gaps[at])
        times = gap / usual
        missing = round(times) - 1
        what = (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
            if missing >= 1 and abs(times - round(times)) < _SAME_GAP * 5
            else "the slices lie unevenly"
        )
        raise UserError(
            f"{where}: {what} between {planes[at].name} and {planes[at + 1].name}, which are "
            f"{gap:.4g} mm apart where the others are {usual:.4g} mm. {dicom.AGAIN}."
        )
    way = np.subtract(planes[-1].position, planes[0].position)
    tilt = np.degrees(np.arccos(np.clip(np.dot(way, normal) / np.linalg.norm(way), -1, 1)))
    if tilt > _UPRIGHT:
        raise UserError(
            f"{where}: its slices are shifted against each other (gantry tilt, {tilt:.1f} "
            f"degrees); expected a stack along their normal. {dicom.AGAIN}, resampled to one."
        )


def _volume(series: dicom.Series) -> Any:
    """Returns the series as a volume of highdicom, "slice row column", LPS."""
    highdicom = dicom.library("highdicom", series.place)
    slices = np.linalg.norm(grid(series)[0][:3, 2])
    tolerance = max(_SAME_GAP * slices, _ROUNDING_MM)
    options: dict[str, Any] = {"dtype": np.float32, "atol": tolerance}
    try:
        with dicom.quiet():
            images = datasets(series)
            for image in images:  # Anonymisers take it out; slices of one series share it.
                if not image.get("FrameOfReferenceUID"):
                    image.FrameOfReferenceUID = series.uid
            if not series.enhanced:
                return highdicom.get_volume_from_series(images, **options)
            return highdicom.Image.from_dataset(images[0], copy=False).get_volume(**options)
    except RuntimeError as error:  # NotImplementedError too
        raise UserError(
            f"{series.place}: {series}: its voxels cannot be decompressed ({error}). pip install "
            "'pylibjpeg[all]', or export the series uncompressed."
        ) from error
    except (AttributeError, *dicom.DAMAGE) as error:
        raise UserError(
            f"{series.place}: {series}: cannot be read ({error}). {dicom.AGAIN}."
        ) from error


def grid(series: dicom.Series) -> tuple[Float[np.ndarray, "4 4"], tuple[int, int, int]]:
    """Returns the affine (voxel index to mm, RAS+) and shape of what `read` reads.

    Args:
        series: checked.
    """
    planes = _stacked(series)
    first, last = planes[0], planes[-1]
    # Along the normal, though slices may be shifted a little (`_UPRIGHT`): no image of ours is
    # sheared.
    way = first.normal * np.dot(first.normal, np.subtract(last.position, first.position))
    lps = np.eye(4)
    lps[:3, 0] = np.multiply(first.orientation[:3], first.spacing[1])
    lps[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])
    lps[:3, 2], lps[:3, 3] = way / (len(planes) - 1), first.position
    rows, columns = first.size
    return spaces.LPS_TO_RAS @ lps, (columns, rows, len(planes))


def on_grid(
    series: dicom.Series, mask: UInt8[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> tuple[UInt8[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    """Returns a mask, and its affine, with its axes turned as those of `read`.

    Raises:
        UserError: its voxels are not those of the series.
    """
    way = check_grid(series, affine, mask.shape, "the mask")
    return nib.orientations.apply_orientation(mask, way), grid(series)[0]


def check_grid(
    series: dicom.Series, affine: Float[np.ndarray, "4 4"], shape: tuple[int, ...], name: str
) -> spaces.Turn:
    """Returns how to turn the axes of an image onto those of a series.

    Raises:
        UserError: their voxels do not lie at the same places.
    """
    onto, expected = grid(series)
    way = spaces.turn(affine, shape[:3], onto, expected)
    if way is None:
        raise UserError(
            f"{name}: its voxels ({spaces.times(shape[:3])}) do not lie where those of "
            f"{series.place}: {series} do ({spaces.times(expected)}); expected that series, "
            "converted and perhaps stripped of its skull, on its own grid. Give the series that "
            "it was made from, or an output that ends in .nii.gz."
        )
    return way


def _stacked(series: dicom.Series) -> list[dicom.Plane]:
    """Returns the slices along their normal."""
    normal = series.planes[0].normal
    return sorted(series.planes, key=lambda each: round(float(np.dot(normal, each.position)), 3))


def datasets(series: dicom.Series, *, pixels: bool = True) -> list[Any]:
    """Returns the files of a series, read by pydicom; without pixels their headers alone."""
    pydicom = dicom.library("pydicom", series.place)
    found = []
    for each in series.files:
        with each.opened() as file:
            # The voxels are read before the file is closed.
            found.append(pydicom.dcmread(file, stop_before_pixels=not pixels))
    return found


def read(series: dicom.Series) -> nifti.Volume:
    """Reads a series as float32, its axes along rows, down columns and across slices.

    Raises:
        UserError: see `check`; or its voxels cannot be read, or hold no image.
    """
    check(series)
    volume = _volume(series)
    if np.dot(volume.affine[:3, 0], series.planes[0].normal) < 0:
        volume = volume.flip_spatial(0)  # from the first slice to the last, as ITK has it
    space = spaces.of_affine(grid(series)[0])
    return nifti.from_memory(volume.array.transpose(2, 1, 0), space, str(series.place))
