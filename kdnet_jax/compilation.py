"""The train step of a config, compiled for the run's own shapes before the first step."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from kdnet_jax import flops, memory, optimizers, runs, settings, sharding, steps
from kdnet_jax import model as model_lib
from kdnet_jax.data import augment, placement
from kdnet_jax.losses import objective
from kdnet_jax.models import networks, unet

Step = Callable[..., tuple[steps.TrainState, steps.Metrics]]


def optimizer(
    config: config_dict.ConfigDict, values: settings.Settings, cases: int
) -> optax.GradientTransformation:
    """Returns the optimizer of a run on `cases` training cases."""
    per_epoch = cases // config.loader.batch
    return optimizers.make_optimizer(values.optimizer, values.train.steps, per_epoch)


def compile_step(
    config: config_dict.ConfigDict,
    values: settings.Settings,
    mesh: Mesh,
    cases: int,
    teacher: model_lib.Model | settings.Settings | None,
) -> tuple[Step, str]:
    """Compiles the step, and checks that it fits into the memory of each device.

    Args:
        config: of the run.
        values: its values.
        mesh: the devices.
        cases: training cases.
        teacher: a student's teacher.

    Returns:
        (state [donated], teacher's parameters, batch, root key) to (state, metrics), and a
        sentence on its memory.

    Raises:
        UserError: it needs more memory than is free.
    """
    if teacher:
        sharding.check_depth(
            mesh.shape[sharding.SPACE], values.patch, teacher.network.divisor[0], "loader.patch"
        )
    step, arguments = _step(config, values, mesh, cases, teacher)
    compiled = step.lower(*arguments).compile()
    memory.return_freed()
    found = placement.free_memory(mesh)
    # Devices of the CPU backend share the host's memory.
    copies, free = (
        (len(mesh.local_devices), found.host) if found.device is None else (1, found.device)
    )
    sentence = memory.check(copies * memory.step_bytes(compiled), free, _device_name())
    return compiled, f"{unet.describe(values.network)} {sentence}"


def count_flops(
    config: config_dict.ConfigDict,
    values: settings.Settings,
    mesh: Mesh,
    teacher: model_lib.Model | settings.Settings | None,
) -> int:
    """Returns the floating-point operations of a step (`flops.count`), over all devices."""
    values = dataclasses.replace(values, network=networks.native(values.network))
    if teacher is not None:
        teacher = dataclasses.replace(teacher, network=networks.native(teacher.network))
    step, arguments = _step(config, values, mesh, 1, teacher)
    return flops.count(step, *arguments)


def _step(
    config: config_dict.ConfigDict,
    values: settings.Settings,
    mesh: Mesh,
    cases: int,
    teacher: model_lib.Model | settings.Settings | None,
) -> tuple[Any, tuple[Any, ...]]:
    """Returns the jitted step, and the shapes that the run calls it with."""
    modalities = values.data_modalities
    update = optimizer(config, values, cases)
    state = jax.eval_shape(lambda: steps.init_state(_new_params(values), update))
    step = steps.jit_step(
        mesh,
        student=runs.as_network(values, modalities),
        # It sees its sequences at their positions in this run's stack.
        teacher=runs.as_network(teacher, modalities) if teacher else None,
        loss=objective.of_options(values.head, values.loss, values.distillation),
        optimizer=update,
        plan=steps.Plan(
            values.augment,
            values.patch,
            values.train.accumulate,
            values.train.nonfinite == "skip",
        ),
        state_sharding=sharding.state_sharding(mesh, state, values.state),
    )
    teacher_params = runs.expected_params(teacher) if teacher else ()
    crop = augment.source_patch(values.patch, values.augment)
    batch = steps.batch_shapes(config.loader.batch, crop, len(modalities))
    root = jax.eval_shape(lambda: jax.random.key(0))
    return step, (state, teacher_params, batch, root)


def _new_params(values: settings.Settings) -> Any:
    return networks.init_params(values.network, len(values.modalities), jax.random.key(0))


@contextlib.contextmanager
def told_if_full() -> Iterator[None]:
    """Says in plain words that a device is full, whatever found it so: compiler, data or step."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if memory.is_exhausted(error):
            raise memory.exhausted(_device_name()) from error
        raise


def _device_name() -> str:
    device = jax.local_devices()[0]
    return "the CPU" if device.platform == "cpu" else f"each {device.device_kind}"
