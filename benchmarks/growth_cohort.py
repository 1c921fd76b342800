"""Training from cohorts of any size, for `benchmarks.growth`."""

import pathlib
import time

import jax

from benchmarks.measuring import Job, forget_peak, memory_gib
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.data.loading import loader
from kdnet_jax.data.records import building
from kdnet_jax.losses import objective
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps

_PATCH = (32, 32, 32)
_STEPS, _WARM_UP = 20, 5
_SPACING_MM = 4.0


def training(root: str, cases: int) -> Job:
    """Seconds of each step, its batch included, with all of `cases` synthetic cases resident."""
    built = building.build_phantom(
        pathlib.Path(root), cases=cases, seed=0, spacing=_SPACING_MM, progress=False
    )
    mesh = sharding.make_mesh()
    forget_peak()
    before = memory_gib("VmRSS")
    config = unet.UNetConfig(widths=(8, 16, 32))
    optimizer = optimizers.make_optimizer(optimizers.OptimizerOptions(), 1000, 100)
    head = heads.Head(task_lib.GLIOMA)
    step = steps.jit_step(
        mesh,
        student=steps.Network(unet.UNet(config).apply, head, (0, 1, 2, 3)),
        loss=objective.of_options(head),
        optimizer=optimizer,
        plan=steps.Plan(augment.choose("none")),
    )
    params = networks.init_params(config, 4, jax.random.key(0))
    whole = sharding.replicated(mesh)
    state = jax.device_put(steps.init_state(params, optimizer), whole)
    root_key = jax.device_put(jax.random.key(1), whole)
    seconds = []
    made = loader.make_loader(
        built, range(len(built)), mesh=mesh, patch=_PATCH, batch=2, seed=0, on_device=True
    )
    with made as batches:
        for _ in range(_WARM_UP + _STEPS):
            start = time.perf_counter()
            state, metrics = step(state, (), next(batches), root_key)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    return Job(about={"seconds": seconds[_WARM_UP:], "peak_gib": memory_gib("VmHWM") - before})
