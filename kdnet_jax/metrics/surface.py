"""Distances between the surfaces of two masks, in mm.

A mask's surface is the voxels that an erosion by the face-connected (6-neighbour) cross takes
away; voxels at the border of the grid belong to it. Every surface voxel counts once, whatever the
voxels' shape (as in MONAI; DeepMind's `surface-distance` weighs by area instead).
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import spatial

Mask = Bool[np.ndarray, "d h w"]
Voxels = Integer[np.ndarray, "_ 3"]
Spacing = tuple[float, float, float]

# What BraTS counts where exactly one mask is empty: the diagonal of its 240 x 240 x 155 mm grid.
# It is the same for every task, so that scores of tasks and grids compare.
EMPTY_PENALTY_MM: Final = 373.12866
HD95_DEFINITION: Final = (
    "larger of the two directed 95th percentiles of the distances between surface voxels, in mm; "
    f"both masks empty 0, exactly one empty {EMPTY_PENALTY_MM}"
)
DEFAULT_TOLERANCE_MM: Final = 1.0
# Headers keep spacings as float32, so that a step of 1 mm may read as 1.0000001 mm.
_TOLERANCE_SLACK: Final = 1.0 + 1e-5


class SurfaceDistances(NamedTuple):
    """For each surface voxel of one mask, the distance in mm to the other mask's surface."""

    from_reference: Float[np.ndarray, "r"]
    from_prediction: Float[np.ndarray, "p"]

    def hd95(self, penalty: float = EMPTY_PENALTY_MM) -> float:
        """Returns the larger of the two directed 95th percentiles, in mm (see `hd95`)."""
        if not self.from_reference.size or not self.from_prediction.size:
            both_empty = self.from_reference.size == self.from_prediction.size
            return 0.0 if both_empty else penalty
        return float(max(np.percentile(directed, 95) for directed in self))

    def nsd(self, tolerance: float) -> float:
        """Returns the share of both surfaces within `tolerance` mm of the other (see `nsd`)."""
        count = self.from_reference.size + self.from_prediction.size
        near = sum(np.count_nonzero(way <= tolerance * _TOLERANCE_SLACK) for way in self)
        return float(near / count) if count else 1.0


def surface_distances(reference: Mask, prediction: Mask, spacing: Spacing) -> SurfaceDistances:
    """Measures both surfaces against each other.

    Args:
      reference: Mask of the reference.
      prediction: Mask on the same grid.
      spacing: mm between voxel centres along each axis.

    Returns:
      The directed distances; where one mask is empty, those of the other are infinite.
    """
    return between(surface_voxels(reference), surface_voxels(prediction), spacing)


def surface_voxels(mask: Mask) -> Voxels:
    """Returns the indices of the mask's surface voxels, in the grid's order."""
    inner = mask.copy()
    for axis in range(3):
        here, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= source[:-1]
        here[:-1] &= source[1:]
        here[:1] = here[-1:] = False
    places = np.flatnonzero(mask & ~inner)  # much faster than np.argwhere
    return np.stack(np.unravel_index(places, mask.shape), axis=1)


def between(reference: Voxels, prediction: Voxels, spacing: Spacing) -> SurfaceDistances:
    """Returns the distances of each surface's voxels to the nearest of the other, in mm."""
    # Surfaces are thin: a search tree over their voxels beats a distance transform of the grid.
    r, p = (voxels * np.asarray(spacing, np.float64) for voxels in (reference, prediction))
    here, there = _shared(reference, prediction)
    return SurfaceDistances(_nearest(r, p, ~here), _nearest(p, r, ~there))


def _shared(
    reference: Voxels, prediction: Voxels
) -> tuple[Bool[np.ndarray, "r"], Bool[np.ndarray, "p"]]:
    """Returns which voxels of each surface belong to the other too: their distance is 0."""
    shape = np.concatenate([reference, prediction]).max(axis=0, initial=0) + 1
    r, p = (np.ravel_multi_index(tuple(each.T), tuple(shape)) for each in (reference, prediction))
    return np.isin(r, p, assume_unique=True), np.isin(p, r, assume_unique=True)


def hd95(reference: Mask, prediction: Mask, spacing: Spacing) -> float:
    """Returns the 95 % Hausdorff distance in mm: max(P95 of d(R→P), P95 of d(P→R)).

    This is the larger of the two directed percentiles (MONAI, BraTS), not the percentile of the
    pooled distances. Both masks empty gives 0, exactly one gives `EMPTY_PENALTY_MM`: BraTS's
    penalty, taken for every task.
    """
    return surface_distances(reference, prediction, spacing).hd95()


def nsd(
    reference: Mask, prediction: Mask, spacing: Spacing, tolerance: float = DEFAULT_TOLERANCE_MM
) -> float:
    """Returns the normalised surface Dice (Nikolov et al., 2018) at `tolerance` mm.

    It is the share of surface voxels of both masks that lie within the tolerance of the other
    mask's surface. Both masks empty gives 1, exactly one gives 0.
    """
    return surface_distances(reference, prediction, spacing).nsd(tolerance)


def _nearest(
    start: Float[np.ndarray, "n 3"],
    target: Float[np.ndarray, "m 3"],
    searched: Bool[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
    """Returns the distance of each start to its nearest target, 0 where it is not searched."""
    if not len(target):
        return np.full(len(start), np.inf)
    distances = np.zeros(len(start))
    if not searched.any():
        return distances
    # A tree that is neither balanced nor compact is built faster and searched as fast here.
    tree = spatial.KDTree(target, balanced_tree=False, compact_nodes=False)
    distances[searched] = tree.query(start[searched])[0]
    return distances
