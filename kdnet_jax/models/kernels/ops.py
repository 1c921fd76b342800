"""The functions of `kernels.cc` for JAX, with their gradients. float32, channels last, one device.

Call `build.load()` before the first trace. A mesh of several devices cannot split a foreign
function: there the forms of `models.layers` that are written in XLA's own operations serve.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import ffi
from jaxtyping import Array, Float

Volume = Float[Array, "b d h w c"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve(
    x: Volume,
    kernel: Float[Array, "kd kh kw c o"],
    bias: Float[Array, " o"],
    bfloat16: bool,
) -> Float[Array, "b d h w o"]:
    """Convolution with stride 1, zero padding that keeps the size (odd kernels), and a bias.

    With `bfloat16` the factors of its products, and of those of the gradient for x, are rounded to
    bfloat16 and the products added in float32; the processor must have `build.has_bfloat16`.
    """
    shape = jax.ShapeDtypeStruct((*x.shape[:4], kernel.shape[-1]), jnp.float32)
    return ffi.ffi_call("KdnetConvolve", shape)(x, kernel, bias, bfloat16=bfloat16)


def _convolve_forward(
    x: Array, kernel: Array, bias: Array, bfloat16: bool
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, bias, bfloat16), (x, kernel)


def _convolve_backward(
    bfloat16: bool, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array, Float[Array, " o"]]:
    x, kernel = saved
    like_x, like_kernel = (jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in saved)
    like_bias = jax.ShapeDtypeStruct(kernel.shape[-1:], jnp.float32)
    # Two calls: XLA omits the first where the gradient of the image is unused.
    dx = ffi.ffi_call("KdnetConvolveBackwardInput", like_x)(dy, kernel, bfloat16=bfloat16)
    dkernel, dbias = ffi.ffi_call("KdnetConvolveBackwardKernel", (like_kernel, like_bias))(x, dy)
    return dx, dkernel, dbias


convolve.defvjp(_convolve_forward, _convolve_backward)


def normalise(
    x: Volume,
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    slope: float,
    *,
    in_place: bool = False,
) -> tuple[Volume, Float[Array, "b c"], Float[Array, "b c"]]:
    """Instance normalisation, scale and bias, LeakyReLU(slope).

    With `in_place` the result takes the memory of x; XLA copies x before where it is still needed.

    Returns:
        The result, and of each sample and channel the mean and 1 / sqrt(variance + epsilon).
    """
    each = jax.ShapeDtypeStruct((x.shape[0], x.shape[-1]), jnp.float32)
    call = ffi.ffi_call(
        "KdnetNormalise",
        (jax.ShapeDtypeStruct(x.shape, jnp.float32), each, each),
        input_output_aliases={0: 0} if in_place else None,
    )
    y, mean, inverse = call(x, scale, bias, epsilon=np.float32(epsilon), slope=np.float32(slope))
    return y, mean, inverse


def normalise_backward(
    dy: Volume,
    x: Volume,
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mean: Float[Array, "b c"],
    inverse: Float[Array, "b c"],
    slope: float,
) -> tuple[Volume, Float[Array, "b c"], Float[Array, "b c"]]:
    """Returns the gradients of `normalise` for x, and for scale and bias of each sample."""
    each = jax.ShapeDtypeStruct(mean.shape, jnp.float32)
    call = ffi.ffi_call(
        "KdnetNormaliseBackward",
        (jax.ShapeDtypeStruct(x.shape, jnp.float32), each, each),
        # In place: dy is not read afterwards, and its memory is warm.
        input_output_aliases={0: 0},
    )
    dx, dscale, dbias = call(dy, x, scale, bias, mean, inverse, slope=np.float32(slope))
    return dx, dscale, dbias
