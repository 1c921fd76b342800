#!/usr/bin/env bash
# nibabel 5.4.2 and SimpleITK 2.5.7: a NIfTI image that says nothing of its orientation (sform_code
# and qform_code are 0) gets axes all the same, without a warning, and each of the two gives others:
# nibabel L, A, S with the origin in the middle, SimpleITK L, P, S with the origin at the first voxel.
# A brain that is read by one and shown by the other is mirrored front to back.
# Seen: "nibabel 5.4.2: LAS, origin [ 1.5 -2.  -5. ]" and "SimpleITK 2.5.7: LPS, origin (0.0, ...)".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.4.6 simpleitk==2.5.7

"$folder/venv/bin/python" -I - "$folder/scan.nii" <<'PYTHON'
import sys
import warnings

import nibabel as nib
import numpy as np
import SimpleITK as sitk

warnings.simplefilter("error")
header = nib.Nifti1Header()
header.set_data_dtype(np.int16)
header.set_data_shape((4, 5, 6))
header.set_zooms((1, 1, 2))
header["magic"], header["vox_offset"] = b"n+1", 352
voxels = np.zeros((4, 5, 6), np.int16)
with open(sys.argv[1], "wb") as file:
    file.write(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))

read = nib.load(sys.argv[1])
codes = int(read.header["sform_code"]), int(read.header["qform_code"])
by_nibabel = "".join(nib.aff2axcodes(read.affine))
image = sitk.ReadImage(sys.argv[1])
by_itk = sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(image.GetDirection())
print(f"codes {codes}; nibabel {nib.__version__}: {by_nibabel}, origin {read.affine[:3, 3]};")
print(f"SimpleITK {sitk.Version().VersionString()}: {by_itk}, origin {image.GetOrigin()}")
assert codes == (0, 0), codes
assert np.array_equal(read.affine, read.header.get_best_affine())
assert by_nibabel == "LAS" and np.array_equal(read.affine[:3, 3], [1.5, -2, -5])
assert by_itk == "LPS" and image.GetOrigin() == (0, 0, 0)
PYTHON
