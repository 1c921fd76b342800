"""What the augmentation costs, as a share of a training step: python -m benchmarks.augmentation.

The supervised step of a config's network is timed with its augmentation and with none, in turns, so
that both meet the same machine. Patches are noise; times do not depend on what they show.

    python -m benchmarks.augmentation [--config=configs/baseline.py:brats] [--steps=30]
        [--config.loader.patch='(64,64,64)'] [--config.augment.KEY=VALUE]
"""

import dataclasses
import statistics

import jax
from absl import flags

from benchmarks import step_timer
from kdnet_jax import cli
from kdnet_jax.augment import augment
from kdnet_jax.config import reading

_CONFIG = cli.define_config("configs/baseline.py:brats", "What is trained")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps of each kind that are timed", lower_bound=2)


def main(argv: list[str]) -> None:
    """Prints the means and the share."""
    cli.refuse_arguments(argv)
    values = reading.read(_CONFIG.value)
    without_any = dataclasses.replace(values, augment=augment.PRESETS["none"])
    timers = [step_timer.make(each) for each in (without_any, values)]
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


if __name__ == "__main__":
    cli.run(main)
