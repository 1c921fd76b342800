"""Distances between the surfaces of two masks, in mm.

A mask's surface is the voxels that an erosion by the face-connected (6-neighbour) cross takes
away; voxels at the border of the grid belong to it. Every surface voxel counts once, whatever the
voxels' shape (as in MONAI; DeepMind's `surface-distance` weighs by area instead).
"""

import dataclasses
import functools
from collections.abc import Sequence
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
# Headers keep spacings as float32, so that a step of 1 mm may read as 1.0000001 mm.
_TOLERANCE_SLACK: Final = 1.0 + 1e-5


class SurfaceDistances(NamedTuple):
    """For each surface voxel of one mask, the distance in mm to the other mask's surface."""

    from_reference: Float[np.ndarray, "r"]
    from_prediction: Float[np.ndarray, "p"]

    def hd95(self, penalty: float = EMPTY_PENALTY_MM) -> float:
        """Returns the 95 % Hausdorff distance in mm: max(P95 of d(R→P), P95 of d(P→R)).

        This is the larger of the two directed percentiles (MONAI, BraTS), not the percentile of the
        pooled distances. Both masks empty gives 0, exactly one gives the penalty: BraTS's, taken
        for every task.
        """
        if not self.from_reference.size or not self.from_prediction.size:
            both_empty = self.from_reference.size == self.from_prediction.size
            return 0.0 if both_empty else penalty
        return float(max(np.percentile(directed, 95) for directed in self))

    def nsd(self, tolerance: float) -> float:
        """Returns the normalised surface Dice (Nikolov et al., 2018) at `tolerance` mm.

        It is the share of surface voxels of both masks that lie within the tolerance of the other
        mask's surface. Both masks empty gives 1, exactly one gives 0.
        """
        count = self.from_reference.size + self.from_prediction.size
        near = sum(np.count_nonzero(way <= tolerance * _TOLERANCE_SLACK) for way in self)
        return float(near / count) if count else 1.0


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """The surfaces of a reference and a prediction, measured against each other once.

    Attributes:
        voxels: of the reference and of the prediction, in the grid's order (`surface_voxels`).
        spacing: mm between voxel centres along each axis.
    """

    voxels: tuple[Voxels, Voxels]
    spacing: Spacing

    @property
    def distances(self) -> SurfaceDistances:
        """Those of both surfaces; where one mask is empty, those of the other are infinite."""
        return SurfaceDistances(*(each.distances for each in self._nearest))

    def between_parts(
        self, reference: Bool[np.ndarray, "r"], prediction: Bool[np.ndarray, "p"]
    ) -> SurfaceDistances:
        """Returns the distances of some surface voxels of each mask to some of the other."""
        return SurfaceDistances(
            self._of_part(0, reference, prediction), self._of_part(1, prediction, reference)
        )

    def _of_part(
        self, side: int, start: Bool[np.ndarray, "n"], target: Bool[np.ndarray, "m"]
    ) -> Float[np.ndarray, "_"]:
        distances, places = (each[start] for each in self._nearest[side])
        if not target.any():
            return np.full(len(distances), np.inf)
        # A voxel's nearest of the whole surface, where it is of the part, is the nearest of that.
        elsewhere = ~target[places]
        if elsewhere.any():
            points = self._millimetres[side][start][elsewhere]
            distances[elsewhere] = _search(points, self._millimetres[1 - side][target])[0]
        return distances

    @functools.cached_property
    def _millimetres(self) -> list[Float[np.ndarray, "_ 3"]]:
        return [each * np.asarray(self.spacing, np.float64) for each in self.voxels]

    @functools.cached_property
    def _nearest(self) -> tuple["_Nearest", "_Nearest"]:
        shape = np.concatenate(self.voxels).max(axis=0, initial=0) + 1
        keys = [
            np.asarray(np.ravel_multi_index(tuple(each.T), tuple(shape))) for each in self.voxels
        ]
        return self._nearest_of(0, keys), self._nearest_of(1, keys)

    def _nearest_of(self, side: int, keys: Sequence[Integer[np.ndarray, "_"]]) -> "_Nearest":
        start, target = keys[side], keys[1 - side]
        if not target.size:
            return _Nearest(np.full(start.size, np.inf), np.zeros(start.size, np.intp))
        # Voxels that belong to both surfaces are 0 apart; most others need a search.
        places = np.searchsorted(target, start)
        places[places == target.size] = 0
        distances, apart = np.zeros(start.size), target[places] != start
        if apart.any():
            found = _search(self._millimetres[side][apart], self._millimetres[1 - side])
            distances[apart], places[apart] = found
        return _Nearest(distances, places)


class _Nearest(NamedTuple):
    """The nearest voxel of the other surface for each voxel of one: mm, and its place."""

    distances: Float[np.ndarray, "n"]
    places: Integer[np.ndarray, "n"]


def _search(start: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "m 3"]) -> _Nearest:
    # Surfaces are thin: a search tree over their voxels beats a distance transform of the grid. One
    # that is neither balanced nor compact is built faster and searched as fast here, and one of
    # large leaves is searched faster.
    tree = spatial.KDTree(target, leafsize=32, balanced_tree=False, compact_nodes=False)
    distances, places = tree.query(start)
    return _Nearest(np.asarray(distances), np.asarray(places))


def surfaces(reference: Mask, prediction: Mask, spacing: Spacing) -> Surfaces:
    """Returns the surfaces of two masks on one grid; `spacing` as in `Surfaces`."""
    return Surfaces((surface_voxels(reference), surface_voxels(prediction)), spacing)


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
