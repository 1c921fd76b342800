"""Series of DICOM, written slice by slice as a scanner exports them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float, Num
from pydicom import uid

STUDY = uid.generate_uid(entropy_srcs=["kdnet_jax tests"])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def datasets(
    data: Num[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    *,
    number: int = 5,
    description: str = "AX T1 POST",
    kinds: Sequence[str] = ("ORIGINAL", "PRIMARY", "M", "SE"),
    changes: Mapping[str, Any] | None = None,
) -> list[pydicom.FileDataset]:
    """The slices of a classic MR series, in the order of z.

    Args:
        data: intensities, 0 to 4095; rounded.
        affine: voxel index to mm, RAS+; the axes x and y lie along rows and columns.
        number: of the series.
        description: of the series.
        kinds: Image Type.
        changes: tags that are set otherwise.
    """
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    series = uid.generate_uid()
    frame_of_reference = uid.generate_uid(entropy_srcs=["kdnet_jax frame"])
    found = []
    for index in range(data.shape[2]):
        image = pydicom.Dataset()
        image.SOPClassUID = uid.MRImageStorage
        image.SOPInstanceUID = uid.generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, series
        image.FrameOfReferenceUID = frame_of_reference
        image.PatientID, image.PatientName = "P-0001", "Test^Patient"
        image.PatientBirthDate, image.PatientSex = "19700101", "O"
        image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20240102"
        image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101112"
        image.Modality, image.Manufacturer = "MR", "Maker"
        image.PositionReferenceIndicator = ""
        image.SeriesNumber, image.SeriesDescription = number, description
        image.InstanceNumber, image.ImageType = index + 1, list(kinds)
        image.ScanningSequence, image.SequenceVariant = "SE", "NONE"
        image.ScanOptions, image.MRAcquisitionType = "", "2D"
        image.RepetitionTime, image.EchoTime, image.EchoTrainLength = 500, 10, 1
        image.PatientPosition = "HFS"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.SliceThickness = float(spacing[2])
        image.PixelSpacing = [round(float(spacing[1]), 8), round(float(spacing[0]), 8)]
        directions = np.concatenate([lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]])
        image.ImageOrientationPatient = [round(float(each), 8) for each in directions]
        place = lps[:3, 3] + index * lps[:3, 2]
        image.ImagePositionPatient = [round(float(each), 6) for each in place]
        plane = np.rint(data[:, :, index].T).astype("<u2")
        image.Rows, image.Columns = plane.shape
        image.PixelData = plane.tobytes()
        for tag, value in (changes or {}).items():
            setattr(image, tag, value)
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = image.SOPClassUID
        meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        found.append(pydicom.FileDataset("", image, file_meta=meta, preamble=bytes(128)))
    return found


def save(folder: pathlib.Path, images: Sequence[pydicom.Dataset]) -> pathlib.Path:
    """Writes each into a file of its own, in no order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        image.save_as(folder / f"{image.SOPInstanceUID}.dcm", enforce_file_format=True)
    return folder
