"""Image files: reading with plain messages on what is wrong, and writing as NIfTI.

Files of NRRD and MetaImage are read too (`itk_files.py`), with the same checks.
"""

import dataclasses
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Final

import nibabel as nib
import numpy as np
from jaxtyping import Num, UInt8
from nibabel import arrayproxy
from numpy.typing import ArrayLike

from kdnet_jax.core import files, typed
from kdnet_jax.data.scans import itk_files, label_table, nifti_header, spaces
from kdnet_jax.errors import UserError

_MEBI = 2**20
# What scaling to integers and back leaves of a whole number: up to 8e-3 for 0, 1, 2, 4 in uint8.
_WHOLE: Final = 1e-2

Affine = spaces.Affine


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """The voxels of a file and where they lie.

    Attributes:
        data: as stored and scaled; "x y z", or "x y z c" for a file of several channels.
        space: where they lie.
        path: the file.
        notes: what was repaired.
    """

    data: Num[np.ndarray, "x y z *c"]
    space: spaces.Space
    path: pathlib.Path
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """In voxels."""
        return self.data.shape[:3]

    @property
    def affine(self) -> Affine:
        """4x4 float64, voxel index to mm, RAS+."""
        return self.space.affine


def read_header(path: str | os.PathLike[str], *, channels: bool = False) -> nifti_header.Header:
    """Reads and checks everything but the voxels, of any file that can be read.

    Args:
        path: a `.nii` or `.nii.gz` file, or `.nrrd` or `.mha`.
        channels: whether a fourth axis is allowed.

    Raises:
        UserError: as `read_volume`, but for what concerns the voxels.
    """
    path = nifti_header.check_file(path)
    if nifti_header.is_itk(path):
        return itk_files.read_header(path, channels)
    return nifti_header.read(path, channels=channels)


