"""Predictors of trained models, and their answer on the scan's own grid."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from kdnet_jax.data.scans import geometry as geometry_lib
from kdnet_jax.models import heads, networks
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import inference
from kdnet_jax.runs import model as model_lib


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


def segmentation_on_scan(
    probs: Float[np.ndarray, "d h w k"],
    head: heads.Head,
    geometry: geometry_lib.Geometry,
    thresholds: Sequence[float] = (),
) -> UInt8[np.ndarray, "x y z"]:
    """Returns the classes on the scan's own grid from probabilities on the working grid.

    Each class or region is resampled before the decision, which is that of `heads.Head.decide`.

    Args:
        probs: of the head's outputs.
        head: what they are.
        geometry: the way to the scan.
        thresholds: of the regions; empty: the fixed decision.
    """
    if head.kind == "softmax" and not thresholds:
        return geometry_lib.back_to_scan(probs, geometry)
    regions = head.region_probabilities(probs)
    decided = [
        geometry_lib.threshold_to_scan(regions[..., place], geometry, limit)
        for place, limit in enumerate(head.limits(thresholds))
    ]
    classes = np.empty(geometry.shape, np.uint8)
    for plane, masks in enumerate(zip(*decided, strict=True)):
        classes[plane] = head.paint(np.stack(masks, axis=-1))
    return classes
