"""What follows a run's training: calibration, thresholds, and scores of the test cases.

The teacher of a run is scored on the same cases.
"""

import dataclasses
import functools
import itertools
import logging
import operator
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from kdnet_jax.core import provenance, typed
from kdnet_jax.evaluation import calibration, decisions, evaluation, score_files
from kdnet_jax.experiment import run_data
from kdnet_jax.metrics import surface
from kdnet_jax.models import layers
from kdnet_jax.parallel import processes
from kdnet_jax.prediction import predictors
from kdnet_jax.runs import calibration as calibration_lib
from kdnet_jax.runs import thresholds, trained
from kdnet_jax.training import progress, saved_checkpoints

_LOG = logging.getLogger(__name__)

_TEACHER_SCORES = "teacher_evaluation"


def finish(
    folder: pathlib.Path,
    reached: saved_checkpoints.Progress,
    data: run_data.Data,
    teacher: trained.Run | None,
) -> trained.Run:
    """Calibrates and decides a trained run on validation cases, and scores it on test cases.

    Args:
        folder: the run's.
        reached: how far its training came.
        data: its cases and their split.
        teacher: whose outputs it learnt, for the record; None: of maps, or of none.

    Returns:
        The run, of its best checkpoint.

    Raises:
        UserError: the folder cannot be read, or not alike by all processes.
    """
    best = processes.together(lambda: trained.load_run(folder))
    trained.check_same(best)
    # The scores of the probabilities are of the calibration: a new one makes former ones void.
    anew = best.uncalibrated
    if anew:
        best = _calibrated(best, data)
    if best.undecided:
        best = _decided(best, data)
    about = {"steps": reached.step, "train_seconds": round(reached.seconds, 1)}
    if teacher:
        about["teacher"] = {"path": os.fspath(teacher.folder), "hash": teacher.params_hash}
    elif data.maps:
        about["teacher"] = {"path": os.fspath(data.maps.folder), "hash": data.maps.hash}
    _score(best, folder, data, about, anew=anew)
    return best


def _calibrated(run: trained.Run, data: run_data.Data) -> trained.Run:
    """Measures the run's calibration on the validation cases, and keeps it in its folder."""
    head = run.model.head
    samples = _tables(run, data, functools.partial(calibration.of_cases, calibration.sample))
    found, about = calibration.fit([calibration.Sample(*each) for each in samples], head)
    if len(samples) >= calibration_lib.FEWEST_CASES:
        fitted = dataclasses.replace(run, model=dataclasses.replace(run.model, calibration=found))
        of = functools.partial(calibration.of_cases, calibration.volumes)
        volumes = [calibration.Volumes(*each) for each in _tables(fitted, data, of)]
        found = dataclasses.replace(found, volumes=calibration.spread(volumes))
    processes.first_does(
        lambda: calibration_lib.write(run.folder, found, head, run.params_hash, about)
    )
    if about:
        _LOG.info(
            f"{run.folder}: calibrated on validation cases (temperature {found.temperature:.2f}): "
            f"mean -ln p {about['loss_before']:.4f} -> {about['loss_after']:.4f}"
        )
    model = dataclasses.replace(run.model, calibration=found)
    return dataclasses.replace(run, model=model, uncalibrated=False)


def _decided(run: trained.Run, data: run_data.Data) -> trained.Run:
    """Chooses the run's thresholds on the validation cases, and keeps them in its folder."""
    tables, head = _tables(run, data, decisions.tabulate_cases), run.model.head
    chosen = decisions.choose(tables, head)
    model = dataclasses.replace(run.model, thresholds=chosen)
    dice = decisions.mean_dice(tables, chosen, head)
    processes.first_does(lambda: thresholds.write(run.folder, model, run.params_hash, dice))
    _LOG.info(f"{run.folder}: decision, chosen on validation cases: {model.decision}")
    return dataclasses.replace(run, model=model, undecided=False)


def _tables(
    run: trained.Run, data: run_data.Data, tabulate: Callable[..., list[tuple[int, Any]]]
) -> list[Any]:
    """Returns the tables of all validation cases, which the processes share, in their order."""

    def own_tables() -> list[tuple[int, Any]]:
        own = processes.share(list(enumerate(data.indices("validation"))))
        return tabulate(
            predictors.predictor([run.model]),
            run.params,
            ((place, data.cases[index]) for place, index in own),
            run.model.resection_cavity,
        )

    every = itertools.chain.from_iterable(processes.gather(processes.together(own_tables)))
    return [table for _, table in sorted(every, key=operator.itemgetter(0))]


def of_teacher(teacher: trained.Run, workdir: pathlib.Path, data: run_data.Data) -> pathlib.Path:
    """Returns the folder with the teacher's scores on this run's test cases.

    It is the teacher's own folder where that was evaluated on the same cases (always so for a
    teacher that this run trained), else `teacher_evaluation/`.
    """
    key = _evaluation_key(teacher, data)
    if processes.first_does(lambda: _is_scored(teacher.folder, key)):
        return teacher.folder
    folder = workdir / _TEACHER_SCORES
    processes.first_does(lambda: _copy_log(teacher.folder, folder))
    _score(teacher, folder, data, {"steps": teacher.step, "train_seconds": 0.0})
    return folder


def copy_teacher_scores(source: pathlib.Path, target: pathlib.Path) -> None:
    """Gives another student of the same teacher the scores that one has."""
    if (source / _TEACHER_SCORES).is_dir() and not (target / _TEACHER_SCORES).exists():
        shutil.copytree(source / _TEACHER_SCORES, target / _TEACHER_SCORES)


def _is_scored(folder: pathlib.Path, key: dict[str, str | int]) -> bool:
    former = score_files.read_summary(folder)
    return bool(former) and key.items() <= former.items()


def _copy_log(source: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    log = source / progress.METRICS_FILE
    if log.is_file():
        shutil.copyfile(log, folder / progress.METRICS_FILE)


def _evaluation_key(run: trained.Run, data: run_data.Data) -> dict[str, str | int]:
    key = {
        "evaluation_version": score_files.VERSION,
        "params_hash": run.params_hash,
        "split_hash": data.split.hash,
        "data_fingerprint": data.cases.fingerprint,
    }
    # Not of the fixed decision: earlier evaluations stay valid.
    return key | ({"thresholds": run.model.decision} if run.model.thresholds else {})


def _score(
    run: trained.Run,
    folder: pathlib.Path,
    data: run_data.Data,
    about: typed.Json,
    *,
    anew: bool = False,
) -> None:
    """Scores a run on the test cases: `anew`, or unless `folder` holds just that."""
    key = _evaluation_key(run, data)
    if not anew and processes.first_does(
        lambda: _is_scored(folder, key) and score_files.is_complete(folder)
    ):
        _LOG.info(f"{folder}: already evaluated")
        processes.first_does(lambda: evaluation.remove_unfinished(folder))
        return
    evaluation.evaluate(
        run,
        data.cases,
        data.indices("test"),
        data.indices("validation"),
        folder=folder,
        key=key,
        about={
            "role": run.model.role,
            "modalities": list(run.model.modalities),
            "step": run.step,
            "parameters": layers.parameter_count(run.params),
            "teacher": None,
            **about,
            "labels": data.cases.label_convention,
            "hd95": surface.HD95_DEFINITION,
            "provenance": provenance.collect(),
        },
    )
