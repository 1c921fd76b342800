"""Training of a run, or of several students together: from its data to its last checkpoint."""

import contextlib
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from kdnet_jax.augment import masking
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import checksums, provenance, typed
from kdnet_jax.data.loading import loader
from kdnet_jax.data.scans import familiarity
from kdnet_jax.evaluation import decisions, evaluation, reconstruction
from kdnet_jax.experiment import compilation, run_data
from kdnet_jax.models import networks
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.prediction import predictors
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import trained, transfer
from kdnet_jax.training import (
    checkpoint,
    loop,
    profiling,
    progress,
    saved_checkpoints,
    steps,
)

_LOG = logging.getLogger(__name__)

# By their folders; several differ in their channels alone.
Runs = Mapping[pathlib.Path, experiment_lib.Experiment]


def train(
    runs: Runs,
    data: run_data.Data,
    teacher: trained.Run | None,
    origin: trained.Run | None = None,
) -> list[saved_checkpoints.Progress]:
    """Trains networks, several in one step, to their budget; or resumes them.

    Args:
        runs: one of any role, or students of one teacher.
        data: the cases of all.
        teacher: of students; `None` without one, or where it is given by its maps.
        origin: the network that new ones start from (`train.start`), if any.

    Returns:
        Where each run has ended.

    Raises:
        UserError: a run cannot be resumed, the data cannot be read, or a loss is not finite.
        stopping.Stopped: after a signal, when everything is saved.
    """
    # What students have in common is read of the first.
    folders, experiments = list(runs), list(runs.values())
    first = experiments[0]
    mesh = sharding.make_mesh(first.mesh.data, first.mesh.space)
    init_key, root = jax.random.split(jax.random.key(first.seed))
    taught_by = teacher.model if teacher else None
    cases = len(run_data.training_cases(first, data))
    mixed = bool(run_data.unlabelled_cases(first, data))
    random_root = {"random root": checksums.content_hash(jax.random.key_data(root))}

    def compile_step(chosen: Sequence[int]) -> compilation.Step:
        asked = [experiments[place] for place in chosen]
        step_fn, sentence = compilation.compile_step(asked, mesh, cases, taught_by, mixed)
        _LOG.info(sentence)
        return step_fn

    with contextlib.ExitStack() as stack:
        # -- Where each of them is ---------------------------------------------------------------
        kept = [stack.enter_context(checkpoint.RunCheckpoints(folder)) for folder in folders]
        given = teacher or data.maps
        restored = [
            loop.resume(
                checkpoints,
                _initial_state(experiment, teacher, origin, init_key, cases, mesh),
                _identity(experiment, data, teacher)
                | random_root
                | {"start": origin.params_hash if origin else ""},
                os.fspath(given.folder) if given else "",
            )
            for checkpoints, experiment in zip(kept, experiments, strict=True)
        ]
        reached = [start for _, start in restored]
        chosen, until = loop.next_group(reached, first.train)

        # -- Step, patches and logs; nothing is written before the step is known to fit ----------
        step_fn = compile_step(chosen)
        teacher_params = sharding.replicate(teacher.params, mesh) if teacher else ()
        profiler = None
        if first.profile and processes.is_first():
            flops = compilation.count_flops([experiments[i] for i in chosen], mesh, taught_by)
            profiler = profiling.Profiler(folders[0], first.profile, flops)
        batches = stack.enter_context(run_data.open_batches(first, data, mesh, *folders))
        beginning = batches.get_state()
        for folder, start in zip(folders, reached, strict=True):
            if start.step:
                _LOG.info(f"{folder}: resuming from step {start.step} of {first.train.steps}")
                batches.set_state(start.loader)
        processes.first_does(lambda: _note_start(runs, data, batches, reached))
        learners = [
            loop.Learner(
                state=state,
                progress=start,
                validate=_validator(experiment, data),
                checkpoints=checkpoints,
                log=stack.enter_context(_open_log(folder, start)),
                summarise=_summariser(experiment),
                metric="explained" if experiment.loss.reconstructs else "dice",
                name=",".join(experiment.modalities) if len(runs) > 1 else "",
            )
            for (state, start), folder, experiment, checkpoints in zip(
                restored, folders, experiments, kept, strict=True
            )
        ]

        # -- Usually once; more often where students are at different steps ----------------------
        while True:
            position = reached[chosen[0]].loader or beginning
            if batches.get_state() != position:
                batches.set_state(position)
            loop.train(
                step_fn,
                [learners[place] for place in chosen],
                batches,
                teacher_params=teacher_params,
                root=root,
                mesh=mesh,
                options=first.train,
                description=first.role if len(chosen) == 1 else f"{len(chosen)} students",
                profiler=profiler,
                until=until,
            )
            profiler = None
            reached = [each.progress for each in learners]
            if all(loop.is_finished(each, first.train) for each in reached):
                return reached
            chosen, until = loop.next_group(reached, first.train)
            step_fn = compile_step(chosen)


