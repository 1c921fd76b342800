"""Sliding-window prediction of a whole prepared case."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdnet_jax.models import heads

# (parameters, windows "b d h w m") -> probabilities "b d h w k"
Predict = Callable[[Any, Array], Array]


def make_predict(apply: Callable[..., Any], head: heads.Head, mirror: bool) -> Predict:
    """Jits the network's probabilities, averaged over the 8 mirror images if `mirror`."""
    flips = (
        [axes for count in range(4) for axes in itertools.combinations((1, 2, 3), count)]
        if mirror
        else [()]
    )

    @jax.jit
    def predict(params: Any, windows: Array) -> Array:
        total = jnp.zeros(())
        for axes in flips:
            logits, _ = apply(params, jnp.flip(windows, axes))
            total = total + jnp.flip(heads.probabilities(logits, head), axes)
        return total / len(flips)

    return predict


@functools.lru_cache(maxsize=4)
def gaussian_window(patch: tuple[int, ...]) -> Float[np.ndarray, "d h w"]:
    """Weights that fall from 1 at the centre, sigma = edge / 8 (nnU-Net), never below 1e-3."""
    axes = [np.arange(edge) - (edge - 1) / 2 for edge in patch]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    exponent = sum((grid / (edge / 8)) ** 2 for grid, edge in zip(grids, patch, strict=True))
    return np.maximum(np.exp(-0.5 * exponent), 1e-3).astype(np.float32)


def window_starts(size: int, edge: int, overlap: float) -> list[int]:
    """Starts of windows of length `edge` that cover 0..size evenly.

    Neighbours share at least the share `overlap` (0 to below 1) of a window, to a voxel.
    """
    if size <= edge:
        return [0]
    count = int(np.ceil((size - edge) / max(edge * (1 - overlap), 1))) + 1
    return [int(start) for start in np.round(np.linspace(0, size - edge, count))]


def sliding_window(
    predict: Callable[[Array], Array],
    image: Float[np.ndarray, "d h w m"],
    patch: Sequence[int],
    overlap: float = 0.5,
) -> Float[np.ndarray, "d h w k"]:
    """Returns the probabilities of a whole volume of any size.

    Windows are predicted one at a time with one compiled shape and blended by Gaussian weights. A
    volume smaller than the window is padded with 0 (background), split evenly on both sides; a
    window that covers the volume gives exactly one forward pass.

    Args:
        predict: "1 d h w m" of the window's size to probabilities "1 d h w k".
        image: the prepared case, its sequences already chosen.
        patch: the window's edges in voxels.
        overlap: share of a window that its neighbour covers too, 0 to below 1.
    """
    patch = tuple(patch)
    missing = [max(edge - size, 0) for edge, size in zip(patch, image.shape[:3], strict=True)]
    before = [gap // 2 for gap in missing]
    padded = np.pad(
        np.asarray(image, np.float32),
        [(b, gap - b) for b, gap in zip(before, missing, strict=True)] + [(0, 0)],
    )
    blended = _blend(predict, padded, patch, overlap)
    inside = tuple(slice(b, b + size) for b, size in zip(before, image.shape[:3], strict=True))
    return blended[inside]


def _blend(
    predict: Callable[[Array], Array],
    image: Float[np.ndarray, "d h w m"],
    patch: tuple[int, ...],
    overlap: float,
) -> Float[np.ndarray, "d h w k"]:
    starts = [
        window_starts(size, edge, overlap)
        for size, edge in zip(image.shape[:3], patch, strict=True)
    ]
    weight = gaussian_window(patch)
    total, weights = None, np.zeros(image.shape[:3], np.float32)
    for corner in itertools.product(*starts):
        window = tuple(slice(s, s + edge) for s, edge in zip(corner, patch, strict=True))
        probs = np.asarray(predict(image[window][None])[0])
        if total is None:
            total = np.zeros((*image.shape[:3], probs.shape[-1]), np.float32)
        total[window] += probs * weight[..., None]
        weights[window] += weight
    return total / weights[..., None]
