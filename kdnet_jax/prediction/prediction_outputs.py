"""Outputs of `predict` besides the mask: probability maps, and the table of volumes.

Every file is written beside and renamed.
"""

import contextlib
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterator, Sequence

import nibabel as nib
import numpy as np
from jaxtyping import Float, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import counting, files, typed
from kdnet_jax.data.scans import geometry as geometry_lib
from kdnet_jax.data.scans import spaces
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence as confidence_lib

# NIfTI has no float16. 16 bits and a slope, which every reader applies, are as exact and smaller
# than float32.
_STEPS = 65535
# Probabilities hardly compress better at higher levels, and take several times as long.
_COMPRESSION = 1


def write_probabilities(
    path: pathlib.Path,
    probs: Float[np.ndarray, "d h w k"],
    geometry: geometry_lib.Geometry,
    head: heads.Head,
) -> None:
    """Writes probabilities on the scan's own grid as a 4-D NIfTI, one channel at a time.

    They are stored to 1 / 65535. Outside of the working grid the background is 1, all else 0.

    Raises:
        UserError: the file cannot be written.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint16)
    header.set_data_shape((*geometry.shape, len(head.outputs)))
    spaces.write(header, geometry.affine, geometry.stored)
    header.set_slope_inter(1 / _STEPS, 0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["descrip"] = f"probability of {','.join(head.outputs)}"[:79].encode()

    with (
        _told(path),
        files.replacing(path) as beside,
        gzip.open(beside, "wb", compresslevel=_COMPRESSION) as file,
    ):
        # The four bytes say that no header extension follows.
        file.write(header.binaryblock + bytes(4))
        for index, outside in enumerate(head.outside):
            values = geometry_lib.map_to_scan(probs[..., index], geometry, outside=outside)
            for plane in np.moveaxis(values, 2, 0):  # the last stored axis is the slowest
                stored = np.round(np.clip(plane, 0, 1) * _STEPS).astype("<u2")
                file.write(stored.tobytes(order="F"))


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with _told(path):
        files.write_text(path, text)


@dataclasses.dataclass(frozen=True)
class ScanVolumes:
    """A row of the table of volumes.

    Attributes:
        scan: the scan's name.
        ml: region -> volume, ml.
        confidence: region -> what the probabilities say of it.
        spacing_mm: voxel size of the scan, in the order of its stored axes.
        mask: the mask's file.
        warnings: what was unlike training.
    """

    scan: str
    ml: dict[str, float]
    confidence: dict[str, confidence_lib.Confidence]
    spacing_mm: tuple[float, ...]
    mask: str
    warnings: tuple[str, ...]


def volumes_ml(
    classes: UInt8[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], *, task: task_lib.Task
) -> dict[str, float]:
    """Returns the volume of each region in ml."""
    voxel_ml = spaces.voxel_ml(affine)
    values, counts = counting.value_counts(classes)
    return {
        region.name: float(counts[np.isin(values, region.members)].sum()) * voxel_ml
        for region in task.regions
    }


def write_volumes(path: pathlib.Path, rows: Sequence[ScanVolumes], about: typed.Json) -> None:
    """Writes the table as .json, or as .csv with what `about` holds in every row.

    Raises:
        UserError: the file cannot be written.
    """
    if path.suffix.lower() == ".json":
        content = about | {"scans": [dataclasses.asdict(row) for row in rows]}
        write_text(path, json.dumps(content, indent=1) + "\n")
        return
    flat = [
        {"scan": row.scan}
        | {f"{region.lower()}_ml": round(volume, 4) for region, volume in row.ml.items()}
        | {
            f"{region.lower()}_{name}": "" if value is None else round(value, 4)
            for region, each in row.confidence.items()
            for name, value in dataclasses.asdict(each).items()
        }
        | {
            "spacing_mm": " x ".join(f"{size:.6g}" for size in row.spacing_mm),
            "mask": row.mask,
            "warnings": " | ".join(row.warnings),
        }
        | {
            key: ";".join(value) if isinstance(value, list) else value
            for key, value in about.items()
        }
        for row in rows
    ]

    write_text(path, files.csv_text(list(flat[0]), [list(row.values()) for row in flat]))
