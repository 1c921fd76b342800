"""One run from its experiment to its report: data, split, teacher, training, evaluation, report."""

import contextlib
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

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import files, provenance, typed
from kdnet_jax.data.records import skipping
from kdnet_jax.drawing import figures
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import calibration, decisions, evaluation, score_files
from kdnet_jax.experiment import compilation, given_teachers, run_data, training
from kdnet_jax.metrics import surface
from kdnet_jax.models import layers, networks
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.prediction import predictors
from kdnet_jax.reports import run_report
from kdnet_jax.runs import calibration as calibration_lib
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import teachers, thresholds, trained, transfer
from kdnet_jax.runs import workdir as workdir_lib
from kdnet_jax.training import progress, saved_checkpoints

_LOG = logging.getLogger(__name__)

_TEACHER_SCORES = "teacher_evaluation"


def run(experiment: experiment_lib.Experiment, workdir: pathlib.Path) -> None:
    """Trains, evaluates and reports a run; a stopped run resumes, a finished one reports.

    Raises:
        UserError: for everything that the user can fix, as early as it can be known.
        stopping.Stopped: after SIGINT or SIGTERM, when everything is saved.
    """
    run_together({workdir: experiment}, workdir)


def run_together(runs: training.Runs, workdir: pathlib.Path) -> None:
    """Does the same for several students of one teacher, which differ in their channels alone.

    Args:
        runs: by their folders.
        workdir: where a teacher that has to be trained lies.

    Raises:
        UserError: as `run`.
        stopping.Stopped: as `run`.
    """
    try:
        with compilation.explain_if_full(), contextlib.ExitStack() as locks:
            _run(runs, workdir, locks)
    except OSError as error:
        raise files.disk_error(error, workdir) from error


def _run(runs: training.Runs, workdir: pathlib.Path, locks: contextlib.ExitStack) -> None:
    # -- Everything that can be wrong without reading data -----------------------------------
    # What students have in common is read of the first.
    first, experiment = next(iter(runs.items()))
    mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.space)
    sharding.check_batch(
        mesh,
        experiment.loader.batch,
        experiment.loader.patch,
        experiment.train.accumulate,
        experiment.network.divisor[0],
    )
    networks.check_space(mesh.shape[sharding.SPACE], experiment.network, "mesh.space")
    predictors.prediction_mesh(model_lib.of_experiment(experiment))
    own = dict(runs)
    asked = experiment.teacher
    given = to_be = None
    if asked and asked.to_train:
        own[workdir / teachers.OWN] = asked.to_train
        to_be = model_lib.of_experiment(asked.to_train)
        for each in runs.values():
            teachers.check_settings(workdir / teachers.OWN, to_be, each)
    elif asked and not asked.maps:
        # Read before the data are built: what is wrong with it is reported early.
        given = processes.together(lambda: given_teachers.load(asked, first))
        _check_same(given.run)
        for each in runs.values():
            teachers.check_settings(given.run.folder, given.run.model, each)
            for member in given.members or (given.run,):
                teachers.check_incomplete(member.folder, member.model, each)
        predictors.prediction_mesh(given.run.model)
    start = processes.together(lambda: transfer.load_start(list(runs.values())))
    if start:
        _check_same(start)
    for folder, each in own.items():
        workdir_lib.check(folder, each)
    for folder in own:
        processes.first_does(functools.partial(_lock, folder, locks))

    # -- Data and split ----------------------------------------------------------------------
    data = run_data.open_data(experiment)
    own = {folder: each.of_task(data.cases.task) for folder, each in own.items()}
    runs = {folder: own[folder] for folder in runs}
    experiment = runs[first]
    for each in own.values():
        run_data.check_sequences(each, data)
        run_data.check_taught(each, data)
        run_data.check_unlabelled(each, data)
    run_data.check_same_cases(list(runs.values()), data)
    for folder, each in own.items():
        processes.first_does(functools.partial(workdir_lib.claim, folder, each, data.split))
        processes.together(functools.partial(workdir_lib.check_seen, folder))
    cases = len(run_data.training_cases(experiment, data))
    unlabelled = len(run_data.unlabelled_cases(experiment, data))
    more = f" and {unlabelled} without a reference" if unlabelled else ""
    for folder, each in runs.items():
        _LOG.info(
            f"{folder}: {each.role} on {', '.join(each.modalities)}; "
            f"{cases} training{more}, {len(data.split.validation)} validation and "
            f"{len(data.split.test)} test cases"
        )

    patient = {each.case_id: each.patient_id for each in data.cases.summaries}
    if start:
        teachers.check_split(start.folder, patient, data.split.test, "train.start")

    # -- The teacher first -------------------------------------------------------------------
    teacher = None
    if given:
        # Each student keeps one that another tool has trained.
        kept = [given_teachers.keep(given, folder) for folder in runs]
        teacher = kept[0]
        teachers.check_statistics(teacher.folder, teacher.model.task, data.cases.task)
        for each in given.members or (teacher,):
            teachers.check_split(each.folder, patient, data.split.test)
    elif to_be:
        folder = workdir / teachers.OWN
        _LOG.info(f"No teacher is given (--config.teacher.checkpoint): {folder} is trained")
        # Check that the student's step fits in memory before spending hours on the teacher.
        compilation.compile_step([*runs.values()], mesh, cases, to_be, bool(unlabelled))
        (teacher,) = train_and_evaluate({folder: own[folder]}, data, None)

    elif data.maps:
        _LOG.info(
            f"The teacher is {len(data.maps.files)} maps of {data.maps.folder}. Nothing there "
            "says what made them: if it was trained or selected on this run's test cases, the "
            "student's scores may be too good."
        )

    # -- The run itself ----------------------------------------------------------------------
    if experiment.loss.reconstructs:  # It segments nothing that could be scored.
        training.train(runs, data, None, start)
        _LOG.info(f"Pretrained. Networks start from it with --config.train.start={first}")
        return
    train_and_evaluate(runs, data, teacher, start)
    for folder, each in runs.items():
        if folder != first:
            processes.first_does(functools.partial(_copy_teacher_scores, first, folder))
        others = {"teacher": teacher_evaluation(teacher, folder, data)} if teacher else {}
        processes.first_does(functools.partial(_report, each, folder, data, others))


