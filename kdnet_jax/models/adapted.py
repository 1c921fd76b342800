"""Networks of other tools in this project's conventions: its axes, its outputs, folds averaged.

nnU-Net's and MONAI's networks have axes, channels and labels of their own; `AdaptedConfig` says how
they lie, so that all else sees one more network.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.models import monai, nnunet

# Of an axis: the letter that this project's arrays grow to, and the opposite one.
_LINES = ("SI", "PA", "LR")
_MOST_MEMBERS = 100
# The one feature of several networks that are averaged (`agreement`).
AGREEMENT = "agreement"
# Of an edge in voxels or in mm.
N = TypeVar("N", int, float)


# A network of another tool as it is.
RawConfig = (
    nnunet.PlainConvConfig
    | nnunet.ResidualEncoderConfig
    | monai.DynUNetConfig
    | monai.SegResNetConfig
)


@dataclasses.dataclass(frozen=True)
class AdaptedConfig:
    """A network of another tool, and how it lies in this project's conventions.

    Attributes:
        network: the network as it is.
        head: what its outputs mean; see `unet.UNetConfig`.
        order: for each of our outputs, the network's own channel.
        axes: the letters to which its array axes grow, "SPL" as ours, "RAS", ...
        members: networks of this form, such as folds, whose probabilities are averaged. Then the
            only feature is their agreement: there is not one bottleneck.
    """

    network: RawConfig
    head: Literal["softmax", "regions"]
    order: tuple[int, ...]
    axes: str = "SPL"
    members: int = 1

    def __post_init__(self) -> None:
        """Raises UserError for what no network can be."""
        check_choice("head", self.head, ("softmax", "regions"))
        if sorted(self.order) != list(range(self.out_channels)):
            raise UserError(
                f"order is {self.order}; expected an order of the network's {self.out_channels} "
                "outputs."
            )
        # The line that each runs along: -1 for what is no such letter.
        if sorted("".join(_LINES).find(letter) // 2 for letter in self.axes) != [0, 1, 2]:
            raise UserError(f"axes is {self.axes!r}; expected three letters such as 'RAS'.")
        if not 1 <= self.members <= _MOST_MEMBERS:
            raise UserError(f"members is {self.members}; expected 1 to {_MOST_MEMBERS}.")

    @property
    def convolutions(self) -> str:
        """See `unet.UNetConfig`."""
        return self.network.convolutions

    @property
    def bfloat16(self) -> bool | None:
        """See `unet.UNetConfig`."""
        return self.network.bfloat16

    @property
    def out_channels(self) -> int:
        """See `unet.UNetConfig`."""
        return self.network.out_channels

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What each edge of the input, "d h w", must be divisible by."""
        return to_spl(self.network.divisor, self.axes)

    def module(self) -> nn.Module:
        """Returns the network as others see it."""
        return AdaptedNetwork(self)


