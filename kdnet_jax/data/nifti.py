"""Reads one NIfTI file, or says plainly what is wrong with it; writes masks and images."""

import dataclasses
import errno
import io
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import nibabel as nib
import numpy as np
from jaxtyping import Num, UInt8

from kdnet_jax import files
from kdnet_jax.data import nifti_header
from kdnet_jax.errors import UserError

# Headers that place every voxel alike to within this are one: float32 rounding stays far below.
SAME_PLACE_MM = 0.05
_MEBI = 2**20
LABEL = "label"  # the name of the reference among the modalities'

Affine = nifti_header.Affine


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """The voxels of a file and where they lie.

    Attributes:
        data: as stored and scaled; "x y z", or "x y z c" for a file of several channels.
        affine: 4x4 float64, voxel index to mm, RAS+.
        path: the file.
    """

    data: Num[np.ndarray, "x y z *c"]
    affine: Affine
    path: pathlib.Path


def read_volume(path: str | os.PathLike[str], *, channels: bool = False) -> Volume:
    """Reads an image as float32.

    Args:
        path: a `.nii` or `.nii.gz` file.
        channels: whether a fourth axis is allowed (the Decathlon keeps the sequences in one file).

    Raises:
        UserError: missing, not NIfTI, cut off, of a wrong dimension or kind, with voxels that are
            not finite, with one value everywhere, or with an affine that cannot be inverted.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused below
        volume = _read(path, channels, lambda stored: np.asarray(stored, dtype=np.float32))
    _check_intensities(volume.data, volume.path)
    return volume


def from_memory(data: Num[np.ndarray, "..."], affine: Affine, name: str) -> Volume:
    """Returns an image that is in memory already as float32, checked as a file is.

    Args:
        data: intensities, "x y z".
        affine: voxel index to mm, RAS+.
        name: names it in messages.

    Raises:
        UserError: as `read_volume`.
    """
    path = pathlib.Path(name)
    nifti_header.check_grid(data.shape, data.dtype, affine, path)
    with np.errstate(over="ignore"):
        volume = Volume(np.asarray(data, np.float32), np.asarray(affine, np.float64), path)
    _check_intensities(volume.data, path)
    return volume


def _check_intensities(data: Num[np.ndarray, "..."], path: pathlib.Path) -> None:
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise UserError(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; expected finite "
            "intensities. Export the scan again, or set these voxels to the background value"
        )
    low, high = data.min(), data.max()
    if low == high:
        raise UserError(
            f"{path}: every voxel is {low:g}; the file holds no image. Export the scan again"
        )


def read_labels(path: str | os.PathLike[str]) -> Volume:
    """Reads a label map in its own type, without loss.

    Raises:
        UserError: as `read_volume`, but values are not looked at (see `labels.to_classes`).
    """
    return _read(path, False, np.asarray)


def _read(
    path: str | os.PathLike[str],
    channels: bool,
    load: Callable[[nib.arrayproxy.ArrayProxy], Num[np.ndarray, "..."]],
) -> Volume:
    """Checks the name and the header, and only then reads the voxels with `load`."""
    path = nifti_header.check_file(path)
    with nifti_header.opened(path) as file:
        header = nifti_header.parse(file, path, channels)
        # nibabel holds an open file's lock while it reads; a map of the file would outlive it.
        stored = nib.arrayproxy.ArrayProxy(file, header.layout, mmap=False)
        data = load(stored).reshape(header.shape)
        _read_to_end(file, path)
    return Volume(data, header.affine, path)


def _read_to_end(file: io.BufferedIOBase, path: pathlib.Path) -> None:
    for _ in range(nifti_header.MAX_BEHIND // _MEBI):
        if not file.read(_MEBI):
            return
    raise nifti_header.damaged(
        path, f"more than {nifti_header.MAX_BEHIND // _MEBI} MiB follow the voxels"
    )


def write_mask(
    path: str | os.PathLike[str],
    mask: UInt8[np.ndarray, "x y z"],
    affine: Affine,
    *,
    description: str = "",
) -> None:
    """Writes a mask as uint8 NIfTI with `affine` in sform and qform; whole or not at all.

    Args:
        path: a `.nii` or `.nii.gz` file.
        mask: the label values.
        affine: voxel index to mm.
        description: up to 79 characters for the header.

    Raises:
        UserError: the name does not end in .nii or .nii.gz, the disk is full, or the folder cannot
            be written.
    """
    _write(path, np.asarray(mask, np.uint8), affine, description)


def write_image(
    path: str | os.PathLike[str],
    data: Num[np.ndarray, "x y z"],
    affine: Affine,
) -> None:
    """Writes intensities in their own type, with `affine` in sform and qform, as `write_mask` does.

    Raises:
        UserError: as `write_mask`.
    """
    _write(path, data, affine)


def _write(
    path: str | os.PathLike[str],
    data: Num[np.ndarray, "x y z"],
    affine: Affine,
    description: str = "",
) -> None:
    path = nifti_header.check_suffix(path)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    # nibabel goes by the suffix, and does not know every mixture of cases.
    suffix = ".nii.gz" if path.suffix.lower() == ".gz" else ".nii"
    try:
        with files.replacing(path, suffix) as beside:
            nib.save(image, beside)
    except OSError as error:
        raise UserError(_cannot_write(path, data.nbytes, error)) from error


def _cannot_write(path: pathlib.Path, size: int, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: cannot be written ({error.strerror or error})"
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path}: the disk is full: the file needs up to {size / _MEBI:.1f} MiB, "
        f"{free / _MEBI:.1f} MiB are free. Make room or choose another folder"
    )


# ----------------------------------------------------------------- several files on one grid


def common_affine(members: Mapping[str, Volume]) -> tuple[Affine, list[str]]:
    """Returns the affine that the files of a case share, with a sentence about each that differs.

    Args:
        members: modality or `LABEL` -> volume.

    Raises:
        UserError: the shapes differ, or the affines do in a way that `agree` cannot settle.
    """
    shapes = {volume.data.shape for volume in members.values()}
    if len(shapes) > 1:
        listed = "; ".join(
            f"{volume.path} has {' x '.join(map(str, volume.data.shape))}"
            for volume in members.values()
        )
        raise UserError(
            f"the files of one case have different shapes: {listed}. Expected one grid: register "
            "and resample them to one sequence first"
        )
    affines = {name: volume.affine for name, volume in members.items()}
    affine, notes, refused = agree(affines, shapes.pop())
    if refused:
        listed = "; ".join(
            f"{members[name].path}: {np.round(affines[name][:3], 3).tolist()}" for name in affines
        )
        raise UserError(
            f"the headers of one case place the same voxels differently ({', '.join(refused)} "
            f"against the others): {listed}. Expected one affine: register and resample the "
            "sequences to one grid, or repair the wrong header"
        )
    return affine, notes


def agree(
    affines: Mapping[str, Affine], shape: tuple[int, ...]
) -> tuple[Affine, list[str], list[str]]:
    """Settles which affine is that of a case whose files all have one shape.

    The affine that most files share wins. A file that has the identity (its header was lost), the
    label, and, where at least three files agree, one that is off by less than half a voxel are
    taken to lie on the same grid, with a note.

    Args:
        affines: modality or `LABEL` -> affine.
        shape: of all the volumes.

    Returns:
        The affine, the notes, and the names of the files that cannot be reconciled.
    """
    known = [name for name in affines if not is_identity(affines[name])] or list(affines)
    off = {
        name: {other: displacement(affines[name], affines[other], shape) for other in affines}
        for name in known
    }
    backers = {name: sum(mm < SAME_PLACE_MM for mm in off[name].values()) for name in known}
    winner = max(known, key=backers.__getitem__)
    half_voxel = min(nib.affines.voxel_sizes(affines[winner])) / 2
    notes, refused = [], []
    for name, mm in off[winner].items():
        if mm < SAME_PLACE_MM:
            continue
        if is_identity(affines[name]):
            notes.append(f"the affine of {name} is the identity; that of {winner} was taken for it")
        elif name == LABEL or (backers[winner] >= 3 and mm < half_voxel):
            notes.append(
                f"the header of {name} places voxels up to {mm:.2f} mm away from where {winner} "
                f"has them; the affine of {winner} was taken for it"
            )
        else:
            refused.append(name)
    return affines[winner], notes, refused


def is_identity(affine: Affine) -> bool:
    """Returns whether the affine is that of a header that says nothing."""
    return np.array_equal(affine, np.eye(4))


def displacement(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """Returns by how many mm two affines place a voxel apart, at the worst corner."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    apart = nib.affines.apply_affine(first - second, corners)
    return float(np.linalg.norm(apart, axis=1).max())
