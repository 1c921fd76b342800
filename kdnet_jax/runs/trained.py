"""Trained networks, from a run's folder or a model folder."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence

import jax
from jaxtyping import PyTree

from kdnet_jax.config import reading
from kdnet_jax.core import checksums, devices
from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign
from kdnet_jax.models import networks
from kdnet_jax.parallel import processes
from kdnet_jax.runs import calibration, model_folder, thresholds
from kdnet_jax.runs import model as model_lib
from kdnet_jax.training import saved_checkpoints, steps


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or a model that was handed over, read.

    Attributes:
        folder: where it lies.
        model: the network and how it is used.
        params: the parameters, of a run's best checkpoint.
        step: the step they come from.
        params_hash: SHA-256 of their content.
        undecided: thresholds are to be chosen on validation cases, and have not been.
        uncalibrated: likewise the calibration.
        pretrained: it reconstructs its input, and its head was never trained.
    """

    folder: pathlib.Path
    model: model_lib.Model
    params: PyTree
    step: int
    params_hash: str
    undecided: bool = False
    uncalibrated: bool = False
    pretrained: bool = False


def load_run(folder: pathlib.Path, *, pretrained: bool = False) -> Run:
    """Reads a run's folder, with its best parameters, or a model folder (`model_folder`).

    Args:
        folder: where it lies.
        pretrained: take a run that reconstructs its input, and segments nothing, too.

    Raises:
        UserError: if the folder is neither, its parameters do not fit its network, or JAX has no
            device.
    """
    devices.check()
    if model_folder.is_model(folder):
        return _of_model_folder(folder)
    if foreign.is_foreign(folder):
        raise UserError(
            f"{folder} was trained by another tool. Make a model folder of it first: python -m "
            f"kdnet_jax.export --checkpoint={folder} --output=DIR"
        )
    experiment = reading.read_run(folder)
    reconstructs = experiment.loss.reconstructs
    if reconstructs and not pretrained:
        raise UserError(
            f"{folder} has learnt to reconstruct its input (loss.form=reconstruction), and "
            f"segments nothing. Train a network that starts from it: --config.train.start={folder}"
        )
    model = model_lib.of_experiment(experiment)
    params, step = saved_checkpoints.load_params(folder, expected_params(model))
    digest = checksums.content_hash(params)
    found = calibration.read(folder, model.head, digest)
    model = dataclasses.replace(model, calibration=found or calibration.NONE)
    run = Run(
        folder, model, params, step, digest, uncalibrated=found is None, pretrained=reconstructs
    )
    return decided(run) if experiment.inference.chooses_thresholds else run


def load_given(key: str, folder: pathlib.Path, *, pretrained: bool = False) -> Run:
    """Reads what a key of the config names; see `load_run`.

    Raises:
        UserError: it cannot be read; the message names the key.
    """
    try:
        return load_run(folder, pretrained=pretrained)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def check_same(run: Run) -> None:
    """Raises UserError if the processes of a run have not read the same parameters."""
    views = processes.gather([run.step, run.params_hash])
    if any(view != views[0] for view in views):
        raise UserError(
            f"{run.folder}: the processes do not read the same parameters ({views}). Give a "
            "folder on storage that all of them share."
        )


def check_distinct(runs: Iterable[Run], remedy: str) -> None:
    """Refuses a network that would count twice, whatever its folders are called.

    Raises:
        UserError: two runs have equal parameters; the message ends with `remedy`.
    """
    known: dict[str, Run] = {}
    for run in runs:
        first = known.setdefault(run.params_hash, run)
        if first is not run:
            raise UserError(
                f"{first.folder} and {run.folder} are the same network (equal parameters): it "
                f"would count twice. {remedy}"
            )


def decided(run: Run) -> Run:
    """Returns a run with the thresholds that lie in its folder.

    Raises:
        UserError: that file is damaged.
    """
    chosen = thresholds.read(run.folder, run.model.task, run.params_hash)
    model = dataclasses.replace(run.model, thresholds=chosen)
    return dataclasses.replace(run, model=model, undecided=not chosen)


def _of_model_folder(folder: pathlib.Path) -> Run:
    about = model_folder.read(folder)
    params = model_folder.read_params(folder, about, expected_params(about.model))
    return Run(folder, about.model, params, about.step, about.params_hash)


def expected_params(model: model_lib.Model) -> PyTree:
    """Returns the shapes of a model's parameters."""
    return _shapes(model.network, len(model.modalities))


@functools.lru_cache(maxsize=4)  # The members of an ensemble are one network.
def _shapes(network: networks.Network, channels: int) -> PyTree:
    return jax.eval_shape(lambda: networks.init_params(network, channels, jax.random.key(0)))


def as_network(seen: model_lib.Model, data_modalities: Sequence[str]) -> steps.Network:
    """Returns a network as the train steps see it, fed from a stack of `data_modalities`."""
    channels = tuple(data_modalities.index(name) for name in seen.modalities)
    return steps.Network(networks.function(seen.network), seen.head, channels)
