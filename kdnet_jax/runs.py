"""Trained networks, from a run's folder or a model folder."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree, UInt8

from kdnet_jax import (
    checksums,
    devices,
    inference,
    model_folder,
    saved_checkpoints,
    sharding,
    steps,
)
from kdnet_jax import model as model_lib
from kdnet_jax.config import reading
from kdnet_jax.data import geometry as geometry_lib
from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign
from kdnet_jax.models import heads, networks


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or a model that was handed over, read.

    Attributes:
        folder: where it lies.
        model: the network and how it is used.
        params: the parameters, of a run's best checkpoint.
        step: the step they come from.
        params_hash: SHA-256 of their content.
    """

    folder: pathlib.Path
    model: model_lib.Model
    params: PyTree
    step: int
    params_hash: str


def load_run(folder: pathlib.Path) -> Run:
    """Reads a run's folder, with its best parameters, or a model folder (`model_folder`).

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
    model = model_lib.of_experiment(reading.read_run(folder))
    params, step = saved_checkpoints.load_params(folder, expected_params(model))
    return Run(folder, model, params, step, checksums.content_hash(params))


def _of_model_folder(folder: pathlib.Path) -> Run:
    about = model_folder.read(folder)
    params = model_folder.read_params(folder, about, expected_params(about.model))
    return Run(folder, about.model, params, about.step, about.params_hash)


def expected_params(model: model_lib.Model) -> PyTree:
    """Returns the shapes of a model's parameters."""
    return jax.eval_shape(
        lambda: networks.init_params(model.network, len(model.modalities), jax.random.key(0))
    )


def prediction_mesh(
    model: model_lib.Model, whole: bool | None = None, space: int | None = None
) -> Mesh:
    """Returns how this process's own devices share windows, or whole scans.

    Args:
        model: what predicts.
        whole: a scan in one pass; `None` as the model says.
        space: devices that share the depth of a scan or window; `None`: all for whole scans, else
            as many of `mesh.space` as this process has.

    Raises:
        UserError: the devices, or the window's depth, cannot be divided so.
    """
    if whole is None:
        whole = model.whole
    count = len(jax.local_devices())
    key = "mesh.space" if space is None else "--space"
    if space is None and networks.splits_depth(model.network):
        space = count if whole else math.gcd(model.space, count)
    mesh = sharding.local_mesh(space or 1)
    networks.check_space(mesh.shape[sharding.SPACE], model.network, key)
    if not whole:
        sharding.check_depth(
            mesh.shape[sharding.SPACE],
            model.window,
            model.network.divisor[0],
            "inference.patch",
            key,
        )
    return mesh


def predictor(
    models: Sequence[model_lib.Model],
    *,
    mirror: bool | None = None,
    whole: bool | None = None,
    space: int | None = None,
    window_batch: int = 1,
) -> inference.Predictor:
    """Returns what predicts by models that agree, on this process's own devices.

    Args:
        models: the networks.
        mirror: average over mirror images; `None` as the models say.
        whole: a scan in one pass, without windows; `None` as the models say.
        space: see `prediction_mesh`.
        window_batch: windows at once on each device.

    Raises:
        UserError: see `prediction_mesh`.
    """
    first = models[0]
    # Of each, so that every network is checked; they are the same.
    meshes = [prediction_mesh(each, whole, space) for each in models]
    return inference.Predictor(
        tuple(models),
        meshes[0],
        first.mirror if mirror is None else mirror,
        first.whole if whole is None else whole,
        window_batch,
    )


def as_network(seen: model_lib.Model, data_modalities: Sequence[str]) -> steps.Network:
    """Returns a network as the train steps see it, fed from a stack of `data_modalities`."""
    channels = tuple(data_modalities.index(name) for name in seen.modalities)
    return steps.Network(networks.function(seen.network), seen.head, channels)


def segmentation_on_scan(
    probs: Float[np.ndarray, "d h w k"], head: heads.Head, geometry: geometry_lib.Geometry
) -> UInt8[np.ndarray, "x y z"]:
    """Returns the classes on the scan's own grid from probabilities on the working grid.

    Each channel is resampled before the decision: the most probable class, or for regions
    whether each is above 1/2.
    """
    if head.kind == "softmax":
        return geometry_lib.back_to_scan(probs, geometry)
    decided = [
        geometry_lib.threshold_to_scan(probs[..., channel], geometry)
        for channel in range(probs.shape[-1])
    ]
    classes = np.empty(geometry.shape, np.uint8)
    for plane, masks in enumerate(zip(*decided, strict=True)):  # not all as float32 at once
        classes[plane] = head.decide(np.stack(masks, axis=-1).astype(np.float32))
    return classes
