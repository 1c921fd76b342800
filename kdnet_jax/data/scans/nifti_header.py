"""The header of a NIfTI file: read without the voxels, and refused before memory is taken."""

import contextlib
import dataclasses
import gzip
import io
import logging
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import nibabel as nib
import numpy as np
from nibabel import affines, filebasedimages, spatialimages

from kdnet_jax.data.scans import spaces
from kdnet_jax.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# What else is read, by SimpleITK (`itk_files.py`); nothing is written so.
ITK_SUFFIXES = (".nrrd", ".mha")
# 1 GiB as float32. A header that asks for more is damaged, or this is no brain scan.
MAX_VOXELS = 2**28
# deflate cannot compress further; a gz file that claims to hold more is cut off.
_MAX_GZ_RATIO = 1032
_MEBI = 2**20
# Bytes that may lie before and behind the voxels: what a compressed file holds there takes time.
_MAX_BEFORE, MAX_BEHIND = 16 * _MEBI, 64 * _MEBI
_FARTHEST_MM = 1e5
# nibabel reports what it repairs on standard error.
_SILENT = logging.Logger("headers", logging.CRITICAL + 1)

Affine = spaces.Affine


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """What the header of a file says of its voxels, checked.

    Attributes:
        shape: without axes of length 1 behind the third.
        space: where the voxels lie.
        layout: as nibabel's `ArrayProxy` takes it: shape, type, offset, slope and intercept.
        description: the text that its writer left.
    """

    shape: tuple[int, ...]
    space: spaces.Space
    layout: tuple[tuple[int, ...], np.dtype, int, float, float] | tuple[()]
    description: str


def read(path: str | os.PathLike[str], *, channels: bool = False) -> Header:
    """Reads and checks everything but the voxels.

    Args:
        path: a `.nii` or `.nii.gz` file.
        channels: whether a fourth axis is allowed.

    Raises:
        UserError: as `read_volume`, but for what concerns the voxels.
    """
    path = check_file(path)
    with opened(path) as file:
        return parse(file, path, channels)


