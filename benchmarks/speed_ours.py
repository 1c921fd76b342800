"""Our side of `benchmarks.speed`: what its workers run. Each function returns a `measuring.Job`."""

import functools
import math
import os
import pathlib
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import made_data
from benchmarks.measuring import Job, forget_peak, memory_gib
from configs import common
from kdnet_jax import cli
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.core import memory
from kdnet_jax.experiment import compilation
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import heads, layers, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import inference
from kdnet_jax.runs import model
from kdnet_jax.training import optimizers, steps

_STUDENT_CHANNELS = (1,)
_ALL_CHANNELS = tuple(range(made_data.CHANNELS))


def _network(
    widths: Sequence[int], channels: tuple[int, ...], bfloat16: bool = False
) -> steps.Network:
    config = unet.UNetConfig(widths=tuple(widths), bfloat16=bfloat16)
    return steps.Network(unet.UNet(config).apply, heads.Head(task_lib.GLIOMA), channels)


def _params(widths: Sequence[int], channels: int, seed: int = 0) -> Any:
    config = unet.UNetConfig(widths=tuple(widths))
    return networks.init_params(config, channels, jax.random.key(seed))


def _optimizer() -> Any:
    return optimizers.make_optimizer(optimizers.OptimizerOptions(), 1000, 100)


def _step(
    widths: Sequence[int],
    *students: tuple[int, ...],
    teacher: steps.Network | steps.CachedTeacher | None = None,
    kd: distillation.DistillationOptions | None = None,
) -> Callable[..., Any]:
    """Returns the step of networks that see these channels; its states are a tuple."""
    return steps.jit_step(
        sharding.make_mesh(),
        student=tuple(_network(widths, channels) for channels in students),
        teacher=teacher,
        loss=objective.of_options(heads.Head(task_lib.GLIOMA), kd=kd),
        optimizer=_optimizer(),
        plan=steps.Plan(augment.choose("none")),
    )


def _on_mesh(batch: int, edge: int) -> steps.Batch:
    image, label = made_data.batch(batch, edge)
    return sharding.to_global({"image": image, "label": label}, sharding.make_mesh())


def _stepper(
    step: Callable[..., Any], widths: Sequence[int], channels: int, *inputs: Any, students: int = 1
) -> tuple[Callable[[], None], dict[str, float]]:
    """Compiles a step and returns a function that advances its own state, and what it takes."""
    whole = sharding.replicated(sharding.make_mesh())
    states = tuple(
        jax.device_put(steps.init_state(_params(widths, channels, seed), _optimizer()), whole)
        for seed in range(students)
    )
    root = jax.device_put(jax.random.key(1), whole)
    start = time.perf_counter()
    compiled = step.lower(states, *inputs, root).compile()
    memory.return_freed()  # as training does
    about = {
        "compile_seconds": time.perf_counter() - start,
        "compiled_gib": memory.step_bytes(compiled) / 2**30,
    }

    def run() -> None:
        nonlocal states
        states, metrics = compiled(states, *inputs, root)
        jax.block_until_ready((states, metrics))

    return run, about


def _training(widths: Sequence[int], edge: int, batch: int, channels: tuple[int, ...]) -> Any:
    step = _step(widths, channels)
    return _stepper(step, widths, len(channels), (), _on_mesh(batch, edge))


def training_step(widths: Sequence[int], edge: int, batch: int) -> Job:
    """The plain step of a network that sees every channel."""
    return Job(*_training(widths, edge, batch, _ALL_CHANNELS))


def student_plain_step(widths: Sequence[int], edge: int, batch: int) -> Job:
    """The plain step of a network that sees one channel."""
    return Job(*_training(widths, edge, batch, _STUDENT_CHANNELS))


def distillation_step(widths: Sequence[int], edge: int, batch: int) -> Job:
    """The step of that network with a teacher of equal widths on every channel."""
    return _distillation(widths, edge, batch, _STUDENT_CHANNELS)


