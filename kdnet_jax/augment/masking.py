"""Masks for reconstruction: cubes of each patch that the network does not see."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Cubes(NamedTuple):
    """What is hidden of a patch.

    Attributes:
        share: of the cubes, those that are hidden.
        edge: of a cube, in voxels.
    """

    share: float
    edge: int

    def counts(self, patch: Sequence[int]) -> tuple[int, int]:
        """Returns how many cubes a patch "d h w" has, those at its end cut, and how many hide."""
        count = math.prod(self._grid(patch))
        return count, round(self.share * count)

    def _grid(self, patch: Sequence[int]) -> list[int]:
        return [-(-size // self.edge) for size in patch]

    def draw(self, key: jax.Array, samples: int, patch: Sequence[int]) -> Float[Array, "b d h w"]:
        """Returns 1 in the hidden cubes of each sample, and 0 elsewhere.

        Every choice of so many cubes is equally likely. After Wald et al., "Revisiting MAE
        pre-training for 3D medical image segmentation", CVPR 2025.
        """
        count, number = self.counts(patch)
        chosen = jnp.broadcast_to(jnp.arange(count) < number, (samples, count))
        hidden = jax.random.permutation(key, chosen, axis=1, independent=True)
        volume = hidden.reshape(samples, *self._grid(patch)).astype(jnp.float32)
        for axis, size in enumerate(patch, start=1):
            volume = jax.lax.slice_in_dim(volume.repeat(self.edge, axis), 0, size, axis=axis)
        return volume
