"""Random numbers of the augmentation of a batch, and their application to one sample."""

import functools
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, PyTree

from kdnet_jax.augment import intensity, spatial
from kdnet_jax.core import typed

Chances = Mapping[str, spatial.Chance]

# Blur and low resolution take each sequence of a drawn sample with this probability (nnU-Net's
# p_per_channel).
_PER_SEQUENCE: Final = 0.5
# Streams by `fold_in`. 0 and 1 are those of the split in `draw`.
_NUMBERS, _BEND, _VOXELS, _SEQUENCES = 3, 4, 5, 6
# What the table of numbers holds; its order is that of the draws, so add at the end.
_ROWS: Final = (
    *("rotation?", "rotation", "zoom_out?", "zoom_out", "elastic?", "elastic"),
    *("scale?", "shift?", "noise?", "noise", "blur?", "blur", "blur of a sequence?"),
    *("contrast?", "contrast", "contrast below 1?"),
    *("low_resolution?", "low_resolution", "low_resolution of a sequence?"),
    *("gamma_inverted?", "gamma_inverted", "gamma_inverted below 1?"),
    *("gamma?", "gamma", "gamma below 1?"),
)
# Name -> numbers evenly from 0 to 1, "b m 3"; "?" in a name stands for "whether".
_Numbers = Mapping[str, Float[Array, "b m 3"]]


class Draws(NamedTuple):
    """What was drawn for a batch; every array has a leading axis "b" until samples are apart.

    Attributes:
        keys: of the noise of the voxels.
        geometry: see `spatial.Geometry`; None where it cannot be drawn.
        parts: name -> (whether it is drawn "b", its values), of the parts that can be drawn; in
            place of "whether", None stands for a part too cheap to leave out.
        flips: whether an axis is mirrored.
    """

    keys: PRNGKeyArray
    geometry: spatial.Geometry | None
    parts: dict[str, tuple[Bool[Array, "*b"] | None, PyTree]]
    flips: Bool[Array, "*b 3"]

    @property
    def is_cheap(self) -> bool:
        """Whether nothing is worth leaving out where it was not drawn."""
        return self.geometry is None and all(drawn is None for drawn, _ in self.parts.values())


def draw(
    key: jax.Array, samples: int, sequences: int, patch: tuple[int, ...], chances: Chances
) -> Draws:
    """Draws everything but the noise of the voxels.

    Args:
        key: of the step.
        samples: how many.
        sequences: of each.
        patch: its size.
        chances: of each part by the name of its option; "scale" and "shift" about 0.
    """
    flip_key, brightness_key, _ = jax.random.split(key, 3)
    shape = (samples, sequences)
    # One table: every call of the generator costs a tenth of a second of compilation.
    table = jax.random.uniform(jax.random.fold_in(key, _NUMBERS), (len(_ROWS), *shape, 3))
    numbers = dict(zip(_ROWS, table, strict=True))
    parts: typed.Json = {"brightness": (None, _brightness(brightness_key, numbers, chances))}
    for name, value in _values(numbers, chances).items():
        if chances[name].probability:
            parts[name] = (_whether(name, numbers, chances), value)
    return Draws(
        jax.random.split(jax.random.fold_in(key, _VOXELS), samples),
        _geometry(jax.random.fold_in(key, _BEND), numbers, patch, chances),
        parts,
        jax.random.bernoulli(flip_key, 0.5, (3, samples)).T,
    )


def of_sequences(key: jax.Array, samples: int, sequences: int) -> Float[Array, "b m"]:
    """Returns a number evenly from 0 to 1 for each sequence of each sample."""
    return jax.random.uniform(jax.random.fold_in(key, _SEQUENCES), (samples, sequences))


def _whether(name: str, numbers: _Numbers, chances: Chances) -> Bool[Array, " b"]:
    return numbers[f"{name}?"][:, 0, 0] < chances[name].probability


def _even(name: str, numbers: _Numbers, chances: Chances) -> Float[Array, "b m 3"]:
    _, low, high = chances[name]
    return low + (high - low) * numbers[name]


def _about_one(name: str, numbers: _Numbers, chances: Chances) -> Float[Array, "b m"]:
    """Draws below and above 1 equally often, evenly within each (nnU-Net's BGContrast)."""
    _, low, high = chances[name]
    if not low < 1 < high:
        return _even(name, numbers, chances)[..., 0]
    below, number = numbers[f"{name} below 1?"][..., 0] < 0.5, numbers[name][..., 0]
    return jnp.where(below, low + (1 - low) * number, 1 + (high - 1) * number)


