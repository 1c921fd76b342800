"""Evaluation of a network on whole scans, each on its own grid."""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import console, files, provenance, typed
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import nifti, prepare, spaces
from kdnet_jax.data.sources import labels
from kdnet_jax.evaluation import calibration, score_files, working_grid
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import overlap, postprocessing, scoring
from kdnet_jax.parallel import processes
from kdnet_jax.prediction import ensembles, inference, predictors
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import trained

_UNFINISHED = f".{score_files.FOLDER}.part"
# Of an evaluation under way, one file a case: for the thresholds, the scores of both kinds, what
# the probabilities say, and the Dice of the fixed decision.
_TABLES, _PLAIN, _PROCESSED = "tables", "scores", "scores_postprocessed"
_CALIBRATION, _FIXED = "calibration", "dice_of_fixed_decision"
WORST = 10


def dice_on_working_grid(
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> list[tuple[int, dict[str, float]]]:
    """Returns the Dice of each region of each of the numbered cases: the validation in training.

    It is taken on the working grid, where it is fast; the final evaluation is on the scan's own.

    Args:
        predictor: see `working_grid.predict`.
        params: likewise.
        cases: likewise.
        cavity: likewise.
    """
    head, scores = predictor.models[0].head, []
    for place, _, probs, reference in working_grid.predict(predictor, params, cases, cavity):
        predicted = head.decide(probs)
        dice = {
            region: overlap.dice(
                *(head.task.mask(volume, region) for volume in (reference, predicted))
            )
            for region in head.task.region_names
        }
        scores.append((place, dice))
    return scores


def evaluate(
    run: trained.Run,
    cases: store.CaseStore,
    test: Sequence[int],
    validation: Sequence[int],
    *,
    folder: pathlib.Path,
    key: typed.Json,
    about: typed.Json,
) -> None:
    """Predicts whole test cases on their own grids, scores them, and writes everything.

    Where the run has thresholds, the summary also says what the fixed decision comes to.
    `evaluation/` with `cases.csv`, `summary.json`, the same two after post-processing,
    `calibration.json` (`calibration.summarise` and, by case, `calibration.measure`) and the
    probabilities of the cases that the report shows, and `predictions/<case>.nii.gz` (without
    post-processing) appear at the end. An interrupted evaluation leaves the earlier ones, and
    resumes with the cases that are missing. Several processes share the cases.

    Args:
        run: what is scored.
        cases: the prepared cases.
        test: which of them are scored.
        validation: which of them the post-processing's thresholds are chosen on.
        folder: for what is written, of this run or of one that it teaches.
        key: what the scores depend on; an interrupted evaluation of another key is not resumed.
        about: what else identifies the evaluation, for the summary.
    """
    started = time.monotonic()
    model, network = run.model, ensembles.of_run(run)
    task = model.task
    beside = folder / _UNFINISHED
    processes.first_does(lambda: _begin(beside, key))

    def share(part: Sequence[int], done: pathlib.Path, what: str) -> Iterator[_Predicted]:
        """Yields this process's cases that are not done; `done/<case>.*` says that it is."""
        finished = processes.first_does(lambda: [path.stem for path in done.iterdir()])
        own = processes.share(part)
        bar = console.bar(
            own, f"evaluate {model.role}: {what}", unit="case", disable=not processes.is_first()
        )
        for index in bar:
            if cases.summaries[index].case_id in finished:
                continue
            case = cases[index]
            assert case.reference is not None
            reference = labels.map_cavity(case.reference, model.resection_cavity, task=task)
            yield _Predicted(case, network.segment(case), reference)

    def tabulate() -> None:
        for each in share(validation, beside / _TABLES, "post-processing, on validation"):
            table = postprocessing.tabulate(*each.masks, task=task)
            files.write_text(beside / _TABLES / f"{each.case.case_id}.json", json.dumps(table))

    def score(rules: postprocessing.Rules) -> None:
        for each in share(test, beside / _PLAIN, "test"):
            _write_prediction(beside, each, cases.label_convention, task)
            if model.thresholds:
                _write_fixed_dice(beside, each, model)
            _write_calibration(beside, each, model)
            _write_case_scores(beside, each, rules, task)

    # A case that cannot be read on one process ends all of them.
    processes.together(tabulate)
    names = [summary.case_id for summary in cases.summaries]
    tables = [beside / _TABLES / f"{names[index]}.json" for index in validation]
    rules = postprocessing.Rules(**processes.first_does(lambda: _choose_rules(tables)))
    processes.together(lambda: score(rules))
    about = about | {
        "evaluate_seconds": round(time.monotonic() - started, 1),
        "peak_memory_gib": round(provenance.peak_memory_gib(), 2),
    }
    tested = [names[index] for index in test]
    processes.first_does(lambda: _gather(folder, tested, rules, model, about | key))


def _choose_rules(tables: Sequence[pathlib.Path]) -> typed.Json:
    files.wait_until_seen(tables)
    rules = postprocessing.choose([json.loads(table.read_text("utf-8")) for table in tables])
    return dataclasses.asdict(rules)


def _begin(beside: pathlib.Path, key: typed.Json) -> None:
    """Makes the folder of an evaluation under way, or keeps that of an interrupted one."""
    text = json.dumps(key, sort_keys=True)
    of = beside / "key.json"
    names = (
        score_files.PREDICTIONS,
        score_files.PROBABILITIES,
        _TABLES,
        _PLAIN,
        _PROCESSED,
        _CALIBRATION,
        _FIXED,
    )
    parts = [beside / name for name in names]
    # A part may be in its place already, where the last moment of an evaluation was interrupted.
    whole = of.is_file() and all(part.is_dir() for part in parts)
    if whole and of.read_text("utf-8") == text:
        return
    remove_unfinished(beside.parent)
    for part in parts:
        part.mkdir(parents=True)
    files.write_text(of, text)


def _gather(
    folder: pathlib.Path,
    test: Sequence[str],
    rules: postprocessing.Rules,
    model: model_lib.Model,
    about: typed.Json,
) -> None:
    """Makes an evaluation of the test cases' own files, each of which must be there."""
    beside, task = folder / _UNFINISHED, model.task
    files.wait_until_seen([beside / _PLAIN / f"{name}.csv" for name in test])
    plain, processed = (
        [
            row
            for name in test
            for row in case_metrics.read_cases_csv(
                beside / part / f"{name}.csv", regions=task.region_names
            )
        ]
        for part in (_PLAIN, _PROCESSED)
    )
    _drop_probabilities(beside / score_files.PROBABILITIES, keep=shown_cases(plain))
    if model.thresholds:
        about = about | {"decision": _decision(beside, test, model.threshold_of)}
    score_files.write_scores(
        beside / score_files.FOLDER,
        plain,
        about | {"post_processing": score_files.NO_POST_PROCESSING},
        task=task,
    )
    chosen = {
        "post_processing": postprocessing.chosen_text(task),
        "post_processing_chosen": rules.text(task),
    }
    score_files.write_scores(
        beside / score_files.FOLDER / score_files.POSTPROCESSED,
        processed,
        about | chosen,
        task=task,
    )
    measured = {name: _case_json(beside, _CALIBRATION, name) for name in test}
    text = json.dumps(calibration.summarise(measured, model.calibration) | {"cases": measured})
    files.write_text(beside / score_files.FOLDER / score_files.CALIBRATION_FILE, text + "\n")
    for name in (score_files.PREDICTIONS, score_files.FOLDER):
        _replace_folder(beside / name, folder / name)
    remove_unfinished(folder)


def _decision(
    beside: pathlib.Path, test: Sequence[str], thresholds: Mapping[str, float]
) -> typed.Json:
    """Returns the thresholds, and the mean Dice of each region by the fixed decision."""
    cases = [_case_json(beside, _FIXED, name) for name in test]
    return {
        "thresholds": dict(thresholds),
        "fixed_dice": {
            region: sum(case[region] for case in cases) / len(cases) for region in thresholds
        },
    }


def _case_json(beside: pathlib.Path, part: str, name: str) -> typed.Json:
    return json.loads((beside / part / f"{name}.json").read_text("utf-8"))


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what an evaluation of a run's folder leaves while it is under way."""
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)


