"""Normalisation of a scan's intensities, by that of its channel.

Every channel is treated separately: its background, mean, deviation and range come from its own
voxels. So a channel looks the same to the networks whether or not the others were acquired.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Num

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import brain
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import boxes

# In the note on a head that was taken as it is: `predict` makes a warning of it.
SKULL_ON = "the skull seems to be on"
# z-scores are cut here, so that a metal artefact neither overflows float16 nor rules a batch.
MAX_Z = 10.0
# A brain without its skull is below 2000 ml, a head above 3000.
MAX_BRAIN_ML = 2500.0
# The largest number of float16, in which the networks' input is kept.
_LARGEST: Final = 65504.0


def foreground(
    volume: Num[np.ndarray, "x y z"],
    channel: task_lib.Channel,
    voxel_ml: float,
    name: str,
    allow_skull: bool = False,
) -> tuple[Bool[np.ndarray, "x y z"], list[str]]:
    """Returns the voxels of a channel that are not background, and what was decided for that.

    Of "zscore_nonzero" see `find_brain`; of every other normalisation the background is what is 0
    and joined to the border of the volume (as nnU-Net, which fills the holes of what is not 0), and
    nothing is refused for its skull.

    Args:
        volume: intensities.
        channel: what they are of.
        voxel_ml: the volume of a voxel, ml.
        name: names the scan in messages.
        allow_skull: see `find_brain`.

    Raises:
        UserError: nothing but background; and see `find_brain`.
    """
    if channel.normalisation == "zscore_nonzero":
        return find_brain(volume, voxel_ml, name, allow_skull)
    mask = ~brain.joined_to_border(volume == 0)
    if not mask.any():
        raise UserError(f"{name}: every voxel is 0; expected intensities")
    return mask, []


def normalise(
    volume: Num[np.ndarray, "x y z"],
    mask: Bool[np.ndarray, "x y z"],
    channel: task_lib.Channel,
    name: str,
) -> Float[np.ndarray, "x y z"]:
    """Returns the intensities as the networks see them (`task.Channel`), in float32.

    Where "zscore" and "rescale" measure "all voxels", these are those of the smallest box that
    holds the channel's own foreground: rows of zeros around a scan say nothing of it. That is what
    nnU-Net measures after its crop, unless another channel needs a larger box.

    Args:
        volume: intensities.
        mask: `foreground` of it.
        channel: what they are of.
        name: names the scan in messages.

    Raises:
        UserError: all voxels have one value, the statistics of a "ct" channel are not known, or the
            intensities of a "none" channel are too large for float16.
    """
    if channel.normalisation == "zscore_nonzero":
        return z_score(volume, mask, name)
    if channel.normalisation == "ct":
        low, high, mean, deviation = known_statistics(channel)
        # In place: a CT is large.
        scores = volume.astype(np.float32)
        np.clip(scores, low, high, out=scores)
        scores -= mean
        scores /= deviation
        return scores
    if channel.normalisation == "none":
        largest = float(np.abs(volume).max())
        if largest > _LARGEST:
            raise UserError(
                f"{name}: holds intensities of up to {largest:g}; of a channel that is not "
                f"normalised at most {_LARGEST:g} were expected. Rescale the file, or choose "
                f"another normalisation of {channel.name} in the task"
            )
        return volume.astype(np.float32)
    inside = volume[boxes.bounding_box(mask)].astype(np.float64)
    if inside.min() == inside.max():
        raise _one_value(inside.flat[0], "", name)
    if channel.normalisation == "rescale":
        low, high = inside.min(), inside.max()
        return np.clip((volume - low) / (high - low), 0, 1).astype(np.float32)
    scores = (volume - inside.mean()) / inside.std()
    return np.clip(scores, -MAX_Z, MAX_Z).astype(np.float32)


def known_statistics(channel: task_lib.Channel) -> tuple[float, float, float, float]:
    """Returns low, high, mean and deviation of a "ct" channel.

    Raises:
        UserError: they were not measured.
    """
    if channel.statistics is None:
        raise UserError(
            f"the channel {channel.name} is a CT without statistics; expected low, high, mean and "
            "deviation of its training cases. Take the task of a built dataset (build_data "
            'measures them), or write them under "kdnet", "statistics" of its dataset.json'
        )
    return channel.statistics


def find_brain(
    volume: Num[np.ndarray, "x y z"], voxel_ml: float, name: str, allow_skull: bool = False
) -> tuple[Bool[np.ndarray, "x y z"], list[str]]:
    """Returns the voxels that are not background, and a note where that took a decision.

    The background is 0, or the one value that the border of the volume has (a volume that others
    z-scored), or near it where interpolation rang (see `brain.foreground`). A border with neither,
    or too large a foreground, is a head with its skull.

    Args:
        volume: intensities.
        voxel_ml: the volume of a voxel, ml.
        name: names the scan in messages.
        allow_skull: take such a head as it is, with a note.

    Raises:
        UserError: nothing but background, or the skull is on and `allow_skull` is false.
    """
    mask, notes = brain.foreground(volume, name)
    reason = None
    if mask is None:
        mask, reason = np.ones(volume.shape, bool), "the border of the volume is not background"
    elif (millilitres := np.count_nonzero(mask) * voxel_ml) > MAX_BRAIN_ML:
        reason = f"{millilitres:.0f} ml are not background, a brain has at most {MAX_BRAIN_ML:g}"
    if not mask.any():
        raise UserError(f"{name}: every voxel is background; expected a brain")
    if reason is None:
        return mask, notes
    if not allow_skull:
        raise UserError(
            f"{name}: {reason}: {SKULL_ON}. Expected a skull-stripped scan: strip it "
            "with HD-BET or SynthStrip, or continue as it is with --allow_skull "
            "(--config.data.allow_skull=true)"
        )
    return mask, [*notes, f"{name}: {reason}: {SKULL_ON}. The scan was used as it is"]


def z_score(
    volume: Num[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"], name: str
) -> Float[np.ndarray, "x y z"]:
    """Returns (volume - mean) / deviation over `mask`, cut at ±`MAX_Z`, and 0 outside of it.

    Raises:
        UserError: all voxels of `mask` have one value.
    """
    inside = volume[mask].astype(np.float64)  # float32 sums lose digits at intensities of 1e7
    deviation = inside.std()
    if inside.min() == inside.max() or deviation == 0:
        raise _one_value(inside[0], " of the brain", name)
    # In place: of a large head this is the largest array of all.
    inside -= inside.mean()
    inside /= deviation
    np.clip(inside, -MAX_Z, MAX_Z, out=inside)
    scores = np.zeros(volume.shape, np.float32)
    scores[mask] = inside
    return scores


def _one_value(value: float, of: str, name: str) -> UserError:
    return UserError(
        f"{name}: every voxel{of} is {value:g}; the file holds a mask or an empty sequence, "
        "expected intensities"
    )
