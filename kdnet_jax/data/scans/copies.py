"""Two sequences of a case that are one image: as it is, rescaled, or resampled.

A copy follows from its original voxel by voxel: a rescaled one from the voxel, a shifted or blurred
one from the voxel and its neighbours. Two true sequences do not, because each has noise and
contrasts of its own. `docs/data.md` states what the threshold was measured on.
"""

import itertools
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from kdnet_jax.data.scans import brain
from kdnet_jax.errors import UserError

# From this correlation on, of a sequence with what another one predicts of it, both are one image.
COPIED: Final = 0.9965
_PLACES: Final = 15_000  # voxels that are looked at
_USED: Final = 10_000  # of those that lie inside of both brains
_FEWEST: Final = 500
_RADIUS: Final = 2
_CENTRE: Final = 13  # of the 27
# A Gaussian of 0.6 voxels: less noise, so that what a copy lost by resampling weighs less.
_KERNEL: Final = np.array([0.1664, 0.6672, 0.1664], np.float32)
# Of the brain's level, above the darkest voxel: the air around a head says nothing.
_AIR: Final = 0.05


class Sample(NamedTuple):
    """A sequence at some voxels of the case.

    Attributes:
        values: smoothed z-scores of each voxel and its 26 neighbours, itself in the middle.
        inside: whether the voxel and all that lies within two voxels of it are brain.
    """

    values: Float[np.ndarray, "n 27"]
    inside: Bool[np.ndarray, "n"]


def places(union: Bool[np.ndarray, "x y z"]) -> Int[np.ndarray, "n 3"]:
    """Returns voxels of `union`, the brains of all sequences, evenly drawn."""
    found = np.flatnonzero(union)
    # An odd step is no multiple of a row's length, so the voxels spread over all rows.
    step = max(1, found.size // _PLACES) | 1
    return np.stack(np.unravel_index(found[::step], union.shape), axis=-1)


def sample(scores: Float[np.ndarray, "x y z"], voxels: Int[np.ndarray, "n 3"]) -> Sample:
    """Returns the z-scores of one sequence, 0 outside of its brain, around `voxels`."""
    reach = np.arange(-_RADIUS, _RADIUS + 1)
    x, y, z = (
        np.clip(voxels[:, axis, None] + reach, 0, size - 1)
        for axis, size in enumerate(scores.shape)
    )
    patches = scores[x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]]
    inside = (patches != 0).all((1, 2, 3))
    if inside.any():
        above = patches - patches[inside].min()
        inside &= (above > _AIR * brain.level_of(above[inside])).all((1, 2, 3))
    for axis in (1, 2, 3):
        windows = np.lib.stride_tricks.sliding_window_view(patches, _KERNEL.size, axis)
        patches = windows @ _KERNEL
    return Sample(patches.reshape(len(voxels), -1), inside)


def likeness(one: Sample, other: Sample) -> float:
    """Returns how far one of two sequences follows from the other, as a correlation from 0 to 1.

    The larger of the multiple correlations of either one with the other's voxel, its square, its
    cube and its neighbours; 0 where they share too little brain.
    """
    shared = np.flatnonzero(one.inside & other.inside)
    if shared.size < _FEWEST:
        return 0.0
    shared = shared[:: max(1, shared.size // _USED)]
    a, b = one.values[shared], other.values[shared]
    return max(_multiple_correlation(a, b[:, _CENTRE]), _multiple_correlation(b, a[:, _CENTRE]))


def _multiple_correlation(
    neighbours: Float[np.ndarray, "n 27"], target: Float[np.ndarray, "n"]
) -> float:
    voxel = neighbours[:, _CENTRE, None]
    terms = np.hstack([neighbours, voxel**2, voxel**3, np.ones_like(voxel)]).astype(np.float64)
    left = target - terms @ np.linalg.lstsq(terms, target, rcond=None)[0]
    spread = target.var(dtype=np.float64)
    return float(np.sqrt(max(0.0, 1 - left.var() / spread))) if spread else 0.0


def repeated(samples: Mapping[str, Sample], names: Mapping[str, str]) -> dict[str, UserError]:
    """Returns modality -> what is wrong, for each sequence that is the image of an earlier one.

    Args:
        samples: modality -> its sample, all at the same voxels.
        names: modality -> the file, or what else names the sequence in messages.
    """
    found: dict[str, UserError] = {}
    for one, other in itertools.combinations(samples, 2):
        value = likeness(samples[one], samples[other])
        if value >= COPIED and other not in found:
            found[other] = UserError(
                f"{names[other]}: {other} repeats {one} ({names[one]}): voxel by voxel, one "
                f"follows from the other (correlation {value:.4f}; two sequences of a patient stay "
                f"below {COPIED:g}), expected two sequences. Replace the one that is a copy by the "
                "scan that belongs there, or leave the case out"
            )
    return found
