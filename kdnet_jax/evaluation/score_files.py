"""The files that hold an evaluation: scores, summary, calibration and probabilities.

They are read without JAX, so that what only compares or tabulates starts at once.
"""

import json
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, typed
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases as case_metrics

FOLDER = "evaluation"
PREDICTIONS = "predictions"
# Within FOLDER: the scores after post-processing, and the shown cases' probabilities x 255.
POSTPROCESSED = "postprocessed"
PROBABILITIES = f"{FOLDER}/probabilities"
NO_POST_PROCESSING = "none"
CASES_FILE, SUMMARY_FILE = "cases.csv", "summary.json"
CALIBRATION_FILE = "calibration.json"
# Raised when what is scored changes: a run that was evaluated by an older version is done again.
VERSION = 3


def write_scores(
    folder: pathlib.Path,
    scores: Sequence[case_metrics.RegionScore],
    about: typed.Json,
    *,
    task: task_lib.Task,
) -> typed.Json:
    """Writes `cases.csv` and `summary.json` into a new folder; returns the summary."""
    folder.mkdir(exist_ok=True)
    summary = case_metrics.summarise(scores, task=task) | about
    case_metrics.write_cases_csv(folder / CASES_FILE, scores)
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return summary


def read_summary(folder: pathlib.Path, *, postprocessed: bool = False) -> typed.Json | None:
    """Returns the summary of a run's evaluation, `None` if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = _scores_folder(folder, postprocessed) / SUMMARY_FILE
    return _read(path, "Remove it and give the command that wrote it again.")


def _read(path: pathlib.Path, remedy: str) -> typed.Json | None:
    """Returns the object in a JSON file, `None` where there is no file."""
    if not path.is_file():
        return None
    try:
        return dict(documents.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). {remedy}") from error


def summary_of(folder: pathlib.Path) -> typed.Json:
    """Returns the summary of a run that has been evaluated; see `read_summary`."""
    summary = read_summary(folder)
    assert summary is not None, f"{folder} has not been evaluated"
    return summary


def is_complete(folder: pathlib.Path) -> bool:
    """Says whether all files of an evaluation of this version are there."""
    summary = read_summary(folder) or {}
    files = [_scores_folder(folder, each) / CASES_FILE for each in (False, True)]
    return (
        summary.get("evaluation_version") == VERSION
        and all(path.is_file() for path in files)
        and (folder / PREDICTIONS).is_dir()
    )


def read_scores(
    folder: pathlib.Path, *, postprocessed: bool = False
) -> list[case_metrics.RegionScore]:
    """Returns the rows of a run's `cases.csv`, whose regions are those of its summary.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    scores = _scores_folder(folder, postprocessed)
    found = read_summary(folder, postprocessed=postprocessed) or {}
    regions = found.get("regions")
    if not isinstance(regions, dict) or not regions:
        raise UserError(
            f"{scores / SUMMARY_FILE} is missing or damaged: it names no regions. Give the "
            "command that wrote it again."
        )
    return case_metrics.read_cases_csv(scores / CASES_FILE, regions=list(regions))


def read_calibration(folder: pathlib.Path) -> typed.Json | None:
    """Returns what `calibration.json` of a run's evaluation holds; `None` of an older version's.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FOLDER / CALIBRATION_FILE
    return _read(path, "Remove it; the report is then drawn without it.")


def read_probabilities(folder: pathlib.Path, case_id: str) -> Float[np.ndarray, "d h w k"] | None:
    """Returns a shown case's probabilities on the working grid, to 1/255; `None` if not kept."""
    path = folder / PROBABILITIES / f"{case_id}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["probabilities"].astype(np.float32) / 255
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it; the report is then drawn without it."
        ) from error


def _scores_folder(folder: pathlib.Path, postprocessed: bool) -> pathlib.Path:
    return folder / FOLDER / POSTPROCESSED if postprocessed else folder / FOLDER
