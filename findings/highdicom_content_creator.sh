#!/usr/bin/env bash
# highdicom 0.28.2 writes a DICOM SEG without Content Creator's Name (0070,0084), unless a name is given.
# The attribute is of type 2 (PS3.3, Table 10-12): it may be empty, but it must be there. No error, no
# warning; dcmqi 1.5.7, which reads the file, says that it is absent. content_creator_name="" is enough.
# Seen: "highdicom 0.28.2: without a name the attribute is there: False, dcmqi 1.5.7 says it is absent:
# True; with an empty one there: True, absent: False".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6 dcmqi==1.5.7

PATH=$folder/venv/bin:$PATH "$folder/venv/bin/python" -I - "$folder" <<'PYTHON'
import pathlib
import subprocess
import sys

import highdicom as hd
import numpy as np
import pydicom
from pydicom import uid
from pydicom.sr.codedict import codes

folder = pathlib.Path(sys.argv[1])
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
masks = np.zeros((6, 8, 10), np.uint8)
masks[2:4, 2:5, 3:6] = 1
segment = hd.seg.SegmentDescription(
    segment_number=1,
    segment_label="segment",
    segmented_property_category=codes.SCT.Tissue,
    segmented_property_type=codes.SCT.Tissue,
    algorithm_type="MANUAL",
)


def seen(**given: str) -> tuple[bool, bool]:
    """Returns whether the attribute is in the file, and whether dcmqi says that it is absent."""
    hd.seg.Segmentation(
        slices, masks, "BINARY", [segment], uid.generate_uid(), 2, uid.generate_uid(), 1,
        "maker", "model", "1", "1", omit_empty_frames=False, **given,
    ).save_as(folder / "seg.dcm")
    done = subprocess.run(
        ["segimage2itkimage", "--inputDICOM", folder / "seg.dcm", "--outputDirectory", folder],
        capture_output=True, text=True, check=True,
    )
    said = done.stdout + done.stderr
    return "ContentCreatorName" in pydicom.dcmread(folder / "seg.dcm"), (
        "ContentCreatorName (0070,0084) absent" in said
    )


without, empty = seen(), seen(content_creator_name="")
print(
    f"highdicom {hd.__version__}: without a name the attribute is there: {without[0]}, dcmqi 1.5.7 "
    f"says it is absent: {without[1]}; with an empty one there: {empty[0]}, absent: {empty[1]}"
)
assert (without, empty) == ((False, True), (True, False))
PYTHON