def joint_step(widths: Sequence[int], edge: int, batch: int) -> Job:
    """The step of a student on each channel, with that teacher."""
    return _distillation(widths, edge, batch, *((channel,) for channel in _ALL_CHANNELS))


def _distillation(widths: Sequence[int], edge: int, batch: int, *students: tuple[int, ...]) -> Job:
    taught_by = _network(widths, _ALL_CHANNELS)
    step = _step(widths, *students, teacher=taught_by, kd=distillation.DistillationOptions())
    whole = sharding.replicated(sharding.make_mesh())
    teacher = jax.device_put(_params(widths, len(_ALL_CHANNELS), 5), whole)
    inputs = (teacher, _on_mesh(batch, edge))
    return Job(*_stepper(step, widths, 1, *inputs, students=len(students)))


def cached_step(widths: Sequence[int], edge: int, batch: int) -> Job:
    """The step of a student on one channel whose teacher is given by its probabilities."""
    # Maps have no features: the divergence of the bottlenecks is left out.
    teacher = steps.CachedTeacher(heads.Head(task_lib.GLIOMA))
    kd = distillation.DistillationOptions(latent_weight=0.0)
    step = _step(widths, _STUDENT_CHANNELS, teacher=teacher, kd=kd)
    label = made_data.batch(batch, edge)[1]
    maps = np.stack([label == value for value in range(1, 1 + teacher.maps)], axis=-1)
    sent = sharding.to_global({"teacher": maps * np.float32(0.9)}, sharding.make_mesh())
    return Job(*_stepper(step, widths, 1, (), {**_on_mesh(batch, edge), **sent}))


def training_memory(widths: Sequence[int], edge: int, batch: int, repetitions: int) -> Job:
    """The most memory of a process that compiles the step and takes `repetitions` of it.

    Counted from when the libraries, the kernels and the backend are loaded.
    """
    jax.devices()
    layers.choose_form("auto")
    forget_peak()
    start = memory_gib("VmRSS")
    run, about = _training(widths, edge, batch, _ALL_CHANNELS)
    built = memory_gib("VmHWM") - start
    forget_peak()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    steps_alone = memory_gib("VmHWM") - start
    found = {"peak_gib": max(built, steps_alone), "build_gib": built, "steps_gib": steps_alone}
    return Job(about=found | about | {"seconds": seconds})


def compile_student(cache: str, preset: str) -> Job:
    """Seconds until the step of `configs/student.py:<preset>` is ready, with a cache folder."""
    jax.config.update("jax_compilation_cache_dir", cache)
    # Else the commands' own folder would be taken.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    cli.enable_compilation_cache()
    values = reading.read(common.base_config("student", preset))
    teacher = model.of_experiment(values.teacher.to_train)
    start = time.perf_counter()
    compilation.compile_step([values], sharding.make_mesh(), 100, teacher)
    return Job(about={"seconds": time.perf_counter() - start})


def save_params(path: str, widths: Sequence[int]) -> Job:
    """Writes parameters for `prediction` on both sides."""
    params = jax.tree.map(np.asarray, _params(widths, len(_ALL_CHANNELS)))
    pathlib.Path(path).write_bytes(pickle.dumps(params))
    return Job()


def prediction(
    path: str,
    widths: Sequence[int],
    shape: Sequence[int],
    patch: Sequence[int],
    overlap: float,
    bfloat16: bool = False,
) -> Job:
    """Sliding-window probabilities of a whole scan by the parameters at `path`."""
    params = jax.device_put(pickle.loads(pathlib.Path(path).read_bytes()))
    network = _network(widths, _ALL_CHANNELS, bfloat16)
    predict = inference.make_predict(network.apply, network.head, mirror=False)
    image = made_data.scan(shape)
    probs = None

    def run() -> None:
        nonlocal probs
        probs = inference.sliding_window(
            functools.partial(predict, params), image, tuple(patch), overlap
        )

    starts = [
        inference.window_starts(size, edge, overlap)
        for size, edge in zip(shape, patch, strict=True)
    ]
    about = {"windows": math.prod(map(len, starts)), "starts": starts}
    return Job(run, about, lambda: np.asarray(probs))
