"""Our side of `benchmarks.accelerator`: each function returns a `Job` with its figures."""

import functools
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import made_data, records
from benchmarks.measuring import Job
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.data.loading import loader
from kdnet_jax.data.records import building
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import heads, layers, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import inference
from kdnet_jax.training import optimizers, steps

_WARM_UP = 3
_ALL_CHANNELS = tuple(range(made_data.CHANNELS))


def network_config(widths: Sequence[int], bfloat16: bool, supervision: bool) -> unet.UNetConfig:
    """Returns nnU-Net's form of our network."""
    return unet.UNetConfig(
        widths=tuple(widths),
        last_blocks=2,
        down="strided",
        up="learned",
        deep_supervision=supervision,
        bfloat16=bfloat16,
    )


def device() -> Job:
    """Says what JAX would run on."""
    return Job(about={"backend": jax.default_backend(), "facts": records.facts()})


def matmul(edge: int, repetitions: int) -> Job:
    """Multiplications of large square bfloat16 matrices: FLOP/s, the most that can be hoped for."""
    a = jnp.ones((edge, edge), jnp.bfloat16)
    chain = jax.jit(lambda a: functools.reduce(lambda x, _: (x @ a) * 1e-4, range(8), a))
    rates = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(chain(a))
        rates.append(8 * 2 * edge**3 / (time.perf_counter() - start))
    return Job(about={"flops": rates[1:]})


def training(
    *,
    distil: bool,
    widths: Sequence[int],
    patch: int,
    batch: int,
    steps_per_block: int,
    blocks: int,
    bfloat16: bool,
    supervision: bool,
    augmentation: str,
    root: str,
    cases: int,
    spacing: float,
) -> Job:
    """Samples per second of a training that cuts its batches from synthetic cases on the device."""
    config = network_config(widths, bfloat16, supervision)
    mesh = sharding.make_mesh()
    options = augment.choose(augmentation)
    edges = (patch,) * 3
    optimizer = optimizers.make_optimizer(optimizers.OptimizerOptions(), 1000, 100)
    channels = (1,) if distil else _ALL_CHANNELS
    network = steps.Network(unet.UNet(config).apply, heads.Head(task_lib.GLIOMA), channels)
    step = steps.jit_step(
        mesh,
        student=network,
        teacher=network._replace(channels=_ALL_CHANNELS) if distil else None,
        loss=objective.of_options(
            network.head, kd=distillation.DistillationOptions() if distil else None
        ),
        optimizer=optimizer,
        plan=steps.Plan(options, edges),
    )
    whole = sharding.replicated(mesh)
    teacher: Any = ()
    if distil:
        given = networks.init_params(config, len(_ALL_CHANNELS), jax.random.key(5))
        teacher = jax.device_put(given, whole)
    params = networks.init_params(config, len(channels), jax.random.key(0))
    state = jax.device_put(steps.init_state(params, optimizer), whole)
    key = jax.device_put(jax.random.key(1), whole)
    built = building.build_phantom(pathlib.Path(root), cases=cases, seed=0, spacing=spacing)
    batches = loader.make_loader(
        built,
        range(len(built)),
        mesh=mesh,
        patch=edges,
        batch=batch,
        seed=0,
        crop=augment.source_patch(edges, options),
        on_device=True,
    )
    with batches:
        try:
            compiled = step.lower(state, teacher, next(batches), key).compile()
            rates = []
            for block in range(blocks + 1):
                count = steps_per_block if block else _WARM_UP
                start = time.perf_counter()
                for one in itertools.islice(batches, count):
                    state, metrics = compiled(state, teacher, one, key)
                jax.block_until_ready((state, metrics))
                rates.append(count * batch / (time.perf_counter() - start))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Job(about={"out_of_memory": True})
    stats = jax.devices()[0].memory_stats() or {}
    return Job(
        about={
            "rates": rates[1:],
            "loss": float(metrics["loss"]),
            "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
            "flops_a_step": (compiled.cost_analysis() or {}).get("flops"),
            "parameters": layers.parameter_count(params),
        }
    )


def prediction(
    *,
    widths: Sequence[int],
    patch: int,
    shape: Sequence[int],
    repetitions: int,
    bfloat16: bool,
    window_batch: int,
) -> Job:
    """Seconds of a whole scan with 8 mirror images of each window, from host to host."""
    config = network_config(widths, bfloat16, supervision=False)
    params = networks.init_params(config, made_data.CHANNELS, jax.random.key(0))
    predict = inference.make_predict(
        unet.UNet(config).apply, heads.Head(task_lib.GLIOMA), mirror=True
    )
    image = made_data.scan(shape)
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        inference.sliding_window(
            functools.partial(predict, params), image, (patch,) * 3, 0.5, batch=window_batch
        )
        seconds.append(time.perf_counter() - start)
    return Job(about={"seconds": seconds[1:]})
