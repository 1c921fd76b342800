"""NRRD and MetaImage files, read by SimpleITK with the checks of a NIfTI file."""

import importlib
import pathlib
import types
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Num

from kdnet_jax.data.scans import nifti_header, spaces
from kdnet_jax.errors import UserError

_T = TypeVar("_T")


def read_header(path: pathlib.Path, channels: bool) -> nifti_header.Header:
    """Returns what the header says of the voxels, checked; `layout` is empty.

    Raises:
        UserError: as `nifti_header.read`, or SimpleITK is not installed.
    """
    itk = _library(path)
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    _load(reader.ReadImageInformation, path)
    header = _header(itk, reader, reader.GetNumberOfComponents(), path, channels)
    nifti_header.check_voxels(header.shape, path)
    return header


def read(
    path: pathlib.Path, channels: bool
) -> tuple[nifti_header.Header, Num[np.ndarray, "x y z *c"]]:
    """Returns the header and the voxels, as stored.

    Raises:
        UserError: as `nifti.read_volume`, or SimpleITK is not installed.
    """
    header = read_header(path, channels)
    itk = _library(path)
    image = _load(lambda: itk.ReadImage(str(path)), path)
    stored = itk.GetArrayFromImage(image)
    # ITK's arrays run z y x; the components of a voxel stay last.
    axes = stored.ndim - (image.GetNumberOfComponentsPerPixel() > 1)
    order = [*reversed(range(axes)), *range(axes, stored.ndim)]
    return header, stored.transpose(order).reshape(header.shape)


def _library(path: pathlib.Path) -> types.ModuleType:
    try:
        return importlib.import_module("SimpleITK")
    except ImportError as error:
        raise UserError(
            f"{path}: is read by SimpleITK, which is not installed. pip install SimpleITK, or "
            "convert the files to .nii.gz"
        ) from error


def _load(read_part: Callable[[], _T], path: pathlib.Path) -> _T:
    try:
        return read_part()
    except RuntimeError as error:
        # The last line says why; those before it, where in the library.
        reason = str(error).strip().splitlines()[-1]
        raise nifti_header.damaged(path, reason) from error


def _header(
    itk: types.ModuleType, image: Any, components: int, path: pathlib.Path, channels: bool
) -> nifti_header.Header:
    axes = image.GetDimension()
    if axes < 3:
        raise UserError(
            f"{path}: has the shape {spaces.times(image.GetSize())}; expected a volume of 3 "
            "dimensions"
        )
    shape = nifti_header.without_single_axes((*image.GetSize(), components))
    kind = itk.GetPixelIDValueAsString(image.GetPixelID())
    dtype = np.dtype(np.complex64 if "complex" in kind else np.float32)
    direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    space = spaces.of_itk(image.GetSpacing()[:3], image.GetOrigin()[:3], direction.ravel().tolist())
    nifti_header.check_grid(shape, dtype, space.affine, path, (3, 4) if channels else (3,))
    return nifti_header.Header(shape, space, (), "")
