"""One run from its experiment to its report: data, split, teacher, training, evaluation, report."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import pathlib
import shutil

import jax
from jaxtyping import PyTree

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import checksums, files, provenance, typed
from kdnet_jax.data.loading import loader
from kdnet_jax.data.records import skipping
from kdnet_jax.data.scans import familiarity
from kdnet_jax.drawing import figures
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import decisions, evaluation
from kdnet_jax.experiment import compilation, given_teachers, run_data
from kdnet_jax.metrics import surface
from kdnet_jax.models import layers, networks
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.prediction import ensembles, predictors
from kdnet_jax.reports import run_report
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import teachers, thresholds, transfer
from kdnet_jax.runs import trained as runs
from kdnet_jax.runs import workdir as workdir_lib
from kdnet_jax.training import (
    checkpoint,
    loop,
    profiling,
    progress,
    saved_checkpoints,
    steps,
)

_LOG = logging.getLogger(__name__)


def run(experiment: experiment_lib.Experiment, workdir: pathlib.Path) -> None:
    """Trains, evaluates and reports a run; a stopped run resumes, a finished one reports.

    Raises:
        UserError: for everything that the user can fix, as early as it can be known.
        stopping.Stopped: after SIGINT or SIGTERM, when everything is saved.
    """
    try:
        with compilation.explain_if_full(), contextlib.ExitStack() as locks:
            _run(experiment, workdir, locks)
    except OSError as error:
        raise files.disk_error(error, workdir) from error


def _run(
    experiment: experiment_lib.Experiment, workdir: pathlib.Path, locks: contextlib.ExitStack
) -> None:
    # -- Everything that can be wrong without reading data -----------------------------------
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
    own = {workdir: experiment}
    asked = experiment.teacher
    given = to_be = None
    if asked and asked.to_train:
        own[workdir / teachers.OWN] = asked.to_train
        to_be = model_lib.of_experiment(asked.to_train)
        teachers.check_settings(workdir / teachers.OWN, to_be, experiment)
    elif asked and not asked.maps:
        # Read before the data are built: what is wrong with it is reported early.
        given = processes.together(lambda: given_teachers.load(asked, workdir))
        _check_same(given.run)
        teachers.check_settings(given.run.folder, given.run.model, experiment)
        for each in given.members or (given.run,):
            teachers.check_incomplete(each.folder, each.model, experiment)
        predictors.prediction_mesh(given.run.model)
    for folder, each in own.items():
        workdir_lib.check(folder, each)
        processes.first_does(functools.partial(_lock, folder, locks))

    # -- Data and split ----------------------------------------------------------------------
    data = run_data.open_data(experiment)
    own = {folder: each.of_task(data.cases.task) for folder, each in own.items()}
    experiment = own[workdir]
    for each in own.values():
        run_data.check_sequences(each, data)
    for folder, each in own.items():
        processes.first_does(functools.partial(workdir_lib.claim, folder, each, data.split))
        processes.together(functools.partial(workdir_lib.check_seen, folder))
    training = len(run_data.training_cases(experiment, data))
    unlabelled = len(run_data.unlabelled_cases(experiment, data))
    more = f" and {unlabelled} without a reference" if unlabelled else ""
    _LOG.info(
        f"{workdir}: {experiment.role} on {', '.join(experiment.modalities)}; "
        f"{training} training{more}, {len(data.split.validation)} validation and "
        f"{len(data.split.test)} test cases"
    )

    # -- The teacher first -------------------------------------------------------------------
    teacher = None
    if given:
        teacher = given_teachers.keep(given, workdir)
        teachers.check_statistics(teacher.folder, teacher.model.task, data.cases.task)
        patient = {each.case_id: each.patient_id for each in data.cases.summaries}
        for each in given.members or (teacher,):
            teachers.check_split(each.folder, patient, data.split.test)
    elif to_be:
        folder = workdir / teachers.OWN
        _LOG.info(f"No teacher is given (--config.teacher.checkpoint): {folder} is trained")
        # Check that the student's step fits in memory before spending hours on the teacher.
        compilation.compile_step(experiment, mesh, training, to_be, bool(unlabelled))
        teacher = train_and_evaluate(own[folder], folder, data, None)

    elif data.maps:
        _LOG.info(
            f"The teacher is {len(data.maps.files)} maps of {data.maps.folder}. Nothing there "
            "says what made them: if it was trained or selected on this run's test cases, the "
            "student's scores may be too good."
        )

    # -- The run itself ----------------------------------------------------------------------
    train_and_evaluate(experiment, workdir, data, teacher)
    others = {"teacher": teacher_evaluation(teacher, workdir, data)} if teacher else {}
    processes.first_does(lambda: _report(experiment, workdir, data, others))


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
    _LOG.info(run_report.region_table({k: evaluation.summary_of(v) for k, v in shown.items()}))
    _LOG.info(f"Report: {report}")


def train_and_evaluate(
    experiment: experiment_lib.Experiment,
    folder: pathlib.Path,
    data: run_data.Data,
    teacher: runs.Run | None,
) -> runs.Run:
    """Trains one network to its budget (or resumes it) and scores its best checkpoint on test.

    Returns:
        The run, with its best checkpoint.
    """
    identity = {
        "config": experiment.hash,
        "split": data.split.hash,
        "data": data.cases.fingerprint,
        "teacher": teacher.params_hash if teacher else data.maps.hash if data.maps else "",
    }
    trained = _train(experiment, folder, data, teacher, identity)
    best = processes.together(lambda: runs.load_run(folder))
    _check_same(best)
    if best.undecided:
        best = _decided(best, data)
    about = {"steps": trained.step, "train_seconds": round(trained.seconds, 1)}
    if teacher:
        about["teacher"] = {"path": os.fspath(teacher.folder), "hash": teacher.params_hash}
    elif data.maps:
        about["teacher"] = {"path": os.fspath(data.maps.folder), "hash": data.maps.hash}
    evaluate(best, folder, data, about)
    return best


def _decided(run: runs.Run, data: run_data.Data) -> runs.Run:
    """Chooses the run's thresholds on the validation cases, and keeps them in its folder."""
    tables = processes.together(lambda: _tables(run, data))
    every = sorted(itertools.chain.from_iterable(processes.gather(tables)))
    tables, head = [table for _, table in every], run.model.head
    chosen = decisions.choose(tables, head)
    model = dataclasses.replace(run.model, thresholds=chosen)
    dice = decisions.mean_dice(tables, chosen, head)
    processes.first_does(lambda: thresholds.write(run.folder, model, run.params_hash, dice))
    _LOG.info(f"{run.folder}: decision, chosen on validation cases: {model.decision}")
    return dataclasses.replace(run, model=model, undecided=False)


