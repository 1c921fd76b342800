"""The 3-D U-Net of KD-Net, and nnU-Net's form of it, behind one interface."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.models import layers
from kdnet_jax.models.kernels import build

Convolutions = Literal["auto", layers.Asked]
Triples = tuple[layers.Triple, ...]
_HALVES: layers.Triple = (2, 2, 2)
_CUBE: layers.Triple = (3, 3, 3)
# What `plan` tries to keep of every edge at the coarsest level, in voxels, the first if it can.
_COARSEST_EDGES = (4, 2, 1)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """What a U-Net looks like; the number of input sequences follows from the input.

    The defaults are KD-Net's (Hu et al., MICCAI 2020, figure 1): five levels joined by max-pooling
    and trilinear upsampling, two blocks a level and three at the last full-resolution one.

    Attributes:
        widths: channels of each level, finest first; the number of levels.
        blocks: blocks (conv, norm, LeakyReLU) a level.
        last_blocks: blocks of the finest decoder level.
        down: "max_pool", or "strided": a learned convolution whose kernel is its stride (computed
            as space-to-depth and a 1x1x1 convolution).
        up: "trilinear", or "learned": a transposed convolution whose kernel is its stride.
        head: what the outputs mean: "softmax" over a task's classes, or "regions": a sigmoid for
            each of its regions.
        deep_supervision: logits also at the coarser decoder levels, under "logits_1", ... of the
            features.
        bfloat16: compute the network in bfloat16; parameters, statistics of norms and logits stay
            float32. On a CPU that has bfloat16 only the products of convolutions, which are added
            in float32. "auto": on GPU and TPU, not on CPU.
        remat: keep only the convolutions' results for the gradient, and compute all else from them
            again (normalisation, pooling, upsampling): 0.4 to 0.5 of the memory, little more time.
            Without effect on CPU, where XLA merges what is computed twice.
        convolutions: how they are computed: "native" by XLA, "onednn" on a CPU, "planes" as sums of
            2-D ones on a CPU without it, "blocks" as native, with the input's voxels moved into
            channels; "auto" chooses by backend.
        strides: 1 or 2 along d, h and w, of each level below the finest, as ((1,2,2),(2,2,2));
            empty: 2 everywhere.
        kernels: edges of each level's convolutions, 1 or 3; empty: 3 everywhere.
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
    strides: Triples = ()
    kernels: Triples = ()
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
        levels = len(self.widths)
        self._read_triples("strides", levels - 1, "levels below the finest", (1, 2))
        self._read_triples("kernels", levels, "levels", (1, 3))

    def _read_triples(self, key: str, count: int, what: str, allowed: tuple[int, int]) -> None:
        given = getattr(self, key)
        fits = not given or len(given) == count
        for each in given:
            fits = fits and isinstance(each, tuple | list) and len(each) == 3
            fits = fits and all(edge in allowed for edge in each)
        if not fits:
            few, many = allowed
            raise UserError(
                f"model.{key} is {given}: give three of {few} or {many} for each of the {count} "
                f"{what} of model.widths, such as {((few, many, many),) * count}, or () to leave "
                "them to the voxels' spacing."
            )
        object.__setattr__(self, key, tuple(tuple(map(int, each)) for each in given))

    @property
    def level_strides(self) -> Triples:
        """Of each level below the finest."""
        return self.strides or (_HALVES,) * (len(self.widths) - 1)

    @property
    def level_kernels(self) -> Triples:
        """Edges of the convolutions of each level."""
        return self.kernels or (_CUBE,) * len(self.widths)

    @property
    def divisor(self) -> layers.Triple:
        """What each edge of the input, "d h w", must be divisible by."""
        d, h, w = (math.prod(axis) for axis in zip(*self.level_strides, strict=True))
        return d, h, w

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

    `init(key, x)` and `apply(params, x)` with x "b d h w m" float32, edges divisible by
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
                self.config.widths[level],
                self.config.level_kernels[level],
                name=f"{name}_{level}_{index}",
                **self.block_options,
            )
            x = block(x)
        return x

    def _down(self, x: Array, level: int) -> Array:
        stride = self.config.level_strides[level - 1]
        if self.config.down == "max_pool":
            return layers.max_pool(x, stride)
        conv = self._pointwise(self.config.widths[level], f"down_{level}")
        return conv(layers.space_to_depth(x, stride))

    def _up(self, x: Array, level: int) -> Array:
        stride = self.config.level_strides[level]
        if self.config.up == "trilinear":
            return layers.upsample_trilinear(x, stride)
        conv = self._pointwise(math.prod(stride) * self.config.widths[level], f"up_{level}")
        return layers.depth_to_space(conv(x), stride)

    def _head(self, x: Array, name: str) -> Array:
        return self._pointwise(self.config.out_channels, name)(x).astype(jnp.float32)

    def _pointwise(self, features: int, name: str) -> layers.Conv:
        return layers.Conv(features, (1, 1, 1), name=name, **self.block_options)


