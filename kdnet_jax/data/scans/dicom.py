"""DICOM series, found and chosen by their tags.

A classic series has a file for each slice, an enhanced one a file with all of them. pydicom reads
the headers. `dicom_stack` makes a volume of a series.
"""

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import pathlib
import struct
import types
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from kdnet_jax.data.scans import nifti_header
from kdnet_jax.errors import UserError

_MAGIC: Final = (128, b"DICM")
_OTHER: Final = (*nifti_header.SUFFIXES, *nifti_header.ITK_SUFFIXES)
_FEWEST_SLICES: Final = 5
# What refers to images, or is computed from them.
_NO_SCANS: Final = ("SEG", "PR", "SR", "KO", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RWV")
_MOST_BYTES: Final = 2**32  # of a file in a zip, unpacked

_TAGS: Final = (
    *("SeriesInstanceUID", "SOPInstanceUID", "Modality"),
    *("SeriesNumber", "SeriesDescription", "InstanceNumber", "ImageType", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# What pydicom raises where a header does not hold what it says.
DAMAGE: Final = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, IndexError, NotImplementedError),
    *(struct.error, OverflowError, zipfile.BadZipFile, zlib.error),
)
AGAIN: Final = "Export the series again, or convert it with a tool that you trust to .nii.gz"


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
        if not self.planes or self.modality in _NO_SCANS:
            return "no scan"
        if "LOCALIZER" in self.kinds:
            return "a localiser"
        if "MOSAIC" in self.kinds:
            return "a mosaic"
        if len(self.planes) < _FEWEST_SLICES:
            return f"fewer than {_FEWEST_SLICES} slices"
        return ""


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a folder, zip or file holds DICOM.

    Raises:
        UserError: a folder holds images of other formats too.
    """
    if path.is_file():
        if path.suffix.lower() == ".zip":
            return True
        return not path.name.lower().endswith(_OTHER) and _has_magic(path)
    if not path.is_dir():
        return False
    found = other = None
    for each in _below(path):
        if each.name.lower().endswith(_OTHER):
            other = other or each
        elif not found and _has_magic(each):
            found = each
    if found and other:
        raise UserError(
            f"{path}: holds DICOM ({found.relative_to(path)}) and images of another format "
            f"({other.relative_to(path)}). Give a folder with one of them."
        )
    return found is not None


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
    if not place.exists():
        raise UserError(f"{place}: there is no such file or folder.")
    pydicom, _ = library("pydicom", place), library("highdicom", place)
    by_series: dict[str, list[tuple[File, Any]]] = {}
    for file in _files(place):
        try:
            with quiet(), file.opened() as opened:
                header = pydicom.dcmread(opened, stop_before_pixels=True, specific_tags=_TAGS)
            by_series.setdefault(str(header.SeriesInstanceUID), []).append((file, header))
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue  # a text beside the images, a DICOMDIR
        except DAMAGE as error:
            raise UserError(f"{file.name}: is damaged ({error}). {AGAIN}.") from error
    try:
        with quiet():
            found = [_series(place, uid, headers) for uid, headers in by_series.items()]
    except DAMAGE as error:
        raise UserError(f"{place}: a header is damaged ({error}). {AGAIN}.") from error
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
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            unplaced.append(file.name)
    number = first.get("SeriesNumber")
    return Series(
        place=place,
        uid=uid,
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
    # Siemens may keep all in the frames.
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]

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
        return named[0], [f"{place}: {named[0]} is taken"]
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom from telling values that break a rule: names may be among them."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def library(name: str, place: pathlib.Path) -> types.ModuleType:
    """Imports pydicom or highdicom.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{place}: is DICOM, which {name} reads, and it is not installed: pip install "
            "'kdnet-jax[dicom]' (or highdicom), or convert the series to .nii.gz."
        ) from error
