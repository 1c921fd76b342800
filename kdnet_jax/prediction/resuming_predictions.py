"""Finished parts of an interrupted `predict`: masks, and their rows of the table."""

import csv
import hashlib
import json
import pathlib
from collections.abc import Sequence

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, typed
from kdnet_jax.data.scans import nifti_header
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import confidence, prediction_jobs, prediction_outputs


def mark(choices: typed.JsonView) -> str:
    """Returns the text that masks made with these choices hold in their header."""
    text = json.dumps(choices, sort_keys=True)
    return f"kdnet_jax {hashlib.sha256(text.encode()).hexdigest()[:32]}"


def finished(
    jobs: Sequence[prediction_jobs.Job],
    made_by: str,
    table: pathlib.Path | None,
    task: task_lib.Task,
) -> dict[str, prediction_outputs.ScanVolumes | None]:
    """Returns the names of the scans that are finished, each with its row of the table.

    A scan is finished if all of its files are there, and, with a table, its row too.

    Args:
        jobs: the scans.
        made_by: the `mark` of the masks.
        table: the file of volumes, or `None`.
        task: what was segmented.

    Raises:
        UserError: a mask is there that was made otherwise, or the table cannot be read.
    """
    for job in jobs:
        if job.is_dicom:
            raise UserError(
                f"--resume: {job.output} is a DICOM SEG, of one scan: leave out --resume."
            )
        if job.output.exists() and nifti_header.read(job.output).description != made_by:
            raise UserError(
                f"{job.output}: is there, and was not made by these checkpoints with these flags, "
                "so --resume cannot continue from it. Remove it, or give another --output."
            )
    done = [job for job in jobs if all(path.is_file() for path in job.outputs)]
    if table is None:
        return {job.name: None for job in done}
    rows = read_volumes(table, task) if table.exists() else {}
    return {
        job.name: rows[job.name]
        for job in done
        if job.name in rows and rows[job.name].mask == str(job.output)
    }


def read_volumes(
    path: pathlib.Path, task: task_lib.Task
) -> dict[str, prediction_outputs.ScanVolumes]:
    """Reads the table that `prediction_outputs.write_volumes` wrote: scan -> row.

    Raises:
        UserError: it is no such table.
    """
    try:
        read = _from_json if path.suffix.lower() == ".json" else _from_csv
        return {row.scan: row for row in read(path, task)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"--volumes={path}: is no table of volumes ({type(error).__name__}: {error}), so "
            "--resume cannot continue it. Remove it, or give another name."
        ) from error


def _from_json(path: pathlib.Path, task: task_lib.Task) -> list[prediction_outputs.ScanVolumes]:
    return [
        prediction_outputs.ScanVolumes(
            scan=str(row["scan"]),
            ml={region: float(row["ml"][region]) for region in task.region_names},
            confidence={
                region: confidence.Confidence(**row["confidence"][region])
                for region in task.region_names
            },
            spacing_mm=tuple(float(mm) for mm in row["spacing_mm"]),
            mask=str(row["mask"]),
            warnings=tuple(map(str, row["warnings"])),
        )
        for row in documents.read_json(path)["scans"]
    ]


def _from_csv(path: pathlib.Path, task: task_lib.Task) -> list[prediction_outputs.ScanVolumes]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if "warnings" not in (reader.fieldnames or ()):
        raise ValueError("it has no column warnings")
    return [
        prediction_outputs.ScanVolumes(
            scan=row["scan"],
            ml={region: float(row[f"{region.lower()}_ml"]) for region in task.region_names},
            confidence={
                region: confidence.from_cells(row, f"{region.lower()}_")
                for region in task.region_names
            },
            spacing_mm=tuple(float(mm) for mm in row["spacing_mm"].split(" x ")),
            mask=row["mask"],
            warnings=tuple(row["warnings"].split(" | ")) if row["warnings"] else (),
        )
        for row in rows
    ]
