"""What a step of each published method costs beside the baseline's: python -m benchmarks.methods.

The steps of `configs/methods/` for a preset's sizes, each with the teacher online and, where the
preset has them, samples without a reference, are timed in turns, so that all meet the same machine.
Patches are noise; times do not depend on what they show. `patient` has two samples in a batch where
the others have the preset's, so the time of a sample is compared.

    python -m benchmarks.methods [--preset=fewlabels] [--rounds=9] [--method=hinton ...]
"""

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Final

import jax
import numpy as np
from absl import flags

from kdnet_jax import cli
from kdnet_jax.augment import augment
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.experiment import compilation
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model as model_lib
from kdnet_jax.training import steps

METHODS: Final = (
    *("teacher_labels", "kdnet", "hinton", "standardized", "fitnets", "protokd", "pmkl"),
    *("smunet", "affinity", "patient"),
)
_PRESET = flags.DEFINE_string("preset", "fewlabels", "Sizes: a preset of the configs.")
_METHODS = flags.DEFINE_multi_enum("method", METHODS, METHODS, "What is timed.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Steps of each method that are timed.", lower_bound=1)
# Of a run: only an optimizer that counts epochs reads it.
_CASES: Final = 10


def main(argv: list[str]) -> None:
    """Prints the median time of a sample of each method, and its ratio to the baseline's."""
    cli.refuse_arguments(argv)
    teacher = model_lib.of_experiment(_experiment("teacher"))
    plain = _experiment("baseline")
    each = {"baseline": (plain, _timer(plain, None))}
    for name in _METHODS.value:
        experiment = _experiment(f"methods.{name}")
        each[name] = (experiment, _timer(experiment, teacher))
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


def _timer(
    experiment: experiment_lib.Experiment, teacher: model_lib.Model | None
) -> Callable[[], float]:
    """Returns a function that makes one step and returns its seconds; compiles first."""
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    modalities, network = experiment.data.modalities, experiment.network
    unlabelled = teacher is not None and experiment.split.labelled > 0
    step, _ = compilation.compile_step([experiment], mesh, _CASES, teacher, unlabelled)
    params = networks.init_params(network, len(experiment.modalities), jax.random.key(0))
    state = steps.init_state(
        compilation.with_projector(params, experiment, teacher),
        compilation.optimizer(experiment, _CASES),
        averaged=experiment.train.average > 0,
    )
    whole = sharding.replicated(mesh)
    states, root = jax.device_put(((state,), jax.random.key(1)), whole)
    teacher_params = ()
    if teacher:
        sequences = len(teacher.modalities)
        drawn = networks.init_params(teacher.network, sequences, jax.random.key(2))
        teacher_params = jax.device_put(drawn, whole)
    size = (
        experiment.loader.batch,
        *augment.source_patch(experiment.loader.patch, experiment.augment),
    )
    batch = sharding.to_global(
        {
            "image": rng.normal(size=(*size, len(modalities))).astype(np.float32),
            "label": rng.integers(0, 4, size, np.uint8),
        },
        mesh,
    )

    def timed() -> float:
        nonlocal states
        start = time.perf_counter()
        states, metrics = step(states, teacher_params, batch, root)
        jax.block_until_ready((states, metrics))
        return time.perf_counter() - start

    timed()
    return timed


if __name__ == "__main__":
    cli.run(main)
