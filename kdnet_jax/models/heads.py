"""From logits to probabilities, classes and regions, for both kinds of head."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from kdnet_jax import conventions

Head = Literal["softmax", "regions"]


def probabilities(
    logits: Float[Array, "*grid k"], head: Head, temperature: float = 1.0
) -> Float[Array, "*grid k"]:
    """Returns softmax over classes, or a sigmoid per region, of `logits / temperature`."""
    scaled = logits / temperature
    return jax.nn.softmax(scaled, axis=-1) if head == "softmax" else jax.nn.sigmoid(scaled)


def targets(labels: Integer[Array, "*grid"], head: Head) -> Float[Array, "*grid k"]:
    """Returns the reference as the head sees it: one-hot classes, or 0/1 per region.

    Written by comparison: a gather of one-hot rows makes XLA fold a large constant at compile time.
    """
    classes = [labels == value for value in range(len(conventions.CLASSES))]
    if head == "softmax":
        channels = classes
    else:
        channels = [
            jnp.any(jnp.stack([classes[c] for c in conventions.REGION_CLASSES[region]]), axis=0)
            for region in conventions.REGIONS
        ]
    return jnp.stack(channels, axis=-1).astype(jnp.float32)


def foreground(head: Head) -> slice:
    """Returns the channels that are tumour (all but the background class)."""
    return slice(1, None) if head == "softmax" else slice(None)


def to_classes(probs: Float[np.ndarray, "*grid k"], head: Head) -> UInt8[np.ndarray, "*grid"]:
    """Returns the class of each voxel on the host.

    Softmax: the most probable class. Regions at a threshold of 0.5: ED where WT, then NCR where
    TC, then ET where ET, each inside the one before (as nnU-Net's region export).
    """
    if head == "softmax":
        return probs.argmax(axis=-1).astype(np.uint8)
    et, tc, wt = (probs[..., channel] > 0.5 for channel in range(3))
    classes = np.zeros(wt.shape, np.uint8)
    classes[wt] = conventions.CLASSES.index("ED")
    classes[wt & tc] = conventions.CLASSES.index("NCR")
    classes[wt & tc & et] = conventions.CLASSES.index("ET")
    return classes
