"""Masks as DICOM SEG objects, by highdicom.

One binary segment for each region, which may overlap, with frames for all slices of the series that
was segmented, and references to its images. Patient and study are copied by highdicom from those,
as the standard wants; nothing else of them is kept.
"""

import contextlib
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from jaxtyping import Float, UInt8
from pydicom.sr.codedict import codes

from kdnet_jax import task as task_lib
from kdnet_jax.core import files, typed
from kdnet_jax.data.scans import dicom, dicom_stack, spaces
from kdnet_jax.data.sources import labels
from kdnet_jax.drawing import planes
from kdnet_jax.errors import UserError

_SERIES_NUMBER = 900
_MAKER = "kdnet_jax"


def write(
    path: pathlib.Path,
    classes: UInt8[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    series: dicom.Series,
    task: task_lib.Task,
    about: typed.JsonView,
) -> None:
    """Writes the regions of a mask, atomically.

    Args:
        path: a file that ends in .dcm.
        classes: on the grid of the series, its axes in any order.
        affine: of the classes, voxel index to mm, RAS+.
        series: what was segmented.
        task: what the classes are.
        about: of the networks (`parameters_sha256`, `kdnet_jax`).

    Raises:
        UserError: the file cannot be written, or the series lacks what the standard wants of it.
    """
    segmentation = _segmentation(classes, affine, series, task, about)
    try:
        with files.replacing(path) as beside:
            segmentation.save_as(beside)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error


def check(series: dicom.Series, task: task_lib.Task, about: typed.JsonView) -> None:
    """Refuses a series to which no DICOM SEG can refer, before anything is segmented.

    Raises:
        UserError: as `write`, of the series.
    """
    affine, shape = dicom_stack.grid(series)
    _segmentation(np.zeros(shape, np.uint8), affine, series, task, about)


def _segmentation(
    classes: UInt8[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    series: dicom.Series,
    task: task_lib.Task,
    about: typed.JsonView,
) -> hd.seg.Segmentation:
    with _told(series), dicom.quiet():
        sources = dicom_stack.datasets(series, pixels=False)
        classes, affine = dicom_stack.on_grid(series, classes, affine)
        masks = np.stack([task.mask(classes.T, name) for name in task.region_names], axis=-1)
        volume = hd.Volume(
            masks.astype(np.uint8),
            spaces.LPS_TO_RAS @ affine[:, [2, 1, 0, 3]],
            hd.CoordinateSystemNames.PATIENT,
            frame_of_reference_uid=sources[0].FrameOfReferenceUID,
            channels={"SegmentNumber": range(1, len(task.regions) + 1)},
        )
        hashes = [str(each) for each in about["parameters_sha256"]]
        return hd.seg.Segmentation(
            source_images=sources,
            pixel_array=volume,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_segments(task, str(about["kdnet_jax"]), hashes),
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=_MAKER,
            manufacturer_model_name=f"{_MAKER} predict",
            software_versions=str(about["kdnet_jax"]),
            device_serial_number=hashes[0][:16],
            content_label="SEGMENTATION",
            # Nobody; but it has to be there (findings/highdicom_content_creator.sh).
            content_creator_name="",
            content_description=f"{task.noun}, not for diagnosis or treatment"[:64],
            series_description=f"{_MAKER}: {task.noun}, automatic"[:64],
            # Readers disagree on slices that are left out.
            omit_empty_frames=False,
        )


@contextlib.contextmanager
def _told(series: dicom.Series) -> Iterator[None]:
    try:
        yield
    except (AttributeError, ValueError, TypeError) as error:
        # What the error says may hold a name or a date of birth.
        raise UserError(
            f"{series.place}: {series}: has no valid value for an attribute of patient, study or "
            f"image that a DICOM SEG repeats (in {_where(error)}). Repair the series, or give an "
            "output that ends in .nii.gz."
        ) from None


def _where(error: Exception) -> str:
    """Returns the attribute that was set or read when it happened, as far as the code says so."""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
    found = [
        name for line in lines for name in re.findall(r"\b(?:self|dataset|ds)\.([A-Z]\w+)", line)
    ]
    if isinstance(error, AttributeError) and error.name:
        return error.name
    return found[-1] if found else "an attribute that is not known"


def _segments(
    task: task_lib.Task, version: str, hashes: Sequence[str]
) -> list[hd.seg.SegmentDescription]:
    tumour = labels.is_brats(task)
    kinds: tuple[Any, Any] = (
        (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm)
        if tumour
        else (codes.SCT.Tissue, codes.SCT.Tissue)
    )
    algorithm = hd.AlgorithmIdentificationSequence(
        name=_MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        parameters={"parameters_sha256": ",".join(hashes)},
    )
    looks = planes.looks(task.region_names)
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"{region.name}: {region.description}"[:64].removesuffix(": "),
            segmented_property_category=kinds[0],
            segmented_property_type=kinds[1],
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=region.name[:64],
            anatomic_regions=[codes.SCT.Brain] if tumour else None,
            display_color=hd.color.CIELabColor.from_string(looks[region.name].colour),
        )
        for number, region in enumerate(task.regions, 1)
    ]
