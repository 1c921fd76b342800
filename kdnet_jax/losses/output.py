"""The output of a network, as the terms of a loss read it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdnet_jax.losses import channels
from kdnet_jax.models import heads

# Half a step of the maps that `predict` writes, 1 / 65535: less cannot be told from 0.
_SMALLEST: Final = 0.5 / 65535


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """What a network answers to a batch.

    What several terms read is computed once and kept, so that they share its gradient too.

    Attributes:
        logits: of the classes or regions.
        features: other arrays by name: "bottleneck", "decoder_0" (under the head), ..., and
            "logits_<level>" of coarser levels where they are supervised.
        head: what the channels of the logits are.
        projector: of a student's bottleneck to the width of its teacher's; `None`: the same width.
            Of a network that reconstructs, of the features under the head to its sequences.
    """

    logits: Float[Array, "b d h w k"]
    features: Mapping[str, Array]
    head: heads.Head
    projector: Float[Array, "c e"] | None = None
    _softened: dict[float, channels.Prediction] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @functools.cached_property
    def _volumes(self) -> channels.Volumes:
        return channels.split(self.logits)

    @functools.cached_property
    def prediction(self) -> channels.Prediction:
        """Its probabilities."""
        return channels.predict(self._volumes, self.head)

    def softened(self, temperature: float) -> channels.Prediction:
        """Returns its probabilities at a temperature T: softmax(z / T), or sigmoid(z / T)."""
        if temperature not in self._softened:
            tempered = tuple(z / temperature for z in self._volumes)
            self._softened[temperature] = channels.predict(tempered, self.head)
        return self._softened[temperature]

    @functools.cached_property
    def standardized(self) -> "Output":
        """The output whose logits z are (z - mean z) / (deviation of z) over k in each voxel."""
        z = self.logits - self.logits.mean(axis=-1, keepdims=True)
        # The square of the smallest deviation: equal logits have a gradient too.
        deviation = jnp.sqrt((z * z).mean(axis=-1, keepdims=True) + 1e-12)
        return Output(z / deviation, {}, self.head)

    @property
    def decided(self) -> Bool[Array, "b d h w k"]:
        """Whether each channel is the most probable class (the first of equals), or above 1/2."""
        if self.head.kind == "regions":
            return self.logits > 0
        return self.logits.argmax(axis=-1, keepdims=True) == jnp.arange(self.logits.shape[-1])

    @property
    def coarse(self) -> dict[int, "Output"]:
        """Its logits of coarser levels as outputs, finest first; level i is 2^i times coarser."""
        levels = sorted(
            int(name.removeprefix("logits_")) for name in self.features if "logits_" in name
        )
        return {level: Output(self.features[f"logits_{level}"], {}, self.head) for level in levels}


def of_maps(maps: Float[Array, "b d h w j"], head: heads.Head) -> Output:
    """Returns the output of a network whose probabilities are known, with no features.

    Args:
        maps: the probabilities of the head's outputs but for the background, 0 to 1.
        head: what they are. Of a softmax the background has what the others leave.
    """
    if head.kind == "regions":
        p = jnp.clip(maps, _SMALLEST, 1 - _SMALLEST)
        return Output(jnp.log(p) - jnp.log1p(-p), {}, head)
    background = 1 - maps.sum(axis=-1, keepdims=True)
    p = jnp.concatenate([background, maps], axis=-1)
    return Output(jnp.log(jnp.maximum(p, _SMALLEST)), {}, head)
