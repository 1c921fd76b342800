"""The 3-D U-Net of KD-Net, and nnU-Net's form of it, behind one interface."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.models import layers

Convolutions = Literal["auto", "native", "onednn", "planes", "blocks"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """What a U-Net looks like; the number of input sequences follows from the input.

    The defaults are KD-Net's (Hu et al., MICCAI 2020, figure 1): five levels joined by max-pooling
    and trilinear upsampling, two blocks a level and three at the last full-resolution one.

    Attributes:
        widths: channels of each level, finest first; the number of levels.
        blocks: blocks (conv, norm, LeakyReLU) a level.
        last_blocks: blocks of the finest decoder level.
        down: "max_pool", or "strided": a learned 2^3 convolution of stride 2 (computed as
            space-to-depth and a 1x1x1 convolution).
        up: "trilinear", or "learned": a transposed 2^3 convolution of stride 2 (likewise).
        head: what the outputs mean: "softmax" over a task's classes, or "regions": a sigmoid for
            each of its regions (`heads.Head`).
        deep_supervision: logits also at the coarser decoder levels, under "logits_1", ... of the
            features.
        bfloat16: compute the network in bfloat16; parameters, statistics of norms and logits stay
            float32. `None`: on GPU and TPU, not on CPU, where it is slower.
        remat: keep only the convolutions' results for the gradient, and compute all else from them
            again (normalisation, pooling, upsampling): 0.4 to 0.5 of the memory, little more time.
            Without effect on CPU, where XLA merges what is computed twice.
        convolutions: how they are computed, see `layers.convolve`; "auto" chooses by backend.
        out_channels: of the logits; `len(heads.Head(task, head).outputs)`.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    blocks: int = 2
    last_blocks: int = 3
    down: Literal["max_pool", "strided"] = "max_pool"
    up: Literal["trilinear", "learned"] = "trilinear"
    head: Literal["softmax", "regions"] = "softmax"
    deep_supervision: bool = False
    bfloat16: bool | None = None
    remat: bool = False
    convolutions: Convolutions = "auto"
    out_channels: int = 4

    def __post_init__(self) -> None:
        """Raises UserError for a setting that no network can have."""
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise UserError(f"model.widths is {self.widths}: give at least two positive numbers.")
        for key, allowed in _CHOICES.items():
            check_choice(f"model.{key}", getattr(self, key), allowed)
        for key in ("blocks", "last_blocks", "out_channels"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}: give at least 1.")

    @property
    def divisor(self) -> int:
        """What every edge of the input must be divisible by."""
        return 2 ** (len(self.widths) - 1)

    def module(self) -> "UNet":
        """Returns the network."""
        return UNet(self)


_CHOICES = {
    "down": ("max_pool", "strided"),
    "up": ("trilinear", "learned"),
    "head": ("softmax", "regions"),
    "convolutions": ("auto", *layers.FORMS),
}


class UNet(nn.Module):
    """U-Net: a function of (parameters, input) with named features; no state besides parameters.

    `init(key, x)` and `apply(params, x)` with x "b d h w m" float32, every edge divisible by
    `config.divisor`. Returns (logits "b d h w k" float32, features): "bottleneck" (the last
    block's output at the coarsest level), "decoder_0" (the features under the head), "decoder_1",
    ..., and "logits_1", ... under deep supervision.
    """

    config: UNetConfig

    def setup(self) -> None:
        """Fixes the form of the convolutions and the compute type."""
        self.block_options = block_options(self.config)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the network."""
        if self.config.remat:
            kept = jax.checkpoint_policies.save_only_these_names(layers.CONVOLUTION)
            return nn.remat(UNet._network, policy=kept)(self, x)
        return self._network(x)

    def _network(self, x: Array) -> tuple[Array, dict[str, Array]]:
        config, depth = self.config, len(self.config.widths)
        features: dict[str, Array] = {}
        skips = []
        for level in range(depth):
            if level:
                x = self._down(x, level)
            x = self._blocks(x, level, config.blocks, "encoder")
            skips.append(x)
        features["bottleneck"] = x
        for level in reversed(range(depth - 1)):
            x = jnp.concatenate([self._up(x, level), skips[level]], axis=-1)
            blocks = config.blocks if level else config.last_blocks
            x = self._blocks(x, level, blocks, "decoder")
            features[f"decoder_{level}"] = x
            # As nnU-Net: no head at the coarsest decoder level.
            if config.deep_supervision and 0 < level < depth - 2:
                features[f"logits_{level}"] = self._head(x, f"head_{level}")
        return self._head(x, "head"), features

    def _blocks(self, x: Array, level: int, count: int, name: str) -> Array:
        for index in range(count):
            block = layers.Block(
                self.config.widths[level], name=f"{name}_{level}_{index}", **self.block_options
            )
            x = block(x)
        return x

    def _down(self, x: Array, level: int) -> Array:
        if self.config.down == "max_pool":
            return layers.max_pool(x)
        conv = layers.Conv(
            self.config.widths[level], size=1, name=f"down_{level}", **self.block_options
        )
        return conv(layers.space_to_depth(x))

    def _up(self, x: Array, level: int) -> Array:
        if self.config.up == "trilinear":
            return layers.upsample_trilinear(x)
        conv = layers.Conv(
            8 * self.config.widths[level], size=1, name=f"up_{level}", **self.block_options
        )
        return layers.depth_to_space(conv(x))

    def _head(self, x: Array, name: str) -> Array:
        conv = layers.Conv(self.config.out_channels, size=1, name=name, **self.block_options)
        return conv(x).astype(jnp.float32)


def compute_type(config: Any) -> Any:
    """Returns the type that the network computes in, on the present backend."""
    chosen = jax.default_backend() != "cpu" if config.bfloat16 is None else config.bfloat16
    return jnp.bfloat16 if chosen else jnp.float32


def block_options(config: Any) -> dict[str, Any]:
    """Returns the form of the convolutions and the compute type, for `layers`."""
    return {"form": layers.choose_form(config.convolutions), "dtype": compute_type(config)}


def describe(config: Any) -> str:
    """Returns a sentence on what was chosen for the present backend."""
    kind, form = compute_type(config), layers.choose_form(config.convolutions)
    if kind != jnp.float32 and form == "onednn":
        form = "planes"  # as `layers.convolve` does
    return f"The network computes in {jnp.dtype(kind).name}, convolutions {form}."
