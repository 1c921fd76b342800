"""Augmentation on the device, inside the step: pure functions of a key and a batch.

One draw serves teacher, student and label: the step augments the full stack once and slices it
afterwards. The order is nnU-Net's: geometry, noise, blur, brightness, contrast, low resolution,
gamma of the inverted image, gamma, mirroring.

Background voxels of a "zscore_nonzero" channel (exactly 0 after preparation) stay 0 throughout and
count for no mean or range, as nnU-Net's mask keeps them for skull-stripped scans. Of every other
channel all voxels count. What is filled in where a patch reaches beyond its crop is 0 in every
channel, as in nnU-Net: the mean of a z-scored channel, of a CT that of the foreground, the minimum
of a rescaled one.

What is drawn for a batch are a few numbers per sample (`augment_draws`). Parts that take time are
applied sample by sample and only where they were drawn; a part of probability 0 is not in the
program.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from kdnet_jax import task as task_lib
from kdnet_jax.augment import draws as augment_draws
from kdnet_jax.augment import spatial
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.parallel import sharding

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """What is drawn for each sample: how often, and evenly between what values.

    Attributes:
        flip_axes: axes mirrored with probability 1/2 each: "d" (up-down), "h" (front-back),
            "w" (left-right).
        scale: intensities of each sequence times 1 + U(-scale, scale).
        shift: plus U(-shift, shift), in units of the z-score.
        noise: plus Gaussian noise of a standard deviation drawn from U(0, noise).
        scale_probability, shift_probability, noise_probability: per sample, as all of them.
        rotation: degrees about each of the three axes.
        zoom_out: step between the voxels taken: above 1 shows more, smaller.
        elastic: largest move in voxels of the control points of a smooth bending.
        blur: standard deviation in voxels, of each sequence and axis.
        contrast: factor on the distance from a sequence's mean.
        low_resolution: voxels per axis that are kept, as a share, of each sequence.
        gamma: exponent of each sequence.
        gamma_inverted_probability: of a gamma on the inverted image, before the plain one.
        modality_dropout: probability with which each sequence that a teacher or baseline in
            training sees is 0, the mean of a z-score; at least one stays.
        zero_is_background: of each channel of the scans, whether 0 is its background; `None`: of
            all. No key of a config, and so the next: `fitted` sets them.
        spacing: edges of a voxel "d h w", up to a factor: rotations are true in space.
    """

    flip_axes: str = "dhw"
    scale: float = 0.1
    shift: float = 0.1
    noise: float = 0.0
    scale_probability: float = 1.0
    shift_probability: float = 1.0
    noise_probability: float = 1.0
    rotation: Range = (-30.0, 30.0)
    rotation_probability: float = 0.0
    zoom_out: Range = (0.7, 1.4)
    zoom_out_probability: float = 0.0
    elastic: Range = (0.0, 8.0)
    elastic_probability: float = 0.0
    blur: Range = (0.5, 1.0)
    blur_probability: float = 0.0
    contrast: Range = (0.75, 1.25)
    contrast_probability: float = 0.0
    low_resolution: Range = (0.5, 1.0)
    low_resolution_probability: float = 0.0
    gamma: Range = (0.7, 1.5)
    gamma_probability: float = 0.0
    gamma_inverted_probability: float = 0.0
    modality_dropout: float = 0.0
    zero_is_background: tuple[bool, ...] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Raises UserError for an unknown axis, or a range outside its limits."""
        if not isinstance(self.flip_axes, str) or set(self.flip_axes) - set("dhw"):
            raise UserError(
                f"augment.flip_axes is {self.flip_axes!r}: give letters out of d, h and w, "
                "or an empty text."
            )
        for name, limits in LIMITS.items():
            _check_range(f"augment.{name}", getattr(self, name), *limits)

    @property
    def chances(self) -> dict[str, spatial.Chance]:
        """Probability and range of each part by its name; `scale` and `shift` about 0."""
        ranges = {name: getattr(self, name) for name in LIMITS} | {
            "gamma_inverted": self.gamma,
            "noise": (0.0, self.noise),
            "scale": (-self.scale, self.scale),
            "shift": (-self.shift, self.shift),
        }
        # A strength of 0 is a part that is switched off.
        return {
            name: spatial.Chance(getattr(self, f"{name}_probability") if any(ends) else 0.0, *ends)
            for name, ends in ranges.items()
        }


