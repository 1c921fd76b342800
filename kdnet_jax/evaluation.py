"""Scores a network on whole scans, each on its own grid, and writes what it found."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import nibabel as nib
import tqdm

from kdnet_jax import conventions, runs
from kdnet_jax.data import labels, nifti, prepare, store
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import overlap
from kdnet_jax.models import heads

FOLDER = "evaluation"
PREDICTIONS = "predictions"
CASES_FILE, SUMMARY_FILE = "cases.csv", "summary.json"


def dice_on_working_grid(
    probabilities: Callable[[Any], Any],
    head: heads.Head,
    cases: Iterable[prepare.PreparedCase],
    channels: Sequence[int],
    cavity: str,
) -> dict[str, float]:
    """Returns the mean Dice of each region over `cases`: the validation during training.

    It is taken on the working grid, where it is fast; the final evaluation is on the scan's own.
    """
    scores: dict[str, list[float]] = {}
    for case in cases:
        predicted = heads.to_classes(probabilities(case.image[..., list(channels)]), head)
        reference = labels.map_cavity(case.label, cavity)
        for region in conventions.REGIONS:
            masks = (conventions.region_mask(volume, region) for volume in (reference, predicted))
            scores.setdefault(region, []).append(overlap.dice(*masks))
    return {region: sum(values) / len(values) for region, values in scores.items()}


def evaluate(
    probabilities: Callable[[Any], Any],
    head: heads.Head,
    cases: store.CaseStore,
    indices: Sequence[int],
    *,
    channels: Sequence[int],
    cavity: str,
    convention: str,
    folder: pathlib.Path,
    about: dict[str, Any],
    description: str,
) -> dict[str, Any]:
    """Predicts whole test cases on their own grids, scores them, and writes everything.

    `evaluation/cases.csv`, `evaluation/summary.json` and `predictions/<case>.nii.gz` appear
    together at the end; an interrupted evaluation leaves the former ones.

    Args:
        probabilities: the network's sequences "d h w m" to probabilities "d h w k".
        head: what the channels of the output are.
        cases: the prepared cases.
        indices: which of them are scored.
        channels: positions of the network's sequences among the cases'.
        cavity: what a resection cavity in the reference counts as (`labels.map_cavity`).
        convention: labels of the predictions' files.
        folder: the run's folder.
        about: what identifies the evaluation, for the summary.
        description: what the progress bar says.

    Returns:
        The content of `summary.json`.
    """
    beside = folder / f".{FOLDER}.part"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / PREDICTIONS).mkdir(parents=True)
    scores = []
    for index in tqdm.tqdm(indices, desc=description, unit="case"):
        case = cases[index]
        probs = probabilities(case.image[..., list(channels)])
        predicted = runs.segmentation_on_scan(probs, head, case.geometry)
        nifti.write_mask(
            beside / PREDICTIONS / f"{case.case_id}.nii.gz",
            labels.from_classes(predicted, convention),
            case.geometry.affine,
        )
        scores += case_metrics.score_case(
            case.case_id,
            labels.map_cavity(case.reference, cavity),
            predicted,
            tuple(nib.affines.voxel_sizes(case.geometry.affine)),
        )
    summary = case_metrics.summarise(scores) | about
    (beside / FOLDER).mkdir()
    case_metrics.write_cases_csv(beside / FOLDER / CASES_FILE, scores)
    (beside / FOLDER / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    for name in (PREDICTIONS, FOLDER):
        _replace_folder(beside / name, folder / name)
    beside.rmdir()
    return summary


def _replace_folder(new: pathlib.Path, old: pathlib.Path) -> None:
    if old.exists():
        shutil.rmtree(old)
    os.replace(new, old)


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the summary of a run's evaluation, `None` if it has none."""
    path = folder / FOLDER / SUMMARY_FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def read_scores(folder: pathlib.Path) -> list[case_metrics.RegionScore]:
    """Returns the rows of a run's `cases.csv`."""
    return case_metrics.read_cases_csv(folder / FOLDER / CASES_FILE)