def _tables(run: runs.Run, data: run_data.Data) -> list[tuple[int, decisions.Table]]:
    own = processes.share(list(enumerate(data.indices("validation"))))
    return decisions.tabulate_cases(
        predictors.predictor([run.model]),
        run.params,
        ((place, data.cases[index]) for place, index in own),
        run.model.resection_cavity,
    )


def _check_same(run: runs.Run) -> None:
    """Raises UserError if the processes have not read the same parameters."""
    views = processes.gather([run.step, run.params_hash])
    if any(view != views[0] for view in views):
        raise UserError(
            f"{run.folder}: the processes do not read the same parameters ({views}). Give a "
            "folder on storage that all of them share."
        )


def teacher_evaluation(
    teacher: runs.Run, workdir: pathlib.Path, data: run_data.Data
) -> pathlib.Path:
    """Returns the folder with the teacher's scores on this run's test cases.

    It is the teacher's own folder where that was evaluated on the same cases (always so for a
    teacher that this run trained), else `teacher_evaluation/`.
    """
    key = _evaluation_key(teacher, data)
    if processes.first_does(lambda: _is_scored(teacher.folder, key)):
        return teacher.folder
    folder = workdir / "teacher_evaluation"
    processes.first_does(lambda: _copy_log(teacher.folder, folder))
    evaluate(teacher, folder, data, {"steps": teacher.step, "train_seconds": 0.0})
    return folder


