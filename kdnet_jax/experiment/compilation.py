"""The train step of an experiment, compiled for the run's own shapes before the first step."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from kdnet_jax.augment import augment, masking
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import memory
from kdnet_jax.data.loading import placement
from kdnet_jax.losses import distillation, features, objective
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import trained
from kdnet_jax.training import flops, optimizers, steps

# Of each experiment: (states [donated], teacher's parameters, batch, root) to (states, metrics).
Step = Callable[..., tuple[tuple[steps.TrainState, ...], tuple[steps.Metrics, ...]]]


def optimizer(experiment: experiment_lib.Experiment, cases: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run on `cases` training cases."""
    per_epoch = cases // experiment.loader.batch
    return optimizers.make_optimizer(experiment.optimizer, experiment.train.steps, per_epoch)


def compile_step(
    experiments: Sequence[experiment_lib.Experiment],
    mesh: Mesh,
    cases: int,
    teacher: model_lib.Model | None,
    unlabelled: bool = False,
) -> tuple[Step, str]:
    """Compiles the step, and checks that it fits into the memory of each device.

    Args:
        experiments: the run, or students of one teacher that differ in their channels alone.
        mesh: the devices.
        cases: training cases.
        teacher: a student's teacher; `None` where it is given by its maps.
        unlabelled: batches hold samples without a reference.

    Returns:
        The step (`steps.joint_step`), and a sentence on its memory.

    Raises:
        UserError: it needs more memory than is free.
    """
    experiment = experiments[0]
    if teacher:
        sharding.check_depth(
            mesh.shape[sharding.SPACE],
            experiment.loader.patch,
            teacher.network.divisor[0],
            "loader.patch",
        )
    compiled = lower_step(experiments, mesh, cases, teacher, unlabelled).compile()
    memory.return_freed()
    found = placement.free_memory(mesh)
    # Devices of the CPU backend share the host's memory.
    copies, free = (
        (len(mesh.local_devices), found.host) if found.device is None else (1, found.device)
    )
    sentence = memory.check(copies * memory.step_bytes(compiled), free, _device_name())
    return compiled, f"{unet.describe(experiment.network)} {sentence}"


def lower_step(
    experiments: Sequence[experiment_lib.Experiment],
    mesh: Mesh,
    cases: int,
    teacher: model_lib.Model | None,
    unlabelled: bool = False,
) -> jax.stages.Lowered:
    """Lowers the step for the devices of a mesh, which need not be at hand; see `compile_step`."""
    step, arguments = _step(experiments, mesh, cases, teacher, unlabelled)
    return step.lower(*arguments)


def count_flops(
    experiments: Sequence[experiment_lib.Experiment], mesh: Mesh, teacher: model_lib.Model | None
) -> int:
    """Returns the floating-point operations of a step (`flops.count`), over all devices."""
    experiments = [
        dataclasses.replace(each, network=networks.native(each.network)) for each in experiments
    ]
    if teacher is not None:
        teacher = dataclasses.replace(teacher, network=networks.native(teacher.network))
    step, arguments = _step(experiments, mesh, 1, teacher)
    return flops.count(step, *arguments)


def _step(
    experiments: Sequence[experiment_lib.Experiment],
    mesh: Mesh,
    cases: int,
    teacher: model_lib.Model | None,
    unlabelled: bool = False,
) -> tuple[jax.stages.Wrapped, tuple[PyTree, ...]]:
    """Returns the jitted step, and the shapes that the run calls it with."""
    # What they have in common is read of the first.
    experiment = experiments[0]
    students = [model_lib.of_experiment(each) for each in experiments]
    modalities, patch = experiment.data.modalities, experiment.loader.patch
    update = optimizer(experiment, cases)
    states = jax.eval_shape(
        lambda *params: tuple(
            steps.init_state(
                with_projector(each, experiment, teacher),
                update,
                averaged=experiment.train.average > 0,
            )
            for each in params
        ),
        *map(trained.expected_params, students),
    )
    taught_by = None
    if experiment.teacher and experiment.teacher.maps:
        taught_by = steps.CachedTeacher(experiment.head)
    elif teacher:
        # It sees its sequences at their positions in this run's stack.
        taught_by = trained.as_network(teacher, modalities)
    step = steps.jit_step(
        mesh,
        student=tuple(trained.as_network(each, modalities) for each in students),
        teacher=taught_by,
        loss=objective.of_options(
            experiment.head, experiment.loss, experiment.distillation, unlabelled=unlabelled
        ),
        optimizer=update,
        plan=steps.Plan(
            experiment.augment,
            patch,
            experiment.train.accumulate,
            experiment.modality_dropout,
            experiment.train.nonfinite == "skip",
            experiment.train.average,
            mixup=experiment.distillation.mixup if experiment.distillation else 0.0,
            incomplete=experiment.data.incomplete,
            hidden=masked_cubes(experiment),
        ),
        state_sharding=sharding.state_sharding(mesh, states, experiment.mesh.state),
    )
    teacher_params = trained.expected_params(teacher) if teacher else ()
    crop = augment.source_patch(patch, experiment.augment)
    maps = taught_by.maps if isinstance(taught_by, steps.CachedTeacher) else 0
    batch = steps.batch_shapes(experiment.loader.batch, crop, len(modalities), maps)
    root = jax.eval_shape(lambda: jax.random.key(0))
    return step, (states, teacher_params, batch, root)


def masked_cubes(experiment: experiment_lib.Experiment) -> masking.Cubes | None:
    """Returns what a network that reconstructs does not see; `None` for all others."""
    loss = experiment.loss
    return masking.Cubes(loss.mask_share, loss.mask_edge) if loss.reconstructs else None


def with_projector(
    params: PyTree, experiment: experiment_lib.Experiment, teacher: model_lib.Model | None
) -> PyTree:
    """Returns a network's parameters, with a projector (`steps.PROJECTOR`) where terms need one.

    It begins as the identity, cut or filled with zeros: of a student to the width of the teacher's
    bottleneck, of a network that reconstructs to its sequences.
    """
    kd = experiment.distillation
    if experiment.loss.reconstructs:
        sequences = len(experiment.modalities)
        shapes = networks.feature_shapes(experiment.network, sequences, experiment.loader.patch)
        kernel = jnp.eye(shapes[features.LAST][-1], sequences)
        return {**params, steps.PROJECTOR: {"kernel": kernel}}
    if kd is None or teacher is None or not any(map(kd.weight, distillation.PROJECTED)):
        return params
    student, patch = model_lib.of_experiment(experiment), experiment.loader.patch
    ours, theirs = (
        networks.feature_shapes(each.network, len(each.modalities), patch)[features.BOTTLENECK][-1]
        for each in (student, teacher)
    )
    return {**params, steps.PROJECTOR: {"kernel": jnp.eye(ours, theirs)}}


@contextlib.contextmanager
def explain_if_full() -> Iterator[None]:
    """Turns the error of a full device into a UserError: of the compiler, the data or a step."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if memory.is_exhausted(error):
            raise memory.exhausted(_device_name()) from error
        raise


def _device_name() -> str:
    device = jax.local_devices()[0]
    return "the CPU" if device.platform == "cpu" else f"each {device.device_kind}"
