"""The time of a training step of an experiment, on patches of noise."""

import time
from collections.abc import Callable
from typing import Final

import jax
import numpy as np

from kdnet_jax.augment import augment
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.experiment import compilation
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model as model_lib
from kdnet_jax.training import steps

# Of a run: only an optimizer that counts epochs reads it.
_CASES: Final = 10


def make(
    experiment: experiment_lib.Experiment, teacher: model_lib.Model | None = None
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
