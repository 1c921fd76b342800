"""3-D layers in the forms that each backend runs fast, each equal to the plain `lax` operation.

XLA's 3-D convolutions on CPU, and strided or transposed ones on every backend, are many times
slower than the same arithmetic in other forms (openxla/xla#34273, jax-ml/jax#31662).
`docs/performance.md` has the figures.
"""

import functools
import logging
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from kdnet_jax.errors import UserError
from kdnet_jax.models.kernels import build, ops
from kdnet_jax.parallel import halo

_LOG = logging.getLogger(__name__)

# How a convolution is computed, see `convolve`: a form that one can ask for, and any. The type of
# the products has a setting of its own.
Asked = Literal["native", "onednn", "planes", "blocks"]
Form = Literal[Asked, "onednn_bfloat16"]
# A number, or a symbol of `jax.export`, which is no int.
Size = Any
# Of each axis.
Triple = tuple[int, int, int]
FORMS: tuple[Asked, ...] = get_args(Asked)
ONEDNN: tuple[Form, ...] = ("onednn", "onednn_bfloat16")
# Up to this many input channels it is faster to stack the three depth taps as channels of one
# 2-D convolution than to add three convolutions.
_STACK_TAPS_UP_TO = 8
# Up to this many input channels "blocks" moves voxels into channels.
_BLOCKS_UP_TO = 4
# Of instance norm, and of the LeakyReLU that follows it in a block.
EPSILON, SLOPE = 1e-5, 0.01
# Under this name a convolution's result is known to `jax.checkpoint`.
CONVOLUTION = "convolution"
_TWO: Triple = (2, 2, 2)


def choose_form(setting: str) -> Form:
    """Returns the form for `setting`, "auto" or the name of a form, on the present backend.

    "auto" is "native" on a GPU and on a TPU; on a CPU "onednn" where the kernels are available and
    there is one device, else "planes", with a note that says why.

    Raises:
        UserError: "onednn" is requested where it is unavailable.
    """
    backend = jax.default_backend()
    for form in FORMS:
        if setting == form != "onednn":
            return form
    if backend != "cpu" and setting == "auto":
        return "native"
    reason = _reason_against_onednn(backend)
    if not reason:
        return "onednn"
    if setting == "onednn":
        raise UserError(f"model.convolutions is onednn, but that is unavailable: {reason}.")
    _note(reason)
    return "planes"


def _reason_against_onednn(backend: str) -> str:
    if backend != "cpu":
        return f"it is for CPUs, and this is a {backend}"
    if jax.device_count() > 1:
        return f"it serves one device, and there are {jax.device_count()}"
    return build.reason_against()


@functools.cache
def _note(reason: str) -> None:
    _LOG.warning(
        f"Note: convolutions take their slower form, two to three times the time, because oneDNN's "
        f"is unavailable: {reason}."
    )


def convolve(
    x: Float[Array, "b d h w c"],
    kernel: Float[Array, "kd kh kw c o"],
    bias: Float[Array, " o"],
    form: Form,
) -> Float[Array, "b d h w o"]:
    """Convolves with stride 1 and zero padding that keeps the size (odd kernels), adds a bias.

    Args:
        x: the input.
        kernel: the weights.
        bias: of each output channel.
        form: "native" XLA's 3-D convolution, fast on GPU and TPU; "onednn" oneDNN's, fast on CPU,
            float32 only (bfloat16 takes "planes"); "onednn_bfloat16" the same whose products are of
            factors rounded to bfloat16; "planes" a sum over the depth taps of 2-D
            convolutions, the faster of XLA's own on CPU; "blocks" as native, but an input of few
            channels is first moved into blocks of 2x2x2 voxels, which fills more of a TPU's 128
            lanes, at eight times the arithmetic; kernels of 3x3x3 alone, others are native.
    """
    pointwise = kernel.shape[:3] == (1, 1, 1)
    if form in ONEDNN and x.dtype == jnp.float32:
        # A pointwise one waits for memory, so rounded factors would gain nothing. It is oneDNN's
        # because XLA computes the gradient that comes from the loss anew for each of its products.
        return ops.convolve(x, kernel, bias, form == "onednn_bfloat16" and not pointwise)
    if pointwise:
        return jnp.einsum("bdhwc,co->bdhwo", x, kernel[0, 0, 0]) + bias
    if form in ("planes", *ONEDNN):
        return _convolve_planes(x, kernel) + bias
    if form == "blocks" and _fits_blocks(x.shape, kernel.shape):
        return depth_to_space(_convolve_native(space_to_depth(x), _block_kernel(kernel))) + bias
    return _convolve_native(x, kernel) + bias


