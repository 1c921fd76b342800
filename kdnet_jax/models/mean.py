"""Mean of networks of any kinds: the weighted mean of their probabilities, as one network.

Its members may see different sequences; each sees its own among those that the mean sees.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.models import adapted, unet


@dataclasses.dataclass(frozen=True)
class MeanConfig:
    """Networks whose probabilities are averaged.

    Attributes:
        members: the networks; their heads agree.
        channels: of each member, the positions of its sequences among those of the mean.
        weights: of each member, above 0; their sum does not matter.
    """

    members: tuple[unet.UNetConfig | adapted.AdaptedConfig, ...]
    channels: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    @property
    def head(self) -> Literal["softmax", "regions"]:
        """See `unet.UNetConfig`."""
        return self.members[0].head

    @property
    def convolutions(self) -> str:
        """See `unet.UNetConfig`."""
        return self.members[0].convolutions

    @property
    def bfloat16(self) -> bool | None:
        """See `unet.UNetConfig`."""
        return self.members[0].bfloat16

    @property
    def out_channels(self) -> int:
        """See `unet.UNetConfig`."""
        return self.members[0].out_channels

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What each edge of the input, "d h w", must be divisible by."""
        every = [each.divisor for each in self.members]
        d, h, w = (math.lcm(*edges) for edges in zip(*every, strict=True))
        return d, h, w

    def module(self) -> nn.Module:
        """Returns the network as others see it."""
        return MeanNetwork(self)


class MeanNetwork(nn.Module):
    """`MeanConfig`'s network: "b d h w m" to (logits "b d h w k", {"agreement": "b d h w 1"}).

    Parameters: one tree per member, `member_0`, `member_1`, ... (`adapted.join_members`).
    """

    config: MeanConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the members; the features of one say nothing about another's."""
        logits = []
        for index, (member, channels) in enumerate(
            zip(self.config.members, self.config.channels, strict=True)
        ):
            own = jnp.concatenate([x[..., c : c + 1] for c in channels], axis=-1)
            # `copy` gives the member its name within this module.
            logits.append(member.module().copy(name=f"member_{index}")(own)[0])
        given = logits, self.config.head, self.config.weights
        return adapted.mean_logits(*given), {adapted.AGREEMENT: adapted.agreement(*given)}
