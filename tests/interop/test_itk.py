"""Masks beside their scans in ITK (3D Slicer, ITK-SNAP), which goes by the qform."""

import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax.data.scans import nifti, nifti_header

sitk = pytest.importorskip("SimpleITK")

LPS = np.array([[-1.0, 0, 0, 90], [0, -2, 0, 126], [0, 0, 3, -72], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", [(1, 4), (2, 1), (1, 0), (0, 4), (0, 0)])
def test_itk_sees_the_mask_on_its_scan(tmp_path: pathlib.Path, codes: tuple[int, int]) -> None:
    tilt = np.eye(4)
    tilt[:3, :3] = nib.eulerangles.euler2mat(0.2)
    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), LPS)
    image.set_qform(LPS, codes[0])
    image.set_sform(tilt @ LPS, codes[1])
    nib.save(image, tmp_path / "scan.nii")
    space = nifti_header.read(tmp_path / "scan.nii").space
    mask = np.ones((5, 6, 7), np.uint8)
    nifti.write_mask(tmp_path / "mask.nii", mask, space.affine, stored=space.stored)
    scan, written = (sitk.ReadImage(str(tmp_path / f"{name}.nii")) for name in ("scan", "mask"))
    for corner in ([0, 0, 0], [4, 5, 6]):
        np.testing.assert_allclose(
            written.TransformIndexToPhysicalPoint(corner),
            scan.TransformIndexToPhysicalPoint(corner),
            atol=1e-4,
        )