def _is_scored(folder: pathlib.Path, key: dict[str, str | int]) -> bool:
    former = evaluation.read_summary(folder)
    return bool(former) and key.items() <= former.items()


def _copy_log(source: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    log = source / progress.METRICS_FILE
    if log.is_file():
        shutil.copyfile(log, folder / progress.METRICS_FILE)


def _evaluation_key(run: runs.Run, data: run_data.Data) -> dict[str, str | int]:
    key = {
        "evaluation_version": evaluation.VERSION,
        "params_hash": run.params_hash,
        "split_hash": data.split.hash,
        "data_fingerprint": data.cases.fingerprint,
    }
    # Not of the fixed decision: earlier evaluations stay valid.
    return key | ({"thresholds": run.model.decision} if run.model.thresholds else {})


def evaluate(run: runs.Run, folder: pathlib.Path, data: run_data.Data, about: typed.Json) -> None:
    """Scores a run on the test cases, unless `folder` holds just that already."""
    key = _evaluation_key(run, data)
    if processes.first_does(lambda: _is_scored(folder, key) and evaluation.is_complete(folder)):
        _LOG.info(f"{folder}: already evaluated")
        processes.first_does(lambda: evaluation.remove_unfinished(folder))
        return
    evaluation.evaluate(
        ensembles.of_run(run),
        data.cases,
        data.indices("test"),
        data.indices("validation"),
        cavity=run.model.resection_cavity,
        convention=data.cases.label_convention,
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
        description=f"evaluate {run.model.role}",
    )


def _train(
    experiment: experiment_lib.Experiment,
    folder: pathlib.Path,
    data: run_data.Data,
    teacher: runs.Run | None,
    identity: dict[str, str],
) -> saved_checkpoints.Progress:
    """Builds state, step and loader, and runs the loop."""
    mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.space)
    init_key, root = jax.random.split(jax.random.key(experiment.seed))
    training = run_data.training_cases(experiment, data)
    optimizer = compilation.optimizer(experiment, len(training))
    taught_by = teacher.model if teacher else None
    mixed = bool(run_data.unlabelled_cases(experiment, data))
    step_fn, sentence = compilation.compile_step(experiment, mesh, len(training), taught_by, mixed)
    _LOG.info(sentence)
    network = experiment.network
    params = networks.init_params(network, len(experiment.modalities), init_key)
    if teacher and experiment.distillation and experiment.distillation.init_from_teacher:
        params = transfer.from_teacher(params, model_lib.of_experiment(experiment), teacher)
    params = compilation.with_projector(params, experiment, taught_by)
    state = steps.init_state(params, optimizer, averaged=experiment.train.average > 0)
    state = jax.device_put(state, sharding.state_sharding(mesh, state, experiment.mesh.state))
    profiler = None
    if experiment.profile and processes.is_first():
        flops = compilation.count_flops(experiment, mesh, taught_by)
        profiler = profiling.Profiler(folder, experiment.profile, flops)
    teacher_params = sharding.replicate(teacher.params, mesh) if teacher else ()
    identity = identity | {"random root": checksums.content_hash(jax.random.key_data(root))}
    given = teacher or data.maps
    teacher_path = os.fspath(given.folder) if given else ""
    batches = run_data.open_batches(experiment, data, mesh, folder)
    with checkpoint.RunCheckpoints(folder) as checkpoints, batches:
        state, start = loop.resume(checkpoints, state, batches, identity, teacher_path)
        if start.step:
            _LOG.info(f"{folder}: resuming from step {start.step} of {experiment.train.steps}")
        processes.first_does(lambda: _note_start(experiment, folder, data, batches, start.step))
        with _open_log(folder, start) as log:
            return loop.train(
                step_fn,
                state,
                start,
                batches,
                teacher_params=teacher_params,
                root=root,
                mesh=mesh,
                validate=_validator(experiment, data),
                summarise=_summariser(experiment),
                checkpoints=checkpoints,
                options=experiment.train,
                log=log,
                description=experiment.role,
                profiler=profiler,
            )


