"""Inputs of the benchmarks: the same numbers for both sides."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

CHANNELS = 4


def batch(
    count: int, edge: int, channels: int = CHANNELS
) -> tuple[Float[np.ndarray, "b d h w m"], UInt8[np.ndarray, "b d h w"]]:
    """Returns patches of normal noise and random classes."""
    rng = np.random.default_rng(0)
    shape = (count, edge, edge, edge)
    image = rng.standard_normal((*shape, channels), np.float32)
    return image, rng.integers(0, 4, shape, dtype=np.uint8)


def scan(shape: Sequence[int], channels: int = CHANNELS) -> Float[np.ndarray, "d h w m"]:
    """Returns smooth blobs of noise within an ellipsoid, 0 around it, as a stripped head."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((*[-(-edge // 8) for edge in shape], channels), np.float32)
    for axis, edge in enumerate(shape):
        coarse = coarse.repeat(8, axis).take(range(edge), axis)
    noise = rng.standard_normal(coarse.shape, np.float32)
    axes = [np.linspace(-1.3, 1.3, edge, dtype=np.float32) for edge in shape]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    head = d**2 + h**2 + w**2 < 1
    return np.where(head[..., None], coarse + 0.3 * noise, 0).astype(np.float32)