class AdaptedNetwork(nn.Module):
    """`AdaptedConfig`'s network: "b d h w m" in SPL to (logits "b d h w k", features in SPL).

    Parameters: one tree per member, `member_0`, `member_1`, ...
    """

    config: AdaptedConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the network, or averages its members."""
        there, back = _ways(self.config.axes)
        x = there(x)
        answers = [self._member(index)(x) for index in range(self.config.members)]
        if len(answers) == 1:
            ((logits, features),) = answers
        else:
            # The features of one member say nothing about another's.
            members = [each for each, _ in answers]
            logits = mean_logits(members, self.config.head)
            features = {AGREEMENT: agreement(members, self.config.head)}
        found = {
            name: self._ordered(value) if name.startswith("logits_") else value
            for name, value in features.items()
        }
        return back(self._ordered(logits)), jax.tree.map(back, found)

    def _member(self, index: int) -> nn.Module:
        # `copy` gives the member its name within this module.
        return self.config.network.module().copy(name=f"member_{index}")

    def _ordered(self, logits: Array) -> Array:
        return jnp.concatenate([logits[..., c : c + 1] for c in self.config.order], axis=-1)


def join_members(members: tuple[PyTree, ...]) -> PyTree:
    """Returns the parameters of `AdaptedNetwork` from those of its members."""
    return {"params": {f"member_{i}": each["params"] for i, each in enumerate(members)}}


def mean_logits(
    members: list[Float[Array, "*grid k"]],
    head: Literal["softmax", "regions"],
    weights: Sequence[float] = (),
) -> Float[Array, "*grid k"]:
    """Returns logits whose probabilities are the mean of the members'.

    Args:
        members: their logits.
        head: what they mean.
        weights: of the members, above 0; none: all count alike.
    """
    stacked = jnp.stack(members)
    if head == "softmax":
        return _log_mean(jax.nn.log_softmax(stacked, axis=-1), weights)
    of_region, of_rest = (jax.nn.log_sigmoid(each) for each in (stacked, -stacked))
    return _log_mean(of_region, weights) - _log_mean(of_rest, weights)


def agreement(
    members: list[Float[Array, "*grid k"]],
    head: Literal["softmax", "regions"],
    weights: Sequence[float] = (),
) -> Float[Array, "*grid 1"]:
    """Returns how far the members agree at each voxel: 1 where they say the same, at least 0.

    `1 - sum_m w_m KL(p_m || p) / H(w)`, p their mean and H(w) the entropy of the weights (log n of
    n that count alike): the generalised Jensen-Shannon divergence, whose largest value is H(w)
    (Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory, 1991). The
    sum without weights is the disagreement of a deep ensemble (Lakshminarayanan et al., NeurIPS
    2017). Regions: the least over the regions, each with two outcomes.

    Args:
        members: their logits, of two or more.
        head: what they mean.
        weights: see `mean_logits`.
    """
    stacked = jnp.stack(members)
    if head == "softmax":
        log_p = jax.nn.log_softmax(stacked, axis=-1)[..., None, :]
    else:
        log_p = jnp.stack([jax.nn.log_sigmoid(stacked), jax.nn.log_sigmoid(-stacked)], axis=-1)
    # "n *grid 1" or "n *grid r"
    divergences = (jnp.exp(log_p) * (log_p - _log_mean(log_p, weights))).sum(axis=-1)
    given = weights or (1.0,) * len(members)
    shares = [each / sum(given) for each in given]
    largest = -sum(share * math.log(share) for share in shares)
    total = sum(share * each for share, each in zip(shares, divergences, strict=True))
    # Rounding may take it past its limits.
    return jnp.clip(1 - total / largest, 0, 1).min(axis=-1, keepdims=True)


def _log_mean(log_p: Array, weights: Sequence[float]) -> Array:
    if len(set(weights)) > 1:
        shares = jnp.asarray(weights).reshape(-1, *[1] * (log_p.ndim - 1)) / sum(weights)
        return jax.scipy.special.logsumexp(log_p, axis=0, b=shares)
    return jax.scipy.special.logsumexp(log_p, axis=0) - math.log(log_p.shape[0])


def to_spl(edges: tuple[N, N, N], axes: str) -> tuple[N, N, N]:
    """Returns edges along `axes` as edges along superior, posterior and left."""
    d, h, w = (edges[_sources(axes).index(line)] for line in range(3))
    return d, h, w


def from_spl(edges: tuple[N, N, N], axes: str) -> tuple[N, N, N]:
    """Returns edges along superior, posterior and left as edges along `axes`."""
    d, h, w = (edges[line] for line in _sources(axes))
    return d, h, w


def _sources(axes: str) -> list[int]:
    """Returns, for each of `axes`, which of S, P and L runs along the same line."""
    return [next(i for i, line in enumerate(_LINES) if letter in line) for letter in axes]


def _ways(axes: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns the way from SPL to `axes` for "b d h w c" arrays, and the way back."""
    flipped = [i + 1 for i, letter in enumerate(axes) if letter not in "SPL"]
    order = (0, *(i + 1 for i in _sources(axes)), 4)
    inverse = tuple(sorted(range(5), key=lambda i: order[i]))

    def there(x: Array) -> Array:
        return jnp.flip(x.transpose(order), flipped)

    def back(x: Array) -> Array:
        return jnp.flip(x, flipped).transpose(inverse)

    return there, back