# The values that the two ends of a range may have.
LIMITS: Final[dict[str, Range]] = {
    "rotation": (-180.0, 180.0),
    "zoom_out": (0.25, 4.0),
    "elastic": (0.0, spatial.LARGEST_BEND),
    "blur": (0.1, 5.0),
    "contrast": (0.05, 10.0),
    "low_resolution": (0.05, 1.0),
    "gamma": (0.05, 20.0),
}


def _check_range(key: str, value: Range, lowest: float, highest: float) -> None:
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise UserError(
            f"{key} is {tuple(value)}: give two numbers from {lowest:g} to {highest:g}, the "
            f"smaller one first, such as --config.{key}="
            f"'{','.join(map(str, getattr(AugmentOptions, key.split('.')[1])))}'."
        )


# nnU-Net's set (Isensee et al., https://doi.org/10.1038/s41592-020-01008-z): probabilities, ranges
# and order of `nnUNetTrainer.get_training_transforms` in MIC-DKFZ/nnUNet,
# nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (commit 017de4a), whose parts are in
# MIC-DKFZ/batchgeneratorsv2. docs/augmentation.md lists where these parts differ from those.
PRESETS: Final = {
    "none": AugmentOptions(flip_axes="", scale=0.0, shift=0.0),
    "plain": AugmentOptions(),
    "nnunet": AugmentOptions(
        scale=0.25,
        scale_probability=0.15,
        shift=0.0,
        noise=0.1,
        noise_probability=0.1,
        rotation_probability=0.2,
        zoom_out_probability=0.2,
        blur_probability=0.2,
        contrast_probability=0.15,
        low_resolution_probability=0.25,
        gamma_probability=0.3,
        gamma_inverted_probability=0.1,
    ),
}


def choose(preset: str = "plain", **changes: object) -> AugmentOptions:
    """Returns a preset's options with those of `changes` that are not None.

    Raises:
        UserError: for an unknown preset or axis, a range outside its limits, or the range of a part
            that the preset never draws.
    """
    check_choice("augment.preset", preset, PRESETS)
    given = {key: value for key, value in changes.items() if value is not None}
    chosen = dataclasses.replace(PRESETS[preset], **given)
    for name in given.keys() & LIMITS.keys():
        parts = [name, "gamma_inverted"] if name == "gamma" else [name]
        chances = [f"{part}_probability" for part in parts]
        if not any(key in given or getattr(chosen, key) for key in chances):
            raise UserError(
                f"augment.{name} is {getattr(chosen, name)}, and augment.preset={preset} never "
                f"draws it. Give its probability too, such as --config.augment.{chances[0]}=0.2, "
                "or another --config.augment.preset."
            )
    return chosen


def fitted(
    options: AugmentOptions,
    task: task_lib.Task,
    modalities: Sequence[str],
    spacing: float | Sequence[float] | None,
) -> AugmentOptions:
    """Returns the options for scans of a task.

    Args:
        options: what is drawn.
        task: it says of which channels 0 is the background.
        modalities: the channels of the images.
        spacing: of the working grid, mm, one number or "d h w"; None: each scan has its own, and
            voxels are taken as cubes.
    """
    edges = np.broadcast_to(1.0 if spacing is None else spacing, 3).tolist()
    masked = task.zero_is_background(modalities)
    if all(masked) and len(set(edges)) == 1:
        return options
    return dataclasses.replace(options, zero_is_background=masked, spacing=typed.triple(edges))


