"""Augmentation of the intensities of one sample: noise, blur, contrast, low resolution, gamma.

Every function takes an image "m d h w", and most a value for each sequence. Statistics are those of
a sequence's brain within the patch, whatever share of it is background.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kdnet_jax.augment import spatial

# A Gaussian is cut at so many standard deviations (batchgeneratorsv2: 6 from end to end).
_TRUNCATE = 3.0
# The axes of an image but that of its sequences.
_VOXELS = (1, 2, 3)

Image = Float[Array, "m d h w"]
Brain = Bool[Array, "m d h w"]
PerSequence = Float[Array, " m"]


def noise(image: Image, key: PRNGKeyArray, deviation: Float[Array, ""]) -> Image:
    """Adds Gaussian noise, its own in each voxel and sequence."""
    return image + deviation * jax.random.normal(key, image.shape)


def brightness(image: Image, factor: PerSequence, offset: PerSequence) -> Image:
    """Returns the image times `factor` plus `offset`."""
    return image * spatial.spread(factor) + spatial.spread(offset)


def contrast(image: Image, brain: Brain, factor: PerSequence) -> Image:
    """Stretches about the mean by `factor`, cut to the former range."""
    mean = jnp.mean(image, _VOXELS, where=brain, keepdims=True)
    low, high = _range(image, brain)
    return jnp.clip((image - mean) * spatial.spread(factor) + mean, low, high)


def gamma(image: Image, brain: Brain, exponent: PerSequence, *, invert: bool) -> Image:
    """Maps the range to 0..1, raises to `exponent` and maps back; mean and deviation stay.

    With `invert` the same is done to -image: large values are spread where small ones were.
    """
    image = -image if invert else image
    low, high = _range(image, brain)
    span = jnp.maximum(high - low, 1e-7)
    curved = jnp.clip((image - low) / span, 0, 1) ** spatial.spread(exponent)
    mean = functools.partial(jnp.mean, axis=_VOXELS, where=brain, keepdims=True)
    deviation = functools.partial(jnp.std, axis=_VOXELS, where=brain, keepdims=True)
    ratio = deviation(image) / jnp.maximum(deviation(curved), 1e-7)
    out = (curved - mean(curved)) * ratio + mean(image)
    return -out if invert else out


def _range(image: Image, brain: Brain) -> tuple[Float[Array, "m 1 1 1"], Float[Array, "m 1 1 1"]]:
    low = jnp.min(image, _VOXELS, where=brain, initial=jnp.inf, keepdims=True)
    high = jnp.max(image, _VOXELS, where=brain, initial=-jnp.inf, keepdims=True)
    return low, high


def blur(image: Image, sigma: Float[Array, "m 3"], largest: float) -> Image:
    """Blurs by a Gaussian, mirrored at the border; a sequence with sigma 0 stays as it is.

    Args:
        image: a patch.
        sigma: standard deviation in voxels of each sequence along each axis.
        largest: the largest that is ever drawn; it says how far the kernel reaches.
    """
    radius = math.ceil(_TRUNCATE * largest)
    maps = [_blur_map(edge, sigma[:, axis], radius) for axis, edge in enumerate(image.shape[1:])]
    return jnp.where(spatial.spread(jnp.any(sigma > 0, 1)), _along_axes(image, maps), image)


def _blur_map(edge: int, sigma: PerSequence, radius: int) -> Float[Array, "m x y"]:
    steps = np.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (steps / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights /= weights.sum(1, keepdims=True)
    # [step, x]: the voxel that x + step is, mirrored at the border without repeating the border.
    sources = np.abs(np.arange(edge) + steps[:, None])
    sources = (edge - 1) - np.abs((edge - 1) - sources % max(2 * (edge - 1), 1))
    chosen = sources[..., None] == np.arange(edge)
    return jnp.einsum("ms,sxy->mxy", weights, chosen, precision=jax.lax.Precision.HIGHEST)


def low_resolution(image: Image, scale: PerSequence) -> Image:
    """Takes a grid of `scale` times the voxels per axis (nearest) and reads it back (trilinear).

    A sequence with scale 1 stays as it is.
    """
    maps = [_coarse_map(edge, scale) for edge in image.shape[1:]]
    return jnp.where(spatial.spread(scale < 1), _along_axes(image, maps), image)


def _coarse_map(edge: int, scale: PerSequence) -> Float[Array, "m x y"]:
    coarse = jnp.maximum(jnp.round(edge * scale), 1)[:, None]
    # Both grids cover the same length: voxel x lies at u on the coarse grid.
    u = jnp.clip((jnp.arange(edge) + 0.5) * (coarse / edge) - 0.5, 0, coarse - 1)
    low = jnp.floor(u)
    out = 0.0
    for corner, weight in ((low, 1 - (u - low)), (jnp.minimum(low + 1, coarse - 1), u - low)):
        source = jnp.minimum(jnp.floor((corner + 0.5) * (edge / coarse)), edge - 1)
        out += weight[..., None] * (source[..., None] == jnp.arange(edge))
    return out


def _along_axes(image: Image, maps: list[Float[Array, "m _ _"]]) -> Image:
    """Applies a linear map along each axis: matrix products, fast on every kind of device."""
    equations = ("mxd,mdhw->mxhw", "mxh,mdhw->mdxw", "mxw,mdhw->mdhx")
    for equation, along in zip(equations, maps, strict=True):
        # In full float32: a GPU's or TPU's default would round the image to 10 or 8 bits.
        image = jnp.einsum(equation, along, image, precision=jax.lax.Precision.HIGHEST)
    return image
