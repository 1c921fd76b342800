"""Distances between the surfaces of two masks, in mm.

A mask's surface is the voxels that an erosion by the face-connected (6-neighbour) cross takes
away; voxels at the border of the grid belong to it. Every surface voxel counts once, whatever the
voxels' shape (as in MONAI; DeepMind's `surface-distance` weighs by area instead).
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Mask = Bool[np.ndarray, "d h w"]
Spacing = tuple[float, float, float]

# What BraTS books where exactly one mask is empty: the diagonal of its 240 x 240 x 155 mm grid.
EMPTY_PENALTY_MM: Final = 373.12866
DEFAULT_TOLERANCE_MM: Final = 1.0
# Headers keep spacings as float32, so that a step of 1 mm may read as 1.0000001 mm.
_TOLERANCE_SLACK: Final = 1.0 + 1e-5


class SurfaceDistances(NamedTuple):
    """For each surface voxel of one mask, the distance in mm to the other mask's surface."""

    from_reference: Float[np.ndarray, "r"]
    from_prediction: Float[np.ndarray, "p"]

    def hd95(self) -> float:
        """Returns the larger of the two directed 95th percentiles, in mm (see `hd95`)."""
        if not self.from_reference.size or not self.from_prediction.size:
            both_empty = self.from_reference.size == self.from_prediction.size
            return 0.0 if both_empty else EMPTY_PENALTY_MM
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
    box = _bounding_box(reference | prediction)
    reference_surface, prediction_surface = _surface(reference[box]), _surface(prediction[box])
    return SurfaceDistances(
        _distances(reference_surface, prediction_surface, spacing),
        _distances(prediction_surface, reference_surface, spacing),
    )


def hd95(reference: Mask, prediction: Mask, spacing: Spacing) -> float:
    """Returns the 95 % Hausdorff distance in mm: max(P95 of d(R→P), P95 of d(P→R)).

    This is the larger of the two directed percentiles (MONAI, BraTS), not the percentile of the
    pooled distances. Both masks empty gives 0, exactly one gives `EMPTY_PENALTY_MM`.
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


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Returns the smallest box that holds the mask, one slice per axis; empty for no voxel."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        used = np.flatnonzero(mask.any(axis=others))
        box.append(slice(used[0], used[-1] + 1) if used.size else slice(0, 0))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    # Outside the box nothing is set, so eroding inside it gives what the whole grid would give.
    return mask & ~ndimage.binary_erosion(mask)


def _distances(start: Mask, target: Mask, spacing: Spacing) -> Float[np.ndarray, "n"]:
    if not target.any():
        return np.full(np.count_nonzero(start), np.inf)
    return ndimage.distance_transform_edt(~target, sampling=spacing)[start]