def _convolve_native(
    x: Float[Array, "b d h w c"], kernel: Float[Array, "kd kh kw c o"]
) -> Float[Array, "b d h w o"]:
    margins = [(edge // 2, edge // 2) for edge in kernel.shape[:3]]
    if halo.parts() > 1 and margins[0][0]:
        x, margins[0] = halo.with_neighbours(x, margins[0][0]), (0, 0)
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), margins, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _fits_blocks(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    even = all(edge % 2 == 0 for edge in x[1:4])
    return even and x[-1] <= _BLOCKS_UP_TO and kernel[:3] == (3, 3, 3)


def _block_kernel(kernel: Float[Array, "3 3 3 c o"]) -> Float[Array, "3 3 3 c8 o8"]:
    """Returns the kernel that does among 2x2x2 blocks what `kernel` does among voxels.

    Along an axis, output voxel p (0 or 1) of a block reads at p - 1, p and p + 1: voxel q of the
    block t - 1 (t = 0, 1, 2) by tap 2 (t - 1) + q - p + 1, where there is such a tap.
    """
    taps, q, p = jnp.meshgrid(jnp.arange(3), jnp.arange(2), jnp.arange(2), indexing="ij")
    tap = 2 * (taps - 1) + q - p + 1
    # chosen[t, q, p, k]: 1 where tap k of the kernel joins voxel q of block t to output voxel p.
    chosen = (tap[..., None] == jnp.arange(3)).astype(kernel.dtype)
    wide = jnp.einsum(
        "aqpk,brsl,cuvm,klmio->abcqruipsvo", chosen, chosen, chosen, kernel, precision="highest"
    )
    c, o = kernel.shape[3:]
    # "3 3 3 q r u c p s v o" -> "3 3 3 (q r u c) (p s v o)"
    return wide.reshape(3, 3, 3, 8 * c, 8 * o)


def _convolve_planes(
    x: Float[Array, "b d h w c"], kernel: Float[Array, "kd kh kw c o"]
) -> Float[Array, "b d h w o"]:
    b, d, h, w, c = x.shape
    taps = kernel.shape[0]
    # For each depth tap, what it reads: "b d h w c".
    padded = halo.with_neighbours(x, taps // 2)
    shifted = [padded[:, tap : tap + d] for tap in range(taps)]
    if c <= _STACK_TAPS_UP_TO:
        # "(b d) h w (taps c)" by a kernel "kh kw (taps c) o"
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


def space_to_depth(
    x: Float[Array, "b d h w c"], stride: Triple = _TWO
) -> Float[Array, "b e i j c8"]:
    """Moves each block of `stride` voxels into channels.

    Followed by a 1x1x1 convolution it is a convolution whose kernel and stride are `stride`.
    """
    # "b e sd i sh j sw c" -> "b e i j sd sh sw c" -> "b e i j (sd sh sw c)"
    blocks = _in_blocks(x, stride).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return blocks.reshape(*blocks.shape[:4], math.prod(stride) * x.shape[-1])


def depth_to_space(
    x: Float[Array, "b d h w c8"], stride: Triple = _TWO
) -> Float[Array, "b e i j c"]:
    """Inverse of `space_to_depth`; after a 1x1x1 convolution: a transposed one of that stride."""
    # "b d h w (sd sh sw c)" -> "b d sd h sh w sw c" -> "b (d sd) (h sh) (w sw) c"
    b, d, h, w, c = x.shape
    c //= math.prod(stride)
    blocks = x.reshape(b, d, h, w, *stride, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(b, stride[0] * d, stride[1] * h, stride[2] * w, c)


def max_pool(x: Float[Array, "b d h w c"], stride: Triple = _TWO) -> Float[Array, "b e i j c"]:
    """Maximum of each block of `stride` voxels.

    The gradient of a tie is shared among the equal voxels (`nn.max_pool` gives it to one), and it
    is eight times faster on CPU than `nn.max_pool`'s.
    """
    return _in_blocks(x, stride).max(axis=(2, 4, 6))


def _in_blocks(x: Float[Array, "b d h w c"], stride: Triple) -> Float[Array, "b e sd i sh j sw c"]:
    b, d, h, w, c = x.shape
    sd, sh, sw = stride
    return x.reshape(b, d // sd, sd, h // sh, sh, w // sw, sw, c)


def upsample_trilinear(
    x: Float[Array, "b d h w c"], stride: Triple = _TWO
) -> Float[Array, "b e i j c"]:
    """Doubles the axes of stride 2 by linear interpolation between voxel centres, edges repeated.

    Equal to PyTorch's `interpolate(scale_factor=stride, mode="trilinear", align_corners=False)`.
    """
    for axis, times in enumerate(stride, start=1):
        x = _double_linear(x, axis) if times == 2 else x
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _double_linear(x: jax.Array, axis: int) -> jax.Array:
    before = halo.moved_on(x, _plane(x, 0, axis), axis)
    after = halo.moved_back(x, _plane(x, x.shape[axis] - 1, axis), axis)
    # "... n ..." -> pairs "... n 2 ..." -> "... (n 2) ..."
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _double_linear_forward(x: jax.Array, axis: int) -> tuple[jax.Array, None]:
    return _double_linear(x, axis), None


def _double_linear_backward(axis: int, saved: None, dy: jax.Array) -> tuple[jax.Array]:
    """Gathers what `_double_linear` spread; autodiff would pad and add whole volumes instead."""
    n = dy.shape[axis] // 2
    pairs = dy.reshape(*dy.shape[:axis], n, 2, *dy.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    # x[i] went into even[i] and odd[i], and a quarter of it into odd[i - 1] and even[i + 1]; at the
    # edges, where there is none, into its own even[0] or odd[n - 1].
    from_before = halo.moved_on(odd, _plane(even, 0, axis), axis)
    from_after = halo.moved_back(even, _plane(odd, n - 1, axis), axis)
    return (0.75 * (even + odd) + 0.25 * (from_before + from_after),)


_double_linear.defvjp(_double_linear_forward, _double_linear_backward)


def _plane(x: jax.Array, index: Size, axis: int) -> jax.Array:
    return lax.slice_in_dim(x, index, index + 1, axis=axis)


class Conv(nn.Module):
    """Convolution with stride 1, "same" padding and a bias.

    Attributes:
        features: output channels.
        edges: of the kernel, odd.
        form: see `convolve`.
        dtype: compute type; parameters stay float32.
    """

    features: int
    edges: Triple = (3, 3, 3)
    form: Form = "native"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w o"]:
        """Applies the convolution."""
        shape = (*self.edges, x.shape[-1], self.features)
        # He initialisation for LeakyReLU(SLOPE), as nnU-Net.
        init = nn.initializers.variance_scaling(2.0 / (1 + SLOPE**2), "fan_in", "normal")
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = (value.astype(self.dtype) for value in (x, kernel))
        # The bias is added in float32: its gradient, a sum over all voxels, is lost in bfloat16.
        y = convolve(x, kernel, bias, self.form).astype(self.dtype)
        return checkpoint_name(y, CONVOLUTION)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: Float[Array, "b d h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    slope: float,
    form: Form,
) -> Float[Array, "b d h w c"]:
    """Instance normalisation (eps 1e-5), scale and bias, LeakyReLU(slope).

    The gradient is written out so that it keeps `x` as it came and two numbers per channel:
    left to itself, autodiff keeps several float32 volumes.

    Args:
        x: float32 or bfloat16; statistics are float32 in any case.
        scale: of each channel.
        bias: of each channel.
        slope: of the LeakyReLU below 0.
        form: see `convolve`: oneDNN's take the CPU kernel, every other XLA's operations.
    """
    if form in ONEDNN and x.dtype == jnp.float32:
        # Without a gradient x is not read again.
        return ops.normalise(x, scale, bias, EPSILON, slope, in_place=True)[0]
    return _normalise_forward(x, scale, bias, slope, form)[0]


def _normalise_forward(
    x: Array, scale: Array, bias: Array, slope: float, form: Form
) -> tuple[Array, tuple[Array, ...]]:
    if form in ONEDNN and x.dtype == jnp.float32:
        y, mean, inverse = ops.normalise(x, scale, bias, EPSILON, slope)
        return y, (x, scale, bias, mean, inverse)
    x32 = x.astype(jnp.float32)
    mean = _mean(x32)
    variance = _mean(jnp.square(x32 - _spread(mean)))
    inverse = lax.rsqrt(variance + EPSILON)
    h = (x32 - _spread(mean)) * _spread(inverse * scale) + bias
    return jnp.where(h > 0, h, slope * h).astype(x.dtype), (x, scale, bias, mean, inverse)


def _normalise_backward(
    slope: float, form: Form, saved: tuple[Array, ...], dy: Array
) -> tuple[Array, Array, Array]:
    """With n voxels, h the value before the LeakyReLU and z = (x - mean) * inverse.

    g = dy LeakyReLU'(h); dbias = sum g; dscale = sum g z;
    dx = scale * inverse * (g - dbias / n - z dscale / n).
    """
    x, scale, bias, mean, inverse = saved
    if form in ONEDNN and x.dtype == jnp.float32:
        dx, dscale, dbias = ops.normalise_backward(dy, x, scale, bias, mean, inverse, slope)
        return dx, dscale.sum(axis=0), dbias.sum(axis=0)
    z = (x.astype(jnp.float32) - _spread(mean)) * _spread(inverse)
    g = dy.astype(jnp.float32)
    g = jnp.where(z * scale + bias > 0, g, slope * g)
    dbias, dscale = g.sum(axis=(1, 2, 3)), (g * z).sum(axis=(1, 2, 3))
    # Those of a split depth: all of it moves the statistics, but a device's gradient is its own
    # share, which `jax.shard_map` adds up for every parameter.
    from_bias, from_scale = halo.total(jnp.stack([dbias, dscale])) / _voxels(x)
    dx = (g - _spread(from_bias) - z * _spread(from_scale)) * _spread(inverse * scale)
    return dx.astype(x.dtype), dscale.sum(axis=0), dbias.sum(axis=0)


normalise.defvjp(_normalise_forward, _normalise_backward)


def _voxels(x: Float[Array, "b d h w c"]) -> Size:
    return halo.parts() * x.shape[1] * x.shape[2] * x.shape[3]


def _mean(x: Float[Array, "b d h w c"]) -> Float[Array, "b c"]:
    return halo.total(x.sum(axis=(1, 2, 3))) / _voxels(x)


def _spread(each: Float[Array, "b c"]) -> Float[Array, "b 1 1 1 c"]:
    return each[:, None, None, None, :]


class InstanceNorm(nn.Module):
    """`normalise` with a learned scale and bias.

    Attributes:
        slope: of the LeakyReLU that follows; 1 for none.
        form: see `convolve`.
    """

    slope: float = 1.0
    form: Form = "native"

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w c"]:
        """Applies the normalisation and the LeakyReLU."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return normalise(x, scale, bias, self.slope, self.form)


class Block(nn.Module):
    """Convolution, InstanceNorm, LeakyReLU(0.01): the unit of KD-Net and of nnU-Net."""

    features: int
    edges: Triple = (3, 3, 3)
    form: Form = "native"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w o"]:
        """Applies the block."""
        x = Conv(self.features, self.edges, self.form, self.dtype)(x)
        return InstanceNorm(slope=SLOPE, form=self.form)(x)


def parameter_count(params: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