def _validator(experiment: experiment_lib.Experiment, data: run_data.Data) -> loop.Validate:
    """Returns what scores parameters on this process's share of the validation cases."""
    predictor = predictors.predictor([model_lib.of_experiment(experiment)])
    own = processes.share(list(enumerate(data.indices("validation"))))

    def validate(params: PyTree) -> list[tuple[int, typed.JsonValue]]:
        params, cavity = sharding.to_own_devices(params), experiment.data.resection_cavity
        cases = ((place, data.cases[index]) for place, index in own)
        if experiment.inference.chooses_thresholds:
            return [*decisions.tabulate_cases(predictor, params, cases, cavity)]
        return [*evaluation.dice_on_working_grid(predictor, params, cases, cavity)]

    return validate


def _summariser(experiment: experiment_lib.Experiment) -> loop.Summarise:
    """Returns what gives the Dice of each region over the validation cases, by its best decision.

    By the fixed one, a network of low probabilities would score 0 at every validation, and its
    best checkpoint would be any.
    """
    if not experiment.inference.chooses_thresholds:
        return loop.mean_dice

    def summarise(tables: list[typed.JsonValue]) -> dict[str, float]:
        head = experiment.head
        return decisions.mean_dice(tables, decisions.choose(tables, head), head)

    return summarise


def _note_start(
    experiment: experiment_lib.Experiment,
    folder: pathlib.Path,
    data: run_data.Data,
    batches: loader.PatchIterator,
    step: int,
) -> None:
    if step != experiment.train.steps:
        provenance.record_start(folder, step)
    if familiarity.read(folder) is None:
        training = run_data.training_cases(experiment, data)
        training += run_data.unlabelled_cases(experiment, data)
        sample = training[:: math.ceil(len(training) / familiarity.SAMPLE)]
        usual = familiarity.measure(batches.cases(sample), task=data.cases.task)
        familiarity.write(folder, usual)


def _open_log(folder: pathlib.Path, start: saved_checkpoints.Progress) -> progress.Log:
    if not processes.is_first():
        return progress.Unwritten()
    return progress.MetricsLog(folder, resume_step=start.step, keep=start.rows)


def _spacing_text(spacing: experiment_lib.Spacing) -> str:
    if isinstance(spacing, tuple):
        return f"{' x '.join(map(str, spacing))} mm"
    return f"{spacing} mm" if spacing else "own"


def _facts(
    experiment: experiment_lib.Experiment, data: run_data.Data, workdir: pathlib.Path
) -> list[tuple[str, str]]:
    skipped = skipping.left_out(workdir)
    training = run_data.training_cases(experiment, data)
    sizes = list(map(len, (training, data.split.validation, data.split.test)))
    unlabelled = len(run_data.unlabelled_cases(experiment, data))
    return [
        ("Role", experiment.role),
        ("Config", f"configs/{experiment.role}.py:{experiment.preset}"),
        ("Cases", experiment.data.data_dir or "synthetic cohort brats_phantom"),
        ("Training / validation / test cases", " / ".join(map(str, sizes))),
        *([("Training cases without a reference", str(unlabelled))] if unlabelled else []),
        *([("Training cases skipped as unreadable", ", ".join(skipped))] if skipped else []),
        ("Working voxel size", _spacing_text(experiment.data.spacing)),
        ("Seed", str(experiment.seed)),
    ]