class _Predicted(NamedTuple):
    """A case, its prediction, and the reference on the scan's own grid."""

    case: prepare.PreparedCase
    prediction: ensembles.Prediction
    reference: UInt8[np.ndarray, "x y z"]

    @property
    def masks(self) -> scoring.Masks:
        """What is scored, on the scan's own grid."""
        spacing = spaces.spacing(self.case.geometry.affine)
        return scoring.Masks(self.reference, self.prediction.classes, spacing)


def _write_prediction(
    beside: pathlib.Path, each: _Predicted, convention: str, task: task_lib.Task
) -> None:
    name = each.case.case_id
    nifti.write_mask(
        beside / score_files.PREDICTIONS / f"{name}.nii.gz",
        labels.from_classes(each.prediction.classes, convention, task=task),
        each.case.geometry.affine,
        names=labels.value_names(convention, task),
        stored=each.case.geometry.stored,
    )
    np.savez_compressed(
        beside / score_files.PROBABILITIES / f"{name}.npz",
        probabilities=np.round(each.prediction.probabilities * 255).astype(np.uint8),
    )


def _write_fixed_dice(beside: pathlib.Path, each: _Predicted, model: model_lib.Model) -> None:
    head = model.head
    own = model.calibration.undo(head, each.prediction.probabilities)
    fixed = predictors.segmentation_on_scan(own, head, each.case.geometry)
    both = case_metrics.labelled(each.reference, fixed, head.task)
    dice = {
        region: overlap.dice(*(head.task.mask(classes, region) for classes in both))
        for region in head.task.region_names
    }
    files.write_text(beside / _FIXED / f"{each.case.case_id}.json", json.dumps(dice))


