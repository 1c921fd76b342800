"""A finished (or running) run as others use it: its network, its parameters, what it is."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import config_dict

from kdnet_jax import checksums, inference, saved_checkpoints, settings, steps
from kdnet_jax.data import geometry as geometry_lib
from kdnet_jax.models import heads, unet


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: where it lies.
        config: its config.
        settings: the config's values.
        params: the parameters of its best checkpoint.
        step: the step they come from.
        params_hash: SHA-256 of their content.
    """

    folder: pathlib.Path
    config: config_dict.ConfigDict
    settings: settings.Settings
    params: Any
    step: int
    params_hash: str


def load_run(folder: pathlib.Path) -> Run:
    """Reads config and best parameters of a run.

    Raises:
        UserError: if the folder is no run, or its checkpoint does not fit its config.
    """
    config, values = settings.read_run(folder)
    like = jax.eval_shape(
        lambda: unet.init_params(values.network, len(values.modalities), jax.random.key(0))
    )
    params, step = saved_checkpoints.load_params(folder, like)
    return Run(folder, config, values, params, step, checksums.content_hash(params))


def volume_predictor(
    values: settings.Settings, config: config_dict.ConfigDict
) -> Callable[[Any], Callable[[Float[np.ndarray, "d h w m"]], Float[np.ndarray, "d h w k"]]]:
    """Returns parameters -> (whole volume -> probabilities), compiled once for all parameters."""
    network = unet.UNet(values.network)
    predict = inference.make_predict(network.apply, values.network.head, config.inference.mirror)

    def bind(params: Any) -> Callable[[Any], Any]:
        return lambda image: inference.sliding_window(
            lambda windows: predict(params, windows),
            image,
            values.window,
            config.inference.overlap,
        )

    return bind


def as_network(values: settings.Settings) -> steps.Network:
    """Returns the network as the train steps see it."""
    return steps.Network(unet.UNet(values.network).apply, values.network.head, values.channels)


def segmentation_on_scan(
    probs: Float[np.ndarray, "d h w k"], head: heads.Head, geometry: geometry_lib.Geometry
) -> UInt8[np.ndarray, "x y z"]:
    """Returns the classes on the scan's own grid from probabilities on the working grid.

    Each channel is resampled before the decision: the most probable class, or for regions
    whether each is above 1/2.
    """
    if head == "softmax":
        return geometry_lib.back_to_scan(probs, geometry)
    decided = [
        geometry_lib.threshold_to_scan(probs[..., channel], geometry)
        for channel in range(probs.shape[-1])
    ]
    classes = np.empty(geometry.shape, np.uint8)
    for plane, masks in enumerate(zip(*decided, strict=True)):  # not all as float32 at once
        classes[plane] = heads.to_classes(np.stack(masks, axis=-1).astype(np.float32), head)
    return classes