def plan(spacing: Sequence[float], patch: Sequence[int], levels: int) -> tuple[Triples, Triples]:
    """Returns the strides of each level below the finest, and the kernels of each level.

    By nnU-Net's rule (Isensee et al., 2021): an axis is halved where its voxels are less than twice
    as long as the shortest of those that can be, and the patch keeps 4 voxels along it; a kernel
    has one voxel along an axis until its voxels are less than twice as long as the shortest; the
    coarsest level's has three. Where a patch is too small for so many levels it keeps 2 voxels,
    or 1.

    Args:
        spacing: edges of a voxel at the finest level, "d h w" in mm.
        patch: "d h w" in voxels.
        levels: of the network.

    Raises:
        UserError: the patch cannot be halved so often.
    """
    for least in _COARSEST_EDGES:
        strides, kernels = _halvings(spacing, patch, levels - 1, least)
        if len(strides) == levels - 1:
            return strides, (*kernels, _CUBE)
    raise UserError(
        f"model.widths has {levels} levels, but a patch of {tuple(patch)} voxels (loader.patch) of "
        f"{tuple(spacing)} mm (data.spacing) can be halved {len(strides)} times only. Give "
        f"{len(strides) + 1} widths, or a larger patch."
    )


def _halvings(
    spacing: Sequence[float], patch: Sequence[int], most: int, least: int
) -> tuple[Triples, Triples]:
    """Returns the strides of up to `most` halvings, and the kernels before each."""
    lengths, edges = list(spacing), list(patch)
    strides: list[layers.Triple] = []
    kernels = [(1, 1, 1)]
    while len(strides) < most:
        large = [axis for axis in range(3) if edges[axis] >= 2 * least]
        shortest = min((lengths[axis] for axis in large), default=math.inf)
        halved = [axis for axis in large if lengths[axis] / shortest < 2]
        # One axis alone is halved only where it keeps more than the least.
        if not halved or (len(halved) == 1 and edges[halved[0]] < 3 * least):
            break
        near = [length / min(lengths) < 2 for length in lengths]
        d, h, w = (3 if near[axis] else kernels[-1][axis] for axis in range(3))
        kernels.append((d, h, w))
        d, h, w = (2 if axis in halved else 1 for axis in range(3))
        strides.append((d, h, w))
        lengths = [length * times for length, times in zip(lengths, strides[-1], strict=True)]
        edges = [-(-edge // times) for edge, times in zip(edges, strides[-1], strict=True)]
    return tuple(strides), tuple(kernels[1:])


@runtime_checkable
class Computing(Protocol):
    """A network's choice of how it computes: `UNetConfig`, and the configs of other tools."""

    @property
    def bfloat16(self) -> bool | None:
        """See `UNetConfig`."""
        ...

    @property
    def convolutions(self) -> str:
        """See `UNetConfig`."""
        ...


class BlockOptions(TypedDict):
    """The form of the convolutions and the type of activations."""

    form: layers.Form
    dtype: DTypeLike


def block_options(config: Computing) -> BlockOptions:
    """Returns the form of the convolutions and the type of activations, on the present backend."""
    form = layers.choose_form(config.convolutions)
    half = jax.default_backend() != "cpu" if config.bfloat16 is None else config.bfloat16
    if half and form == "onednn" and build.has_bfloat16():
        return {"form": "onednn_bfloat16", "dtype": jnp.float32}
    return {"form": form, "dtype": jnp.bfloat16 if half else jnp.float32}


def describe(config: Computing) -> str:
    """Returns a sentence on what was chosen for the present backend."""
    chosen = block_options(config)
    kind, form = jnp.dtype(chosen["dtype"]).name, chosen["form"]
    if form == "onednn_bfloat16":
        kind, form = "float32, with products in bfloat16", "onednn"
    elif kind != "float32" and form == "onednn":
        form = "planes"  # as `layers.convolve` does
    said = f"The network computes in {kind}, convolutions {form}."
    network = getattr(config, "network", config)  # what an `adapted.AdaptedConfig` adapts
    strides, kernels = getattr(network, "strides", ()), getattr(network, "kernels", ())
    if all(len(set(each)) == 1 for each in (*strides, *kernels)):
        return said
    said += f" Strides of its levels {_words(strides)}, kernels {_words(kernels)}."
    if form == "blocks":
        said += " Convolutions of other kernels than 3x3x3 are native."
    return said


def _words(triples: Triples) -> str:
    return " ".join("x".join(map(str, each)) for each in triples)
