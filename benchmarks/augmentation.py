"""What the augmentation costs, as a share of a training step: python -m benchmarks.augmentation.

The supervised step of a config's network is timed with its augmentation and with none, in turns, so
that both meet the same machine. Patches are noise; times do not depend on what they show.

    python -m benchmarks.augmentation [--config=configs/baseline.py:brats] [--steps=30]
        [--config.loader.patch='(64,64,64)'] [--config.augment.KEY=VALUE]
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from kdnet_jax import cli
from kdnet_jax.augment import augment
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.losses import objective
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model, trained
from kdnet_jax.training import optimizers, steps

_CONFIG = cli.define_config("configs/baseline.py:brats", "What is trained")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps of each kind that are timed", lower_bound=2)


def main(argv: list[str]) -> None:
    """Prints the means and the share."""
    cli.refuse_arguments(argv)
    values = reading.read(_CONFIG.value)
    timers = [_timer(values, options) for options in (augment.PRESETS["none"], values.augment)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_STEPS.value):
        for timer, own in zip(timers, seconds, strict=True):
            own.append(timer())
    # Means, not medians: what is drawn differs from step to step.
    without, with_it = (statistics.mean(own) for own in seconds)
    device = jax.devices()[0].device_kind
    print(
        f"{device}, patch {values.loader.patch}, batch {values.loader.batch}, "
        f"{_STEPS.value} steps each"
    )
    print(f"step without augmentation {1e3 * without:.1f} ms, with {1e3 * with_it:.1f} ms")
    print(f"augmentation / step without: {with_it / without - 1:.1%} (goal: at most 15 %)")


def _timer(
    values: experiment_lib.Experiment, options: augment.AugmentOptions
) -> Callable[[], float]:
    """Returns a function that makes one step and returns its seconds; compiles first."""
    mesh = sharding.make_mesh()
    optimizer = optimizers.make_optimizer(values.optimizer, 1000, 10)
    params = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    state = jax.device_put(steps.init_state(params, optimizer), sharding.replicated(mesh))
    step = steps.jit_step(
        mesh,
        student=trained.as_network(model.of_experiment(values), values.data.modalities),
        loss=objective.of_options(values.head, values.loss),
        optimizer=optimizer,
        plan=steps.Plan(options, values.loader.patch),
    )
    rng = np.random.default_rng(0)
    size = (values.loader.batch, *augment.source_patch(values.loader.patch, options))
    image = rng.normal(size=(*size, len(values.data.modalities))).astype(np.float32)
    batch: Any = {"image": image, "label": rng.integers(0, 4, size, np.uint8)}
    batch = sharding.to_global(batch, mesh)
    root = jax.random.key(1)
    state, metrics = step(state, (), batch, root)
    jax.block_until_ready(metrics)

    def timed() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = step(state, (), batch, root)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return timed


if __name__ == "__main__":
    cli.run(main)