def _identity(
    experiment: experiment_lib.Experiment, data: run_data.Data, teacher: trained.Run | None
) -> dict[str, str]:
    return {
        "config": experiment.hash,
        "split": data.split.hash,
        "data": data.cases.fingerprint,
        "teacher": teacher.params_hash if teacher else data.maps.hash if data.maps else "",
    }


def _initial_state(
    experiment: experiment_lib.Experiment,
    teacher: trained.Run | None,
    start: trained.Run | None,
    key: PRNGKeyArray,
    cases: int,
    mesh: Mesh,
) -> steps.TrainState:
    """Returns the state before the first step, on the mesh."""
    params = networks.init_params(experiment.network, len(experiment.modalities), key)
    if start:
        params = transfer.from_start(params, model_lib.of_experiment(experiment), start)
    if teacher and experiment.distillation and experiment.distillation.init_from_teacher:
        params = transfer.from_teacher(params, model_lib.of_experiment(experiment), teacher)
    params = compilation.with_projector(params, experiment, teacher.model if teacher else None)
    optimizer = compilation.optimizer(experiment, cases)
    state = steps.init_state(params, optimizer, averaged=experiment.train.average > 0)
    return jax.device_put(state, sharding.state_sharding(mesh, state, experiment.mesh.state))


def _validator(experiment: experiment_lib.Experiment, data: run_data.Data) -> loop.Validate:
    """Returns what scores parameters on this process's share of the validation cases."""
    if cubes := compilation.masked_cubes(experiment):
        return _reconstruction_validator(experiment, data, cubes)
    predictor = predictors.predictor([model_lib.of_experiment(experiment)])
    own = processes.share(list(enumerate(data.indices("validation"))))

    def validate(params: PyTree) -> list[tuple[int, typed.JsonValue]]:
        params, cavity = sharding.to_own_devices(params), experiment.data.resection_cavity
        cases = ((place, data.cases[index]) for place, index in own)
        if experiment.inference.chooses_thresholds:
            return [*decisions.tabulate_cases(predictor, params, cases, cavity)]
        return [*evaluation.dice_on_working_grid(predictor, params, cases, cavity)]

    return validate


def _reconstruction_validator(
    experiment: experiment_lib.Experiment, data: run_data.Data, cubes: masking.Cubes
) -> loop.Validate:
    channels = dict(zip(experiment.modalities, experiment.channels, strict=True))
    network = networks.function(experiment.network)
    sums = reconstruction.summer(network, channels, experiment.loader.patch, cubes)
    own = processes.share(list(enumerate(data.indices("validation"))))

    def validate(params: PyTree) -> list[tuple[int, typed.JsonValue]]:
        cases = ((place, data.cases[index]) for place, index in own)
        return [*sums(sharding.to_own_devices(params), cases)]

    return validate


def _summariser(experiment: experiment_lib.Experiment) -> loop.Summarise:
    """Returns what gives the Dice of each region over the validation cases, by its best decision.

    By the fixed one, a network of low probabilities would score 0 at every validation, and its
    best checkpoint would be any.
    """
    if experiment.loss.reconstructs:
        return reconstruction.explained
    if not experiment.inference.chooses_thresholds:
        return loop.mean_dice

    def summarise(tables: list[typed.JsonValue]) -> dict[str, float]:
        head = experiment.head
        return decisions.mean_dice(tables, decisions.choose(tables, head), head)

    return summarise


def _note_start(
    runs: Runs,
    data: run_data.Data,
    batches: loader.PatchIterator,
    reached: Sequence[saved_checkpoints.Progress],
) -> None:
    first = next(iter(runs.values()))
    for folder, start in zip(runs, reached, strict=True):
        if start.step != first.train.steps:
            provenance.record_start(folder, start.step)
    if new := [folder for folder in runs if familiarity.read(folder) is None]:
        training = run_data.training_cases(first, data)
        training += run_data.unlabelled_cases(first, data)
        sample = training[:: math.ceil(len(training) / familiarity.SAMPLE)]
        usual = familiarity.measure(batches.cases(sample), task=data.cases.task)
        for folder in new:
            familiarity.write(folder, usual)


def _open_log(folder: pathlib.Path, start: saved_checkpoints.Progress) -> progress.Log:
    if not processes.is_first():
        return progress.Unwritten()
    return progress.MetricsLog(folder, resume_step=start.step, keep=start.rows)
