#!/usr/bin/env bash
# SimpleITK 2.5.7 reads a DICOM SEG (highdicom 0.28.2) with the origin of one of its frames, but with
# voxels of 1 x 1 x 1 mm, whatever its Pixel Measures say, and the frames of two segments behind each
# other as one volume; no error, no exception. Volumes are then wrong by the size of a voxel, and the
# mask lies elsewhere than the scan.
# Seen: "highdicom 0.28.2: spacing (5.0, 2.0, 2.0), 6 slices; SimpleITK 2.5.7: spacing (1.0, 1.0, 1.0),
# 12 slices".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6 simpleitk==2.5.7

"$folder/venv/bin/python" -I - "$folder/seg.dcm" <<'PYTHON'
import sys

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid
from pydicom.sr.codedict import codes

series, study, frame = (uid.generate_uid() for _ in range(3))
slices = []
for index in range(6):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = uid.MRImageStorage, uid.generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
    image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "1", "A^B", "", "O"
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
    image.StudyDate, image.StudyTime, image.Modality = "20240101", "000000", "MR"
    image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 8, 10, [2, 2], 5
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [-30, -40, 5 * index]
    slices.append(image)

masks = np.zeros((6, 8, 10, 2), np.uint8)
masks[2:4, 2:5, 3:6], masks[2, 2, 3, 1] = 1, 0
segments = [
    hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"segment {number}",
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type="MANUAL",
    )
    for number in (1, 2)
]
hd.seg.Segmentation(
    slices, masks, "BINARY", segments, uid.generate_uid(), 2, uid.generate_uid(), 1,
    "maker", "model", "1", "1", omit_empty_frames=False,
).save_as(sys.argv[1])

theirs = hd.seg.segread(sys.argv[1]).get_volume()
image = sitk.ReadImage(sys.argv[1])
print(
    f"highdicom {hd.__version__}: spacing {tuple(map(float, theirs.spacing))}, "
    f"{theirs.spatial_shape[0]} slices; SimpleITK {sitk.Version().VersionString()}: spacing "
    f"{image.GetSpacing()}, {image.GetSize()[2]} slices"
)
assert np.allclose(theirs.spacing, (5, 2, 2)) and theirs.spatial_shape[0] == 6
assert image.GetSpacing() == (1, 1, 1)
assert image.GetSize()[2] == 12
PYTHON