def check_suffix(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path; refuses one that does not end in .nii or .nii.gz (any case)."""
    path = pathlib.Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: expected a NIfTI file whose name ends in .nii or .nii.gz")
    return path


def check_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a file with the name of a NIfTI file; a `UserError` says what it is."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {_what_else(path)}; expected a NIfTI file (.nii or .nii.gz)")
    return check_readable(path)


def check_readable(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path; refuses one whose name is not that of an image that can be read."""
    return pathlib.Path(path) if is_itk(path) else check_suffix(path)


def is_itk(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read by SimpleITK, by its name (.nrrd, .mha)."""
    return pathlib.Path(path).suffix.lower() in ITK_SUFFIXES


def stem(path: str | os.PathLike[str]) -> str:
    """Returns the name of an image's file without its ending."""
    name = pathlib.Path(path).name
    return re.sub(r"\.(nii(\.gz)?|nrrd|mha|dcm|zip)$", "", name, flags=re.IGNORECASE) or name


def _what_else(path: pathlib.Path) -> str:
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is a device or a pipe, no file"
    if path.is_symlink():
        return "is a link that leads to no file"
    return "does not exist"


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file, and turns what goes wrong with it in the block into one plain message."""
    # A stream, not nibabel's file map: that finds no name in mixed case, and stops at the last
    # voxel, so that gzip's checksum, compared at the end of the file, is never looked at.
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with _plain_errors(path), opener(path, "rb") as file:
        yield file


def parse(file: io.BufferedIOBase, path: pathlib.Path, channels: bool) -> Header:
    """Reads the header alone: extensions, whose sizes a file can make up, are passed over."""
    fields = _fields(file.read(nib.Nifti2Header.sizeof_hdr))
    _check_fields(fields, path)
    # Repairs what is harmless, such as negative voxel sizes, and raises for the rest.
    fields.check_fix(logger=_SILENT)
    shape, dtype = without_single_axes(fields.get_data_shape()), fields.get_data_dtype()
    _check_kind(shape, dtype, path, (3, 4) if channels else (3,))
    space = spaces.of_fields(fields)
    _check_affine(space.affine, path)
    _check_size(shape, dtype, path)
    slope, inter = fields.get_slope_inter()
    offset = fields.get_data_offset()
    layout = (shape, dtype, offset, 1.0 if slope is None else slope, inter or 0.0)
    description = bytes(fields["descrip"].item()).decode(errors="replace")
    return Header(shape, space, layout, description)


def _fields(start: bytes) -> nib.Nifti1Header:
    """Returns the header's fields, of NIfTI-1 or NIfTI-2, as they are stored."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        sizes = (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
        if len(start) >= size and start[:4] in sizes and kind.may_contain_header(start):
            return kind(start[:size], check=False)
    raise filebasedimages.ImageFileError("it has no NIfTI header")


def _check_fields(fields: nib.Nifti1Header, path: pathlib.Path) -> None:
    """Refuses what nibabel would pass over, or repair by a guess."""
    if fields["magic"].item()[:2] == b"ni":
        raise UserError(
            f"{path}: is the header of a pair of files (.hdr and .img). Convert the pair into one "
            "file, for instance with nibabel or dcm2niix"
        )
    offset, slope = float(fields["vox_offset"]), float(fields["scl_slope"])
    # `not`, because a comparison with NaN is false.
    if not 0 <= offset <= _MAX_BEFORE:
        raise damaged(path, f"its header says that the voxels begin at byte {offset:g}")
    if math.isinf(slope):
        raise damaged(path, "its header scales the voxels by infinity")
    if int(fields["sform_code"]) <= 0 and not np.all(fields["pixdim"][1:4] != 0):
        raise UserError(
            f"{path}: its header gives voxels of {spaces.times(fields['pixdim'][1:4])} mm. Repair "
            "the header, or export the scan again"
        )


def without_single_axes(shape: Iterable[int]) -> tuple[int, ...]:
    """Returns the shape without axes of length 1 behind the third."""
    first, behind = tuple(map(int, shape))[:3], tuple(map(int, shape))[3:]
    return first + tuple(size for size in behind if size != 1)


def check_grid(
    shape: tuple[int, ...],
    dtype: np.dtype,
    affine: Affine,
    path: pathlib.Path,
    dimensions: Sequence[int] = (3,),
) -> None:
    """Raises UserError for voxels that are no volume of numbers, or lie nowhere."""
    _check_kind(shape, dtype, path, dimensions)
    _check_affine(affine, path)


def check_voxels(shape: tuple[int, ...], path: pathlib.Path) -> None:
    """Refuses, before memory is taken, more voxels than a scan has."""
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise UserError(
            f"{path}: its header claims {voxels} voxels ({spaces.times(shape)}); at most "
            f"{MAX_VOXELS} can be read. The header is damaged or this is no brain scan"
        )


def _check_kind(
    shape: tuple[int, ...], dtype: np.dtype, path: pathlib.Path, dimensions: Sequence[int]
) -> None:
    if len(shape) not in dimensions or min(shape) < 1 or min(shape[:3]) < 2:
        raise UserError(
            f"{path}: has the shape {spaces.times(shape)}; expected a volume of "
            f"{' or '.join(map(str, dimensions))} dimensions with at least 2 voxels along each"
        )
    if dtype.kind not in "iuf":
        kind = "colours" if dtype.names else str(dtype)
        raise UserError(f"{path}: its voxels are {kind}; expected one real number per voxel")


def _check_affine(affine: Affine, path: pathlib.Path) -> None:
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise UserError(
            f"{path}: its affine {np.round(affine, 4).tolist()} cannot be inverted, so the place "
            "of the voxels is unknown. Repair the header (sform or qform) or export it again"
        )
    sizes = affines.voxel_sizes(affine)
    if not (sizes.min() >= spaces.FINEST_MM and sizes.max() <= spaces.COARSEST_MM):
        raise UserError(
            f"{path}: its header gives voxels of {spaces.times(sizes)} mm; expected "
            f"{spaces.FINEST_MM:g} to {spaces.COARSEST_MM:g} mm. Repair the header, or export the "
            "scan again"
        )
    if np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        raise UserError(
            f"{path}: its header places the first voxel at {spaces.times(affine[:3, 3])} mm; "
            f"expected at most {_FARTHEST_MM:g} mm from the origin. Repair the header (sform or "
            "qform)"
        )


def _check_size(shape: tuple[int, ...], dtype: np.dtype, path: pathlib.Path) -> None:
    """Refuses, before memory is taken, a header that the file cannot hold."""
    check_voxels(shape, path)
    voxels = math.prod(shape)
    ratio = _MAX_GZ_RATIO if path.suffix.lower() == ".gz" else 1
    size = path.stat().st_size
    if voxels * dtype.itemsize > size * ratio:
        raise damaged(path, f"{size} bytes cannot hold {spaces.times(shape)} voxels")


def damaged(path: pathlib.Path, detail: object) -> UserError:
    """Returns the error for a file with invalid content."""
    reason = " ".join(str(detail).split())
    return UserError(
        f"{path}: the file is damaged or cut off ({reason}). Copy or download it again"
    )


@contextlib.contextmanager
def _plain_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what nibabel and the decompressor raise for a bad file into one message."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{path}: may not be read ({error.strerror})") from error
    except filebasedimages.ImageFileError as error:
        raise UserError(
            f"{path}: is not a NIfTI file, whatever its name says ({error}). Convert it, for "
            "instance with dcm2niix, or download it again"
        ) from error
    except (
        *(EOFError, OSError, OverflowError, ValueError, zlib.error),
        spatialimages.HeaderDataError,
    ) as error:
        raise damaged(path, error) from error
