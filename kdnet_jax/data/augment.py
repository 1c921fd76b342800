"""Augmentation on the device, inside the step: pure functions of a key and a batch.

One draw serves teacher, student and label: the step augments the full stack once and slices it
afterwards. Background voxels (exactly 0 after preparation) stay 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from kdnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """What is drawn for each sample.

    Attributes:
        flip_axes: axes mirrored with probability 1/2 each: "d" (up-down), "h" (front-back),
            "w" (left-right).
        scale: intensities of each sequence times 1 + U(-scale, scale).
        shift: plus U(-shift, shift), in units of the z-score.
        noise: plus Gaussian noise of a standard deviation drawn from U(0, noise).
    """

    flip_axes: str = "dhw"
    scale: float = 0.1
    shift: float = 0.1
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError for an unknown axis or a negative strength."""
        unknown = set(self.flip_axes) - set("dhw")
        if unknown:
            raise UserError(
                f"augment.flip_axes is {self.flip_axes!r}: give letters out of d, h and w, "
                "or an empty text."
            )
        for key in ("scale", "shift", "noise"):
            if getattr(self, key) < 0:
                raise UserError(f"augment.{key} is {getattr(self, key)}: give 0 or more.")


def augment(
    key: jax.Array,
    image: Float[Array, "b d h w m"],
    label: Integer[Array, "b d h w"],
    options: AugmentOptions,
) -> tuple[Float[Array, "b d h w m"], Integer[Array, "b d h w"]]:
    """Returns an augmented copy; the geometry of image and label is the same."""
    flip_key, intensity_key, noise_key = jax.random.split(key, 3)
    image, label = _flip(flip_key, image, label, options.flip_axes)
    brain = image != 0
    image = _intensity(intensity_key, image, options.scale, options.shift)
    image = _noise(noise_key, image, options.noise)
    return jnp.where(brain, image, 0), label


def _flip(key: jax.Array, image: Array, label: Array, axes: str) -> tuple[Array, Array]:
    draws = jax.random.bernoulli(key, 0.5, (3, image.shape[0]))
    for axis, draw in zip("dhw", draws, strict=True):
        if axis in axes:
            dimension = 1 + "dhw".index(axis)
            image = jnp.where(_per_sample(draw, image), jnp.flip(image, dimension), image)
            label = jnp.where(_per_sample(draw, label), jnp.flip(label, dimension), label)
    return image, label


def _intensity(key: jax.Array, image: Array, scale: float, shift: float) -> Array:
    shape = (image.shape[0], 1, 1, 1, image.shape[-1])
    scale_key, shift_key = jax.random.split(key)
    factor = 1 + jax.random.uniform(scale_key, shape, minval=-scale, maxval=scale)
    offset = jax.random.uniform(shift_key, shape, minval=-shift, maxval=shift)
    return image * factor + offset


def _noise(key: jax.Array, image: Array, strength: float) -> Array:
    if strength == 0:
        return image
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, (image.shape[0], 1, 1, 1, 1), maxval=strength)
    return image + level * jax.random.normal(noise_key, image.shape)


def _per_sample(draw: Array, like: Array) -> Array:
    return draw.reshape((-1,) + (1,) * (like.ndim - 1))