def _lock(folder: pathlib.Path, locks: contextlib.ExitStack) -> None:
    locks.enter_context(workdir_lib.locked(folder))


def _report(
    experiment: experiment_lib.Experiment,
    workdir: pathlib.Path,
    data: run_data.Data,
    others: dict[str, pathlib.Path],
) -> None:
    report = run_report.write(
        workdir,
        data.cases,
        channel=experiment.data.modalities.index(
            figures.shown_sequence(experiment.modalities, experiment.task)
        ),
        head=experiment.head,
        cavity=experiment.data.resection_cavity,
        others=others,
        synthetic=not experiment.data.data_dir,
        facts=_facts(experiment, data, workdir),
    )
    shown = {**others, experiment.role: workdir}
    _LOG.info(run_report.region_table({k: score_files.summary_of(v) for k, v in shown.items()}))
    _LOG.info(f"Report: {report}")


def train_and_evaluate(
    runs: training.Runs,
    data: run_data.Data,
    teacher: trained.Run | None,
    origin: trained.Run | None = None,
) -> list[trained.Run]:
    """Trains networks to their budget (or resumes them) and scores their best checkpoints on test.

    Returns:
        The runs, with their best checkpoints.
    """
    reached = training.train(runs, data, teacher, origin)
    return [
        _evaluated(folder, progress, data, teacher)
        for folder, progress in zip(runs, reached, strict=True)
    ]


def _evaluated(
    folder: pathlib.Path,
    reached: saved_checkpoints.Progress,
    data: run_data.Data,
    teacher: trained.Run | None,
) -> trained.Run:
    best = processes.together(lambda: trained.load_run(folder))
    _check_same(best)
    if best.uncalibrated:
        best = _calibrated(best, data)
    if best.undecided:
        best = _decided(best, data)
    about = {"steps": reached.step, "train_seconds": round(reached.seconds, 1)}
    if teacher:
        about["teacher"] = {"path": os.fspath(teacher.folder), "hash": teacher.params_hash}
    elif data.maps:
        about["teacher"] = {"path": os.fspath(data.maps.folder), "hash": data.maps.hash}
    evaluate(best, folder, data, about)
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


def _check_same(run: trained.Run) -> None:
    """Raises UserError if the processes have not read the same parameters."""
    views = processes.gather([run.step, run.params_hash])
    if any(view != views[0] for view in views):
        raise UserError(
            f"{run.folder}: the processes do not read the same parameters ({views}). Give a "
            "folder on storage that all of them share."
        )


def teacher_evaluation(
    teacher: trained.Run, workdir: pathlib.Path, data: run_data.Data
) -> pathlib.Path:
    """Returns the folder with the teacher's scores on this run's test cases.

    It is the teacher's own folder where that was evaluated on the same cases (always so for a
    teacher that this run trained), else `teacher_evaluation/`.
    """
    key = _evaluation_key(teacher, data)
    if processes.first_does(lambda: _is_scored(teacher.folder, key)):
        return teacher.folder
    folder = workdir / _TEACHER_SCORES
    processes.first_does(lambda: _copy_log(teacher.folder, folder))
    evaluate(teacher, folder, data, {"steps": teacher.step, "train_seconds": 0.0})
    return folder


def _copy_teacher_scores(source: pathlib.Path, target: pathlib.Path) -> None:
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


def evaluate(
    run: trained.Run, folder: pathlib.Path, data: run_data.Data, about: typed.Json
) -> None:
    """Scores a run on the test cases, unless `folder` holds just that already."""
    key = _evaluation_key(run, data)
    if processes.first_does(lambda: _is_scored(folder, key) and score_files.is_complete(folder)):
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


def _facts(
    experiment: experiment_lib.Experiment, data: run_data.Data, workdir: pathlib.Path
) -> list[tuple[str, str]]:
    skipped = skipping.left_out(workdir)
    training_cases = run_data.training_cases(experiment, data)
    sizes = list(map(len, (training_cases, data.split.validation, data.split.test)))
    unlabelled = len(run_data.unlabelled_cases(experiment, data))
    return [
        ("Role", experiment.role),
        ("Config", f"configs/{experiment.role}.py:{experiment.preset}"),
        ("Cases", experiment.data.data_dir or "synthetic cohort brats_phantom"),
        ("Training / validation / test cases", " / ".join(map(str, sizes))),
        *([("Training cases without a reference", str(unlabelled))] if unlabelled else []),
        *([("Training cases skipped as unreadable", ", ".join(skipped))] if skipped else []),
        ("Working voxel size", experiment_lib.spacing_text(experiment.data.spacing)),
        ("Seed", str(experiment.seed)),
    ]