def _values(numbers: _Numbers, chances: Chances) -> dict[str, Array]:
    """Returns what is applied to each sample where it is drawn."""
    # Each axis of each sequence has its own blur; all axes of a sequence have one resolution.
    blurred = numbers["blur of a sequence?"][..., :1] < _PER_SEQUENCE
    coarse = numbers["low_resolution of a sequence?"][..., 0] < _PER_SEQUENCE
    kept = _even("low_resolution", numbers, chances)[..., 0]
    return {
        "noise": _even("noise", numbers, chances)[:, 0, 0],
        "blur": jnp.where(blurred, _even("blur", numbers, chances), 0),
        "contrast": _about_one("contrast", numbers, chances),
        "low_resolution": jnp.where(coarse, kept, 1),
        "gamma_inverted": _about_one("gamma_inverted", numbers, chances),
        "gamma": _about_one("gamma", numbers, chances),
    }


def _brightness(
    key: jax.Array, numbers: _Numbers, chances: Chances
) -> tuple[Float[Array, "b m"], Float[Array, "b m"]]:
    """Returns factor and offset of the intensities."""
    drawn = []
    for own, name in zip(jax.random.split(key), ("scale", "shift"), strict=True):
        _, low, high = chances[name]
        value = jax.random.uniform(own, numbers[name + "?"].shape[:2], minval=low, maxval=high)
        drawn.append(jnp.where(_whether(name, numbers, chances)[:, None], value, 0))
    return 1 + drawn[0], drawn[1]


def _geometry(
    key: jax.Array, numbers: _Numbers, patch: tuple[int, ...], chances: Chances
) -> spatial.Geometry | None:
    names = ("rotation", "zoom_out", "elastic")
    if not any(chances[name].probability for name in names):
        return None
    rotated, zoomed, bent = (_whether(name, numbers, chances) for name in names)
    angles, factor, reach = (_even(name, numbers, chances)[:, 0] for name in names)
    matrix = spatial.rotation_matrix(
        jnp.where(rotated[:, None], jnp.radians(angles), 0)
    ) * jnp.where(zoomed, factor[:, 0], 1).reshape(-1, 1, 1)
    bend = None
    if chances["elastic"].probability:
        reach = jnp.where(bent, reach[:, 0], 0)
        bend = spatial.draw_bend(key, patch, reach)
    return spatial.Geometry(rotated | zoomed | bent, matrix, bend)


def apply(
    image: Float[Array, "D H W m"],
    label: Integer[Array, "D H W"],
    draws: Draws,
    *,
    patch: tuple[int, int, int],
    flip_axes: str,
    largest_blur: float,
    zero_is_background: tuple[bool, ...] | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    maps: int = 0,
) -> tuple[Float[Array, "d h w m"], Integer[Array, "d h w"]]:
    """Applies what was drawn for one sample (`draws` without its leading axis).

    The last three arguments are explained at `augment.AugmentOptions` and `augment.augment`.
    """
    geometry = draws.geometry
    if geometry is not None:
        geometry = spatial.in_voxels(geometry, spacing)
    sequences = image.shape[-1] - maps
    masked = zero_is_background
    if maps:
        masked = (*(masked or (True,) * sequences), *(False,) * maps)
    # Sequences first until the end: a TPU stores the last axis in tiles of 128 numbers, of which
    # four sequences would fill 4.
    placed, label = spatial.place(image, label, geometry, patch, masked)
    image, moved = placed[:sequences], placed[sequences:]
    brain = spatial.not_background(image, zero_is_background)
    in_order: dict[str, Callable[[Array, PyTree], Array]] = {
        "noise": lambda x, value: intensity.noise(x, draws.keys, value),
        "blur": lambda x, value: intensity.blur(x, value, largest_blur),
        "brightness": lambda x, value: intensity.brightness(x, *value),
        "contrast": lambda x, value: intensity.contrast(x, brain, value),
        "low_resolution": intensity.low_resolution,
        "gamma_inverted": lambda x, value: intensity.gamma(x, brain, value, invert=True),
        "gamma": lambda x, value: intensity.gamma(x, brain, value, invert=False),
    }
    for name, part in in_order.items():
        if name in draws.parts:
            image = _where_drawn(image, brain, part, *draws.parts[name])
    flip = functools.partial(spatial.flip, flips=draws.flips, axes=flip_axes)
    image = flip(jnp.concatenate([image, moved]) if maps else image)
    return jnp.moveaxis(image, 0, -1), flip(label)


def _where_drawn(
    image: Array,
    brain: Array,
    part: Callable[[Array, PyTree], Array],
    drawn: Array | None,
    value: PyTree,
) -> Array:
    def within_the_brain(x: Array) -> Array:
        return jnp.where(brain, part(x, value), 0)

    if drawn is None:
        return within_the_brain(image)
    return jax.lax.cond(drawn, within_the_brain, lambda x: x, image)