def read_volume(path: str | os.PathLike[str], *, channels: bool = False) -> Volume:
    """Reads an image as float32.

    Args:
        path: a `.nii` or `.nii.gz` file, or `.nrrd` or `.mha`.
        channels: whether a fourth axis is allowed (the Decathlon keeps the sequences in one file).

    Raises:
        UserError: missing, not NIfTI, cut off, of a wrong dimension or kind, with voxels that are
            not finite, with one value everywhere, or with an affine that cannot be inverted.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused below
        volume = _read(path, channels, lambda stored: np.asarray(stored, dtype=np.float32))
    _check_intensities(volume.data, volume.path)
    return volume


def from_memory(data: Num[np.ndarray, "..."], space: spaces.Space, name: str) -> Volume:
    """Returns an image that is in memory already as float32, checked as a file is.

    Args:
        data: intensities, "x y z"; axes of length 1 behind the third are dropped.
        space: where they lie.
        name: names it in messages.

    Raises:
        UserError: as `read_volume`.
    """
    path = pathlib.Path(name)
    shape = nifti_header.without_single_axes(data.shape)
    nifti_header.check_grid(shape, data.dtype, space.affine, path)
    with np.errstate(over="ignore"):
        volume = Volume(np.asarray(data, np.float32).reshape(shape), space, path)
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


def read_labels(path: str | os.PathLike[str], *, channels: bool = False) -> Volume:
    """Reads a label map in its own type, without loss.

    Tools that keep an image's header, and with it its scaling, store labels that come back as
    1.00002 or 0.992: these become the whole numbers that they stand for, with a note.

    Args:
        path: a `.nii` or `.nii.gz` file, or `.nrrd` or `.mha`.
        channels: whether a mask with a channel for each region or class is allowed, "x y z c".

    Raises:
        UserError: as `read_volume`, but values are not looked at (see `labels.to_classes`).
    """
    volume = _read(path, True, np.asarray)
    if volume.data.ndim > 3 and not channels:
        raise UserError(
            f"{path}: is a mask of {volume.data.shape[3]} channels, one for each region or class "
            "(or probabilities); expected one label map. Convert it into one: "
            "python -m kdnet_jax.evaluate alone takes such masks, where --prediction_labels or "
            "--reference_labels names the channels in their order, such as TC,WT,ET"
        )
    if volume.data.dtype.kind != "f":
        return volume
    whole = np.rint(volume.data)
    with np.errstate(invalid="ignore"):  # NaN and infinite values are refused with the others
        off = np.abs(volume.data - whole).max()
    if not 0 < off <= _WHOLE:
        return volume
    note = f"label values were stored scaled, up to {off:.1g} from whole numbers: rounded to these"
    return dataclasses.replace(volume, data=whole, notes=(note,))


def _read(
    path: str | os.PathLike[str],
    channels: bool,
    load: Callable[[ArrayLike], Num[np.ndarray, "..."]],
) -> Volume:
    """Checks the name and the header, and only then reads the voxels with `load`."""
    path = nifti_header.check_file(path)
    if nifti_header.is_itk(path):
        header, stored = itk_files.read(path, channels)
        return Volume(load(stored), header.space, path)
    with nifti_header.opened(path) as file:
        header = nifti_header.parse(file, path, channels)
        # nibabel holds an open file's lock while it reads; a map of the file would outlive it.
        stored = arrayproxy.ArrayProxy(file, header.layout, mmap=False)
        data = load(stored).reshape(header.shape)
        _read_to_end(file, path)
    return Volume(data, header.space, path)


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
    stored: typed.JsonView | None = None,
    description: str = "",
    names: Mapping[int, str] | None = None,
) -> None:
    """Writes a mask as uint8 NIfTI, atomically.

    Args:
        path: a `.nii` or `.nii.gz` file.
        mask: the label values.
        affine: voxel index to mm.
        stored: the placing fields of the scan's header, kept as they are (`spaces.Space.stored`);
            None writes `affine` as sform and qform.
        description: up to 79 characters for the header.
        names: of the label values but the background's, for its extension (`label_table`).

    Raises:
        UserError: the name does not end in .nii or .nii.gz, the disk is full, or the folder cannot
            be written.
    """
    save(path, mask_image(mask, affine, stored, description, names))


def mask_image(
    mask: UInt8[np.ndarray, "x y z"],
    affine: Affine,
    stored: typed.JsonView | None = None,
    description: str = "",
    names: Mapping[int, str] | None = None,
) -> nib.Nifti1Image:
    """Returns what `write_mask` writes."""
    image = _image(np.asarray(mask, np.uint8), affine, stored, description)
    if names:
        image.header.extensions.append(label_table.extension(names))
    return image


def write_image(
    path: str | os.PathLike[str],
    data: Num[np.ndarray, "x y z"],
    affine: Affine,
    *,
    stored: typed.JsonView | None = None,
) -> None:
    """Writes intensities in their own type, as `write_mask` does.

    Raises:
        UserError: as `write_mask`.
    """
    save(path, _image(data, affine, stored))


def _image(
    data: Num[np.ndarray, "x y z"],
    affine: Affine,
    stored: typed.JsonView | None,
    description: str = "",
) -> nib.Nifti1Image:
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header["descrip"] = description.encode()
    spaces.write(header, affine, stored)
    # nibabel replaces sform and qform where the affine is not that of the header.
    return nib.Nifti1Image(data, header.get_best_affine(), header)


def save(path: str | os.PathLike[str], image: nib.Nifti1Image) -> None:
    """Writes an image atomically, with the errors of `write_mask`."""
    path = nifti_header.check_suffix(path)
    # nibabel goes by the suffix, and does not know every mixture of cases.
    suffix = ".nii.gz" if path.suffix.lower() == ".gz" else ".nii"
    try:
        with files.replacing(path, suffix) as beside:
            nib.save(image, beside)
    except OSError as error:
        raise UserError(_cannot_write(path, np.asanyarray(image.dataobj).nbytes, error)) from error


def _cannot_write(path: pathlib.Path, size: int, error: OSError) -> str:
    if not files.is_full(error):
        return f"{path}: cannot be written ({error.strerror or error})"
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path}: the disk is full: the file needs up to {size / _MEBI:.1f} MiB, "
        f"{free / _MEBI:.1f} MiB are free. Make room or choose another folder"
    )
