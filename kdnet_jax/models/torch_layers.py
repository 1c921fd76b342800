"""Layers as PyTorch defines them, for the networks of other tools: any kernel, stride and norm."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kdnet_jax.models import layers

Triple = tuple[int, int, int]
_ONE: Triple = (1, 1, 1)
# What oneDNN and the other forms of `layers.convolve` are for.
_FAST = ((1, 1, 1), (3, 3, 3))
# He initialisation for LeakyReLU(0.01), as nnU-Net and DynUNet.
HE = 2.0 / (1 + 0.01**2)
# PyTorch's own: uniform within 1 / sqrt(fan in), of a variance of 1 / (3 fan in).
TORCH = 1.0 / 3.0


class Conv(nn.Module):
    """Convolution, `torch.nn.Conv3d`.

    Attributes:
        features: output channels.
        kernel: its edges.
        stride: along each axis.
        padding: zeros on both sides of each axis; `None`: (kernel - 1) // 2.
        bias: add one.
        init: the variance of a new kernel, times its fan in; `TORCH` draws from a uniform
            distribution, and the bias too.
        dtype: compute type; parameters stay float32.
    """

    features: int
    kernel: Triple = (3, 3, 3)
    stride: Triple = _ONE
    padding: Triple | None = None
    bias: bool = True
    init: float = HE
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b e i j o"]:
        """Applies the convolution."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init(self.init), shape, jnp.float32)
        bias = jnp.zeros(self.features)
        if self.bias:
            init = _bias_init(self.init, math.prod(shape[:-1]))
            bias = self.param("bias", init, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        same = tuple((edge - 1) // 2 for edge in self.kernel)
        padding = same if self.padding is None else self.padding
        if self.stride == _ONE and padding == same and self.kernel in _FAST:
            return layers.convolve(x, kernel, bias, layers.choose_form("auto")).astype(self.dtype)
        y = lax.conv_general_dilated(
            x,
            kernel,
            self.stride,
            [(edge, edge) for edge in padding],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return (y + bias).astype(self.dtype)


class TransposedConv(nn.Module):
    """Transposed convolution whose stride is its kernel, `torch.nn.ConvTranspose3d`.

    No two of its outputs overlap, so it is a 1x1x1 convolution and a rearrangement.

    Attributes:
        features: output channels.
        stride: and kernel.
        bias: add one.
        dtype: compute type; parameters stay float32.
    """

    features: int
    stride: Triple
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b e i j o"]:
        """Applies the convolution."""
        shape = (*self.stride, x.shape[-1], self.features)
        kernel = self.param("kernel", _transposed_init, shape, jnp.float32)
        y = jnp.einsum("bdhwc,xyzco->bdxhywzo", x.astype(self.dtype), kernel.astype(self.dtype))
        edges = [size * times for size, times in zip(x.shape[1:4], self.stride, strict=True)]
        y = y.reshape(x.shape[0], *edges, self.features)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalisation over groups of channels, `torch.nn.GroupNorm`; statistics in float32.

    Attributes:
        groups: of channels; 0: each channel by itself, `torch.nn.InstanceNorm3d`.
        epsilon: added to the variance.
        affine: a learned scale and bias.
    """

    groups: int = 0
    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w c"]:
        """Applies the normalisation."""
        channels = x.shape[-1]
        groups = self.groups or channels
        x32 = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, channels // groups)
        mean = x32.mean(axis=(1, 2, 3, 5), keepdims=True)
        variance = jnp.square(x32 - mean).mean(axis=(1, 2, 3, 5), keepdims=True)
        y = ((x32 - mean) * lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
            y = y * scale + self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return y.astype(x.dtype)


def leaky_relu(x: Float[Array, "*grid"], slope: float) -> Float[Array, "*grid"]:
    """Returns x where it is positive, slope x elsewhere."""
    return jnp.where(x > 0, x, slope * x)


def average_pool(x: Float[Array, "b d h w c"], stride: Triple) -> Float[Array, "b e i j c"]:
    """Returns means over blocks of `stride` voxels; what fills no block is left out."""
    y = lax.reduce_window(
        x.astype(jnp.float32), 0.0, lax.add, (1, *stride, 1), (1, *stride, 1), "VALID"
    )
    return (y / math.prod(stride)).astype(x.dtype)


def triples(values: Sequence[int | Sequence[int]]) -> tuple[Triple, ...]:
    """Returns kernels or strides as three numbers each, whether one or three were given."""
    found = []
    for value in values:
        d, h, w = (value,) * 3 if isinstance(value, int) else value
        found.append((int(d), int(h), int(w)))
    return tuple(found)


def total_stride(strides: Sequence[Triple]) -> Triple:
    """Returns the product of strides along each axis."""
    d, h, w = (math.prod(axis) for axis in zip(*strides, strict=True))
    return d, h, w


def _kernel_init(scale: float) -> Any:
    kind = "uniform" if scale == TORCH else "normal"
    return nn.initializers.variance_scaling(scale, "fan_in", kind)


def _bias_init(scale: float, fan_in: int) -> Any:
    if scale != TORCH:
        return nn.initializers.zeros
    limit = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def _transposed_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> Array:
    # PyTorch takes the output channels of a transposed kernel for its fan in.
    deviation = math.sqrt(HE / (math.prod(shape[:3]) * shape[4]))
    return deviation * jax.random.normal(key, tuple(shape), dtype)
