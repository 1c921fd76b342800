"""A finished (or running) run as others use it: its network, its parameters, what it is."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import config_dict

from kdnet_jax import checksums, inference, saved_checkpoints, settings, sharding, steps
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


def prediction_mesh(
    values: settings.Settings,
    config: config_dict.ConfigDict,
    whole: bool | None = None,
    space: int | None = None,
) -> Mesh:
    """Returns how this process's own devices share windows, or whole scans.

    Args:
        values: the config's.
        config: of the run.
        whole: a scan in one pass; `None` as the config says.
        space: devices that share the depth of a scan or window; `None`: all for whole scans, else
            as many of `mesh.space` as this process has.

    Raises:
        UserError: the devices, or the window's depth, cannot be divided so.
    """
    if whole is None:
        whole = predicts_whole(config)
    devices = len(jax.local_devices())
    key = "mesh.space" if space is None else "--space"
    if space is None:
        space = devices if whole else math.gcd(config.mesh.space, devices)
    mesh = sharding.local_mesh(space)
    if not whole:
        sharding.check_depth(space, values.window, values.network.divisor, "inference.patch", key)
    return mesh


def predicts_whole(config: config_dict.ConfigDict) -> bool:
    """Returns whether a run segments a scan in one pass; runs of before the key do not."""
    return config.inference.get("whole", False)


def volume_predictor(
    values: settings.Settings, config: config_dict.ConfigDict
) -> Callable[[Any], Callable[[Float[np.ndarray, "d h w m"]], Float[np.ndarray, "d h w k"]]]:
    """Returns parameters -> (whole volume -> probabilities), compiled once for all parameters.

    Where the config asks for whole scans it is compiled for each size of scan.
    """
    mesh = prediction_mesh(values, config)
    network = unet.UNet(values.network)
    predict = inference.make_predict(
        network.apply, values.network.head, config.inference.mirror, mesh=mesh
    )
    devices, space = mesh.shape[sharding.DATA], mesh.shape[sharding.SPACE]

    def bind(params: Any) -> Callable[[Any], Any]:
        placed = jax.device_put(params, sharding.replicated(mesh))

        def answer(image: Float[np.ndarray, "d h w m"]) -> Float[np.ndarray, "d h w k"]:
            window = values.window
            if predicts_whole(config):
                window = inference.whole_window(image.shape, values.network.divisor, space)
            return inference.sliding_window(
                lambda windows: predict(placed, windows),
                image,
                window,
                config.inference.overlap,
                batch=devices,
            )

        return answer

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
