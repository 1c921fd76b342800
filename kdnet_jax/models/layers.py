"""3-D layers in the forms that XLA runs fast, each equal to the plain `lax` operation.

XLA's 3-D convolutions on CPU, and strided or transposed ones on every backend, are many times
slower than the same arithmetic as 2-D convolutions and reshapes (openxla/xla#34273,
jax-ml/jax#31662). `docs/performance.md` has the figures.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Up to this many input channels it is faster to stack the three depth taps as channels of one
# 2-D convolution than to add three convolutions.
_STACK_TAPS_UP_TO = 8


def convolve(
    x: Float[Array, "b d h w c"], kernel: Float[Array, "kd kh kw c o"], planes: bool
) -> Float[Array, "b d h w o"]:
    """Convolves with stride 1 and zero padding that keeps the size (odd kernels).

    Args:
        x: the input.
        kernel: the weights.
        planes: write it as a sum over the depth taps of 2-D convolutions (fast on CPU); otherwise
            the native 3-D convolution (fast on GPU and TPU).
    """
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.einsum("bdhwc,co->bdhwo", x, kernel[0, 0, 0])
    if not planes:
        return lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    return _convolve_planes(x, kernel)


def _convolve_planes(
    x: Float[Array, "b d h w c"], kernel: Float[Array, "kd kh kw c o"]
) -> Float[Array, "b d h w o"]:
    b, d, h, w, c = x.shape
    taps = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0), (0, 0), (0, 0)))
    shifted = [padded[:, tap : tap + d] for tap in range(taps)]
    if c <= _STACK_TAPS_UP_TO:
        stacked = jnp.concatenate(shifted, axis=-1).reshape(b * d, h, w, taps * c)
        kernel_2d = jnp.concatenate(list(kernel), axis=2)
        out = _convolve_2d(stacked, kernel_2d)
    else:
        out = functools.reduce(
            jnp.add,
            (
                _convolve_2d(plane.reshape(b * d, h, w, c), kernel[tap])
                for tap, plane in enumerate(shifted)
            ),
        )
    return out.reshape(b, d, h, w, -1)


def _convolve_2d(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"]
) -> Float[Array, "n h w o"]:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def space_to_depth(x: Float[Array, "b d h w c"]) -> Float[Array, "b d2 h2 w2 c8"]:
    """Moves each 2x2x2 block of voxels into channels.

    Followed by a 1x1x1 convolution it is a 2^3 convolution of stride 2.
    """
    b, d, h, w, c = x.shape
    blocks = x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c)
    return blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, d // 2, h // 2, w // 2, 8 * c)


def depth_to_space(x: Float[Array, "b d h w c8"]) -> Float[Array, "b d2 h2 w2 c"]:
    """Inverse of `space_to_depth`; after a 1x1x1 convolution: a transposed 2^3, stride 2 one."""
    b, d, h, w, c = x.shape
    blocks = x.reshape(b, d, h, w, 2, 2, 2, c // 8)
    return blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * d, 2 * h, 2 * w, c // 8)


def max_pool(x: Float[Array, "b d h w c"]) -> Float[Array, "b d2 h2 w2 c"]:
    """2x2x2 maximum with stride 2.

    The gradient of a tie is shared among the equal voxels (`nn.max_pool` gives it to one), and it
    is eight times faster on CPU than `nn.max_pool`'s.
    """
    b, d, h, w, c = x.shape
    return x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).max(axis=(2, 4, 6))


def upsample_trilinear(x: Float[Array, "b d h w c"]) -> Float[Array, "b d2 h2 w2 c"]:
    """Doubles d, h and w by linear interpolation between voxel centres, edges repeated.

    Equal to PyTorch's `interpolate(scale_factor=2, mode="trilinear", align_corners=False)`.
    """
    for axis in (1, 2, 3):
        x = _double_linear(x, axis)
    return x


def _double_linear(x: jax.Array, axis: int) -> jax.Array:
    n = x.shape[axis]
    before = jnp.concatenate(
        [lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis
    )
    after = jnp.concatenate(
        [lax.slice_in_dim(x, 1, n, axis=axis), lax.slice_in_dim(x, n - 1, n, axis=axis)], axis
    )
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


class Conv(nn.Module):
    """Convolution with stride 1, "same" padding and a bias.

    Attributes:
        features: output channels.
        size: edge of the cubic kernel, odd.
        planes: see `convolve`.
        dtype: compute type; parameters stay float32.
    """

    features: int
    size: int = 3
    planes: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w o"]:
        """Applies the convolution."""
        shape = (self.size, self.size, self.size, x.shape[-1], self.features)
        # He initialisation for LeakyReLU(0.01), as nnU-Net.
        init = nn.initializers.variance_scaling(2.0 / (1 + 0.01**2), "fan_in", "normal")
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        return convolve(x, kernel.astype(self.dtype), self.planes) + bias.astype(self.dtype)


class InstanceNorm(nn.Module):
    """Normalises each channel of each sample over its voxels; statistics in float32 (eps 1e-5)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w c"]:
        """Applies the normalisation with a learned scale and bias."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        mean = x32.mean(axis=(1, 2, 3), keepdims=True)
        variance = jnp.square(x32 - mean).mean(axis=(1, 2, 3), keepdims=True)
        return ((x32 - mean) * (lax.rsqrt(variance + 1e-5) * scale) + bias).astype(x.dtype)


class Block(nn.Module):
    """Convolution 3x3x3, InstanceNorm, LeakyReLU(0.01): the unit of KD-Net and of nnU-Net."""

    features: int
    planes: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w o"]:
        """Applies the block."""
        x = Conv(self.features, planes=self.planes, dtype=self.dtype)(x)
        return nn.leaky_relu(InstanceNorm()(x), 0.01)


def parameter_count(params: Any) -> int:
    """Returns the number of scalars in a tree of arrays."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
