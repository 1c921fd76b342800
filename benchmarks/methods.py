"""What a step of each published method costs beside the baseline's: python -m benchmarks.methods.

The steps of `configs/methods/` for a preset's sizes, each with the teacher online and, where the
preset has them, samples without a reference, are timed in turns, so that all meet the same machine.
Patches are noise; times do not depend on what they show. `patient` has two samples in a batch where
the others have the preset's, so the time of a sample is compared.

    python -m benchmarks.methods [--preset=fewlabels] [--rounds=9] [--method=hinton ...]
"""

import importlib
import pkgutil
import statistics
from typing import Final

import jax
from absl import flags

from benchmarks import step_timer
from configs import methods
from kdnet_jax import cli
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.runs import model as model_lib

METHODS: Final = tuple(each.name for each in pkgutil.iter_modules(methods.__path__))
_PRESET = flags.DEFINE_string("preset", "fewlabels", "Sizes: a preset of the configs.")
_METHODS = flags.DEFINE_multi_enum("method", METHODS, METHODS, "What is timed.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Steps of each method that are timed.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Prints the median time of a sample of each method, and its ratio to the baseline's."""
    cli.refuse_arguments(argv)
    teacher = model_lib.of_experiment(_experiment("teacher"))
    plain = _experiment("baseline")
    each = {"baseline": (plain, step_timer.make(plain))}
    for name in _METHODS.value:
        experiment = _experiment(f"methods.{name}")
        each[name] = (experiment, step_timer.make(experiment, teacher))
    seconds: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(_ROUNDS.value):
        for name, (experiment, timed) in each.items():
            seconds[name].append(timed() / experiment.loader.batch)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    print(f"{jax.devices()[0].device_kind}, patch {plain.loader.patch}, {_ROUNDS.value} steps each")
    for name, own in seconds.items():
        print(
            f"{name:15} {1e3 * medians[name]:7.1f} ms a sample ({1e3 * min(own):.1f} to "
            f"{1e3 * max(own):.1f}), {medians[name] / medians['baseline']:.2f} of the baseline's"
        )


def _experiment(config: str) -> experiment_lib.Experiment:
    return reading.read(importlib.import_module(f"configs.{config}").get_config(_PRESET.value))


if __name__ == "__main__":
    cli.run(main)
