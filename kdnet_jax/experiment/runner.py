"""One run from its experiment to its report: data, split, teacher, training, evaluation, report."""

import contextlib
import functools
import logging
import pathlib

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import files
from kdnet_jax.data.records import skipping
from kdnet_jax.drawing import figures
from kdnet_jax.evaluation import score_files
from kdnet_jax.experiment import (
    compilation,
    given_teachers,
    run_checks,
    run_data,
    run_evaluation,
    training,
)
from kdnet_jax.models import networks
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.prediction import predictors
from kdnet_jax.reports import run_report
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import teachers, trained, transfer
from kdnet_jax.runs import workdir as workdir_lib

_LOG = logging.getLogger(__name__)


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
        trained.check_same(given.run)
        for each in runs.values():
            teachers.check_settings(given.run.folder, given.run.model, each)
            for member in given.members or (given.run,):
                teachers.check_incomplete(member.folder, member.model, each)
        predictors.prediction_mesh(given.run.model)
    start = processes.together(lambda: transfer.load_start(list(runs.values())))
    if start:
        trained.check_same(start)
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
        run_checks.check_sequences(each, data)
        run_checks.check_taught(each, data)
        run_checks.check_unlabelled(each, data)
    run_checks.check_same_cases(list(runs.values()), data)
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
            copy = functools.partial(run_evaluation.copy_teacher_scores, first, folder)
            processes.first_does(copy)
        others = {}
        if teacher:
            others["teacher"] = run_evaluation.of_teacher(teacher, folder, data)
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
        run_evaluation.finish(folder, progress, data, teacher)
        for folder, progress in zip(runs, reached, strict=True)
    ]


def _facts(
    experiment: experiment_lib.Experiment, data: run_data.Data, workdir: pathlib.Path
) -> list[tuple[str, str]]:
    skipped = skipping.left_out(workdir)
    training_cases = run_data.training_cases(experiment, data)
    sizes = list(map(len, (training_cases, data.split.validation, data.split.test)))
    unlabelled = len(run_data.unlabelled_cases(experiment, data))
    return [
        ("Role", experiment.role),
        ("Preset", f"{experiment.preset} (every key: config.json)"),
        ("Cases", experiment.data.data_dir or "synthetic cohort brats_phantom"),
        ("Training / validation / test cases", " / ".join(map(str, sizes))),
        *([("Training cases without a reference", str(unlabelled))] if unlabelled else []),
        *([("Training cases skipped as unreadable", ", ".join(skipped))] if skipped else []),
        ("Working voxel size", experiment_lib.spacing_text(experiment.data.spacing)),
        ("Seed", str(experiment.seed)),
    ]
