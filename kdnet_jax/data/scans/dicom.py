"""DICOM series: found by their tags, checked slice by slice, and read as one volume.

A classic series has a file for each slice, an enhanced one a file with all of them. pydicom reads
the headers, highdicom makes the volume; this module says which series is meant, and what is wrong
with one that is no volume.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import struct
import types
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from kdnet_jax.data.scans import nifti, nifti_header, spaces
from kdnet_jax.errors import UserError

_MAGIC: Final = (128, b"DICM")
# Beside a series nothing of this is looked into; a folder with images of another kind is no series.
_OTHER: Final = (*nifti_header.SUFFIXES, *nifti_header.ITK_SUFFIXES)
# Slices are one stack where their directions agree to this (cosines), ...
_SAME_DIRECTION: Final = 1e-3
# ... their distances to this share, or to rounding in mm, ...
_SAME_GAP, _ROUNDING_MM = 0.01, 0.01
# ... and the stack runs along their normal to this angle, degrees.
_UPRIGHT: Final = 0.5
_FEWEST_SLICES: Final = 5
_MOST_BYTES: Final = 2**32  # of a file in a zip, unpacked

_TAGS: Final = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "Modality"),
    *("SeriesNumber", "SeriesDescription", "InstanceNumber", "ImageType", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# What pydicom raises where a header does not hold what it says.
_DAMAGE: Final = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, IndexError, NotImplementedError),
    *(struct.error, OverflowError, zipfile.BadZipFile, zlib.error),
)
_AGAIN: Final = "Export the series again, or convert it with a tool that you trust to .nii.gz"


class File(NamedTuple):
    """A file, or a member of a zip."""

    path: pathlib.Path
    member: str = ""

    @contextlib.contextmanager
    def opened(self) -> Iterator[io.BufferedIOBase]:
        """Opens it for reading."""
        if not self.member:
            with self.path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            yield io.BytesIO(file.read())

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)


class Plane(NamedTuple):
    """A slice.

    Attributes:
        name: of it in messages.
        size: rows and columns.
        position: of the centre of its first voxel, mm, LPS.
        orientation: directions along a row and down a column, LPS.
        spacing: mm between rows and between columns.
    """

    name: str
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """The direction across it."""
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclasses.dataclass(frozen=True)
class Series:
    """The images of one series.

    Attributes:
        place: the folder, zip or file that holds it.
        uid: its Series Instance UID.
        study: its Study Instance UID.
        number: its number; -1 for none.
        description: such as "AX T1 POST"; may be empty.
        modality: such as "MR".
        kinds: the values of Image Type.
        files: with images.
        planes: its slices, by name.
        enhanced: one file holds all slices.
        unplaced: files whose slices lie nowhere.
    """

    place: pathlib.Path
    uid: str
    study: str
    number: int
    description: str
    modality: str
    kinds: tuple[str, ...]
    files: tuple[File, ...]
    planes: tuple[Plane, ...]
    enhanced: bool
    unplaced: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns what it is, without anything of the patient."""
        number = f"series {self.number}" if self.number >= 0 else "a series without number"
        described = f" {self.description!r}" if self.description else ""
        return f"{number}{described} ({self.modality}, {len(self.planes)} slices)"

    @property
    def aside(self) -> str:
        """Why it is not looked at beside others, or ""."""
        if not self.planes:
            return "no images that lie in a patient"
        if "LOCALIZER" in self.kinds:
            return "a localiser"
        if "MOSAIC" in self.kinds:
            return "a mosaic"
        if len(self.planes) < _FEWEST_SLICES:
            return f"fewer than {_FEWEST_SLICES} slices"
        return ""


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a folder, zip or file holds DICOM images, and no others."""
    if path.is_file():
        if path.suffix.lower() == ".zip":
            return True
        return not path.name.lower().endswith(_OTHER) and _has_magic(path)
    if not path.is_dir():
        return False
    found = False
    for each in _below(path):
        if each.name.lower().endswith(_OTHER):
            return False
        found = found or _has_magic(each)
    return found


def _below(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = (
        pathlib.Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and name != "DICOMDIR"
    )
    return sorted(path for path in paths if path.is_file())


def _has_magic(path: pathlib.Path) -> bool:
    offset, magic = _MAGIC
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(len(magic)) == magic
    except OSError:
        return False


def find(place: pathlib.Path) -> list[Series]:
    """Returns all series of a folder, zip or file, by number.

    Raises:
        UserError: there is none, a header cannot be read, or the library is not installed.
    """
    pydicom = _library("pydicom", place)
    by_series: dict[str, list[tuple[File, Any]]] = {}
    for file in _files(place):
        try:
            with file.opened() as opened:
                header = pydicom.dcmread(opened, stop_before_pixels=True, specific_tags=_TAGS)
            by_series.setdefault(str(header.SeriesInstanceUID), []).append((file, header))
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue  # a text beside the images, a DICOMDIR
        except _DAMAGE as error:
            raise UserError(f"{file.name}: is damaged ({error}). {_AGAIN}.") from error
    try:
        found = [_series(place, uid, headers) for uid, headers in by_series.items()]
    except _DAMAGE as error:
        raise UserError(f"{place}: a header is damaged ({error}). {_AGAIN}.") from error
    if not found:
        raise UserError(
            f"{place}: holds no DICOM file (with a preamble and DICM at byte 128). Give a folder "
            "or zip with the files of a series."
        )
    return sorted(found, key=lambda series: (series.number, series.uid))


def _files(place: pathlib.Path) -> list[File]:
    if place.is_dir():
        return [File(path) for path in _below(place) if _has_magic(path)]
    if place.suffix.lower() != ".zip":
        return [File(place)]
    try:
        with zipfile.ZipFile(place) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{place}: is no zip that can be read ({error}).") from error
    for each in members:
        if each.file_size > _MOST_BYTES:
            raise UserError(
                f"{place}: {each.filename} claims {each.file_size} bytes; at most {_MOST_BYTES} "
                "are unpacked. Unpack it yourself, and give the folder."
            )
        if each.flag_bits & 1:
            raise UserError(f"{place}: is encrypted. Unpack it, and give the folder.")
    return [File(place, each.filename) for each in sorted(members, key=lambda m: m.filename)]


def _series(place: pathlib.Path, uid: str, headers: list[tuple[File, Any]]) -> Series:
    _, first = headers[0]
    planes, unplaced = [], []
    seen: dict[str, File] = {}
    for file, header in headers:
        instance = str(header.get("SOPInstanceUID", file.name))
        if instance in seen:  # The same image twice, in two folders of an export.
            continue
        seen[instance] = file
        try:
            planes += _planes(file, header)
        except (AttributeError, IndexError, TypeError, ValueError):
            unplaced.append(file.name)
    number = first.get("SeriesNumber")
    return Series(
        place=place,
        uid=uid,
        study=str(first.get("StudyInstanceUID", "")),
        number=-1 if number is None else int(number),
        description=str(first.get("SeriesDescription", "")).strip(),
        modality=str(first.get("Modality", "")),
        kinds=tuple(map(str, first.get("ImageType") or ())),
        files=tuple(seen.values()),
        # "instance 9" before "instance 10".
        planes=tuple(sorted(planes, key=lambda plane: (len(plane.name), plane.name))),
        enhanced=any("PerFrameFunctionalGroupsSequence" in header for _, header in headers),
        unplaced=tuple(unplaced),
    )


def _planes(file: File, header: Any) -> list[Plane]:
    """Returns the slices of a file; an AttributeError says that they lie nowhere."""
    size = (int(header.Rows), int(header.Columns))
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError("colours")
    if "PerFrameFunctionalGroupsSequence" not in header:
        if int(header.get("NumberOfFrames", 1)) != 1:
            raise ValueError("frames that lie nowhere")
        number = header.get("InstanceNumber")
        name = f"instance {number}" if number is not None else file.name
        return [_plane(name, size, header, header, header)]
    shared = header.SharedFunctionalGroupsSequence[0]

    def group(frame: Any, name: str) -> Any:
        return frame[name][0] if name in frame else shared[name][0]

    return [
        _plane(
            f"frame {index}",
            size,
            group(frame, "PlanePositionSequence"),
            group(frame, "PlaneOrientationSequence"),
            group(frame, "PixelMeasuresSequence"),
        )
        for index, frame in enumerate(header.PerFrameFunctionalGroupsSequence, 1)
    ]


def _plane(name: str, size: tuple[int, int], place: Any, turned: Any, measured: Any) -> Plane:
    lists = (place.ImagePositionPatient, turned.ImageOrientationPatient, measured.PixelSpacing)
    position, orientation, spacing = (tuple(map(float, each)) for each in lists)
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        raise ValueError("a damaged place")
    return Plane(name, size, position, orientation, spacing)


def choose(
    found: Sequence[Series], modality: str, sequence_of: dict[str, str], sequence: str, asked: str
) -> tuple[Series, list[str]]:
    """Returns the series that is meant, and what the user should know of the choice.

    With `asked` it is that one. Otherwise localisers, other modalities and what is no stack are
    left aside; then derived images, if there are originals; then what is not called as the
    network's sequence, if just one is.

    Args:
        found: all series of a place.
        modality: of the scans that the network knows, such as "MR"; "": any but CT.
        sequence_of: uid -> the sequence that the description names, where it names one.
        sequence: the network's.
        asked: number or UID of the series; "": none.

    Raises:
        UserError: with the list, where it cannot be told.
    """
    place = found[0].place
    if asked:
        named = [each for each in found if asked in (each.uid, str(each.number))]
        if len(named) != 1:
            raise UserError(
                f"--series={asked}: {len(named)} series of {place} have this number or UID; "
                f"expected one.{_listed(found)}"
            )
        return named[0], []
    why = {each.uid: each.aside or _other_kind(each.modality, modality) for each in found}
    left = [each for each in found if not why[each.uid]]
    if original := [each for each in left if "DERIVED" not in each.kinds]:
        why |= {each.uid: "derived" for each in left if each not in original}
        left = original
    if len(left) > 1:
        alike = [each for each in left if sequence_of.get(each.uid) == sequence]
        if len(alike) == 1:
            why |= {each.uid: f"not called {sequence}" for each in left if each not in alike}
            left = alike
    if len(left) != 1:
        problem = "which is meant cannot be told" if left else "none can be used"
        raise UserError(
            f"{place}: holds {len(found)} series, and {problem}. Name one by --series=NUMBER (or "
            f"its UID), or give a folder with it alone.{_listed(found, why)}"
        )
    notes = [f"{place}: {left[0]} is taken"]
    notes += [f"{place}: {each} is left aside: {why[each.uid]}" for each in found if why[each.uid]]
    return left[0], notes


def _other_kind(modality: str, wanted: str) -> str:
    if modality == wanted or (not wanted and modality != "CT"):
        return ""
    return f"no {wanted}" if wanted else "CT"


def _listed(found: Sequence[Series], why: dict[str, str] | None = None) -> str:
    reasons = {uid: f": {reason}" for uid, reason in (why or {}).items() if reason}
    return "".join(f"\n  {each}, {each.uid}{reasons.get(each.uid, '')}" for each in found)


def check(series: Series) -> None:
    """Refuses a series whose slices are no regular stack, by what its headers say.

    Raises:
        UserError: slices that are missing, doubled, tilted, turned, of other sizes or distances.
    """
    where = f"{series.place}: {series}"
    if series.unplaced or not series.planes:
        which = series.unplaced[0] if series.unplaced else "none of its files"
        raise UserError(
            f"{where}: {which} does not say where its slices lie (or has colours); expected Image "
            f"Position, Image Orientation and Pixel Spacing. {_AGAIN}."
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
                f"expected one stack. {_AGAIN}."
            )
        if plane.size != first.size or not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise UserError(
                f"{where}: {first.name} has {_grid(first)}, {plane.name} {_grid(plane)}; expected "
                f"one grid. {_AGAIN}."
            )
    _check_stack(series, where)
    rows, columns = first.size
    nifti_header.check_voxels((columns, rows, len(series.planes)), series.place)


def _grid(plane: Plane) -> str:
    return f"{spaces.times(plane.size)} voxels of {spaces.times(plane.spacing)} mm"


def _check_stack(series: Series, where: str) -> None:
    if len(series.planes) < 2:
        raise UserError(f"{where}: expected a volume of at least 2 slices.")
    normal = series.planes[0].normal
    planes = sorted(
        series.planes, key=lambda plane: round(float(np.dot(normal, plane.position)), 3)
    )
    gaps = np.diff([np.dot(normal, plane.position) for plane in planes])
    usual = float(np.median(gaps))
    for place in np.flatnonzero(gaps < _ROUNDING_MM):
        doubled = int(np.count_nonzero(gaps < _ROUNDING_MM))
        raise UserError(
            f"{where}: {planes[place].name} and {planes[place + 1].name} lie at the same place "
            f"(doubled slices: {doubled}); expected one volume, not several echoes, phases or "
            f"times. {_AGAIN}, one volume alone."
        )
    uneven = np.flatnonzero(np.abs(gaps - usual) > max(_SAME_GAP * usual, _ROUNDING_MM))
    if uneven.size:
        at = uneven[np.argmax(np.abs(gaps[uneven] - usual))]
        times = gaps[at] / usual
        missing = round(times) - 1
        what = (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
            if missing >= 1 and abs(times - round(times)) < _SAME_GAP * 5
            else "the slices lie unevenly"
        )
        raise UserError(
            f"{where}: {what} between {planes[at].name} and {planes[at + 1].name}, which are "
            f"{gaps[at]:.4g} mm apart where the others are {usual:.4g} mm. {_AGAIN}."
        )
    way = np.subtract(planes[-1].position, planes[0].position)
    tilt = np.degrees(np.arccos(np.clip(np.dot(way, normal) / np.linalg.norm(way), -1, 1)))
    if tilt > _UPRIGHT:
        raise UserError(
            f"{where}: its slices are shifted against each other (gantry tilt, {tilt:.1f} "
            f"degrees); expected a stack along their normal. {_AGAIN}, resampled to one."
        )


def _volume(series: Series) -> Any:
    """Returns the series as a volume of highdicom, "slice row column", LPS."""
    highdicom = _library("highdicom", series.place)
    tolerance = max(_SAME_GAP * _gap(series), _ROUNDING_MM)
    options: dict[str, Any] = {"dtype": np.float32, "atol": tolerance}
    try:
        if series.enhanced:
            with series.files[0].opened() as file:
                return highdicom.imread(file).get_volume(**options)
        return highdicom.get_volume_from_series(datasets(series), **options)
    except RuntimeError as error:  # NotImplementedError too
        raise UserError(
            f"{series.place}: {series}: its voxels cannot be decompressed ({error}). pip install "
            "'pylibjpeg[all]', or export the series uncompressed."
        ) from error
    except (AttributeError, *_DAMAGE) as error:
        raise UserError(f"{series.place}: {series}: cannot be read ({error}). {_AGAIN}.") from error


def _gap(series: Series) -> float:
    depths = np.sort([np.dot(series.planes[0].normal, each.position) for each in series.planes])
    return float(np.median(np.diff(depths)))


def datasets(series: Series, *, pixels: bool = True) -> list[Any]:
    """Returns the files of a series, read by pydicom; without pixels their headers alone."""
    pydicom = _library("pydicom", series.place)
    found = []
    for each in series.files:
        with each.opened() as file:
            # The voxels are read before the file is closed.
            found.append(pydicom.dcmread(file, stop_before_pixels=not pixels))
    return found


def read(series: Series) -> nifti.Volume:
    """Reads a series as float32, its axes along rows, down columns and across slices.

    Raises:
        UserError: see `check`; or its voxels cannot be read, or hold no image.
    """
    check(series)
    volume = _volume(series)
    if np.dot(volume.affine[:3, 0], series.planes[0].normal) < 0:
        volume = volume.flip_spatial(0)  # from the first slice to the last, as ITK has it
    space = spaces.of_affine(np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]])
    return nifti.from_memory(volume.array.transpose(2, 1, 0), space, str(series.place))


def _library(name: str, place: pathlib.Path) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{place}: is DICOM, which {name} reads, and it is not installed: pip install "
            "'kdnet-jax[dicom]' (or highdicom), or convert the series to .nii.gz."
        ) from error