def source_patch(patch: tuple[int, int, int], options: AugmentOptions) -> tuple[int, int, int]:
    """Returns the size of the crops to cut, so that few resampled patches reach beyond one."""
    size = spatial.source_patch(
        patch,
        options.chances["rotation"],
        options.chances["zoom_out"],
        options.chances["elastic"],
        options.spacing,
    )
    return typed.triple(size)


def drop_sequences(
    key: jax.Array,
    image: Float[Array, "b d h w m"],
    channels: Sequence[int],
    probability: float,
    there: Bool[Array, "b n"] | None = None,
) -> Float[Array, "b d h w m"]:
    """Returns images without some of their sequences, which are 0; at least one of each stays.

    Neverova et al., "ModDrop: adaptive multi-modal gesture recognition", IEEE TPAMI 2016; zeros in
    place of a sequence that is not there as in HeMIS (Havaei et al., MICCAI 2016).

    Args:
        key: of the step.
        image: as the network would see it.
        channels: those among which sequences are dropped.
        probability: of each sequence; where all would go, one stays, each as often as the others.
        there: whether a sample has a sequence at all, of the first n in the image; one that it
            lacks is dropped, and no other for it. None: all are there.
    """
    number = augment_draws.of_sequences(key, image.shape[0], len(channels))
    if there is not None:
        there = there[:, np.array(channels)]
        number = jnp.where(there, number, -1)
    kept = (number >= probability) | (number == number.max(axis=1, keepdims=True))
    if there is not None:
        kept &= there
    for place, channel in enumerate(channels):
        stays = kept[:, place].reshape(-1, 1, 1, 1)
        image = image.at[..., channel].multiply(stays)
    return image


def one_sample(
    options: AugmentOptions, patch: tuple[int, int, int], maps: int = 0
) -> Callable[[Array, Array, augment_draws.Draws], tuple[Array, Array]]:
    """Returns the function that applies the draws of a sample to its image and label.

    The arguments are those of `augment`.
    """
    return functools.partial(
        augment_draws.apply,
        patch=patch,
        flip_axes=options.flip_axes,
        largest_blur=options.blur[1],
        zero_is_background=options.zero_is_background,
        spacing=options.spacing,
        maps=maps,
    )


def augment(
    key: jax.Array,
    image: Float[Array, "b D H W m"],
    label: Integer[Array, "b D H W"],
    options: AugmentOptions,
    patch: tuple[int, int, int] | None = None,
    mesh: Mesh | None = None,
    *,
    maps: int = 0,
) -> tuple[Float[Array, "b d h w m"], Integer[Array, "b d h w"]]:
    """Returns an augmented copy; the geometry of image and label is the same.

    Args:
        key: of the step.
        image: crops of `source_patch` voxels.
        label: their classes.
        options: what is drawn.
        patch: the size that is returned, from the middle of the crops; by default theirs.
        mesh: the devices over which the batch is spread; each then works on its own samples.
        maps: so many of the image's last channels are no sequences but maps of the same voxels,
            such as a teacher's probabilities: they are moved with it, by linear interpolation,
            and their values stay.
    """
    patch = patch or typed.triple(image.shape[1:4])
    samples, sequences = image.shape[0], image.shape[-1] - maps
    if len(options.zero_is_background or range(sequences)) != sequences:
        raise ValueError(f"{sequences} channels, options of {options.zero_is_background}")
    draws = augment_draws.draw(key, samples, sequences, patch, options.chances)
    one = one_sample(options, patch, maps)
    if draws.is_cheap:
        return jax.vmap(one)(image, label, draws)
    # One sample after the other: `vmap` would turn "only where drawn" into both and a choice.
    each = functools.partial(jax.lax.map, lambda sample: one(*sample))
    if mesh is None:
        return each((image, label, draws))
    own = PartitionSpec("data")
    spread = jax.shard_map(each, mesh=mesh, in_specs=own, out_specs=own)
    out = spread((image, label, draws))
    return jax.lax.with_sharding_constraint(out, sharding.batch_sharding(mesh))