def _write_calibration(beside: pathlib.Path, each: _Predicted, model: model_lib.Model) -> None:
    assert each.case.label is not None  # prepared cases of a run have one
    measured = calibration.measure(
        each.case,
        each.prediction.probabilities,
        labels.map_cavity(each.case.label, model.resection_cavity, task=model.task),
        model.head,
        model.calibration,
        model.thresholds,
    )
    files.write_text(beside / _CALIBRATION / f"{each.case.case_id}.json", json.dumps(measured))


def _write_case_scores(
    beside: pathlib.Path, each: _Predicted, rules: postprocessing.Rules, task: task_lib.Task
) -> None:
    name = each.case.case_id
    scored = scoring.score_case(name, each.masks, rules, task=task)
    case_metrics.write_cases_csv(beside / _PROCESSED / f"{name}.csv", scored.processed)
    # Last: where these are, the case is done.
    case_metrics.write_cases_csv(beside / _PLAIN / f"{name}.csv", scored.plain)


def shown_cases(scores: Sequence[case_metrics.RegionScore]) -> list[str]:
    """Returns the cases that a report shows, worst first by mean Dice over the regions.

    They are the ten worst, the median and the best.
    """
    ordered = list(case_metrics.worst_first(scores))
    return list(dict.fromkeys([*ordered[:WORST], ordered[len(ordered) // 2], ordered[-1]]))


def _drop_probabilities(folder: pathlib.Path, keep: Sequence[str]) -> None:
    """Removes all but the shown cases': on full-size scans they are megabytes each."""
    for path in folder.iterdir():
        if path.stem not in keep:
            path.unlink()


def _replace_folder(new: pathlib.Path, old: pathlib.Path) -> None:
    if old.exists():
        shutil.rmtree(old)
    os.replace(new, old)
