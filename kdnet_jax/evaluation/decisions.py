"""Decision thresholds: one for each region, with the best mean Dice on validation cases.

A network that cannot know is right to say 0.2: that is how often it is right there. The most
probable class is then the background, and its answer is thrown away. Of calibrated probabilities
the threshold with the best expected Dice is half of that Dice (Lipton, Elkan & Naryanaswamy,
"Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML PKDD 2014), so 0.5 is right for a
perfect network alone. Networks are not calibrated, so the thresholds are searched for.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Integer, PyTree, Real

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.evaluation import working_grid
from kdnet_jax.models import heads
from kdnet_jax.prediction import inference

CANDIDATES: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))
_HALF: Final = CANDIDATES.index(0.5)
# Of one case: how many voxels have which probabilities and which class. A row has for each region
# the number of candidates below its probability, then the class of the reference, then the count.
Table = list[list[int]]


def tabulate(
    probabilities: Float[np.ndarray, "d h w r"],
    reference: Integer[np.ndarray, "d h w"],
    task: task_lib.Task,
) -> Table:
    """Returns the table of a case, which has all that a choice among the candidates depends on.

    Args:
        probabilities: of the regions (`heads.Head.region_probabilities`).
        reference: classes; voxels that nobody labelled count for nothing.
        task: what is segmented.
    """
    edges = np.asarray(CANDIDATES, probabilities.dtype)
    below = [
        np.searchsorted(edges, probabilities[..., place]).astype(np.uint8)
        for place in range(len(task.regions))
    ]
    # What no candidate paints and no region holds changes no Dice.
    counts = np.logical_or.reduce([each > 0 for each in below]) | task.hull_mask(reference)
    if task.ignore is not None:
        counts &= reference != task.ignore
    columns = [each[counts].astype(np.int64) for each in (*below, reference)]
    kind = np.zeros(np.count_nonzero(counts), np.int64)
    for column in columns:  # numbered anew each time: no number of regions is too large
        kind = np.unique(kind * 256 + column, return_inverse=True)[1]
    _, first, voxels = np.unique(kind, return_index=True, return_counts=True)
    return np.stack([*(column[first] for column in columns), voxels], axis=-1).tolist()


def tabulate_cases(
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> list[tuple[int, Table]]:
    """Returns the table of each of the numbered cases; see `working_grid.predict`."""
    head = predictor.models[0].head
    return [
        (place, tabulate(head.region_probabilities(probs), reference, head.task))
        for place, _, probs, reference in working_grid.predict(predictor, params, cases, cavity)
    ]


def choose(tables: Sequence[Table], head: heads.Head) -> tuple[float, ...]:
    """Returns the threshold of each region, in the order of the task.

    From 0.5 for all, one region after the other, in the order in which they are painted, gets the
    candidate with the best mean Dice over regions and cases (of equals the nearest to 0.5), until
    none changes: regions are painted inside and over one another, so one threshold changes the
    Dice of other regions too.

    A threshold that is chosen on the cases it is scored on makes their scores too good: the cases
    must be validation cases.

    Args:
        tables: one of each case; at least one.
        head: whose probabilities they hold.
    """
    cases, places = _Cases(tables, head), [_HALF] * len(head.task.regions)
    # Of two that are as near to 0.5, the lower one.
    by_distance = sorted(range(len(CANDIDATES)), key=lambda place: abs(place - _HALF))
    best, former = cases.score(places), None
    while places != former:
        former = list(places)
        for region in head.task.painting:
            for candidate in by_distance:
                tried = [*places[:region], candidate, *places[region + 1 :]]
                score = cases.score(tried)
                if score > best:
                    best, places = score, tried
    return tuple(CANDIDATES[place] for place in places)


def mean_dice(
    tables: Sequence[Table], thresholds: Sequence[float], head: heads.Head
) -> dict[str, float]:
    """Returns region -> mean Dice over the cases by thresholds out of `CANDIDATES`."""
    places = [CANDIDATES.index(threshold) for threshold in thresholds]
    dice = _Cases(tables, head).dice(places).mean(axis=0).tolist()
    return dict(zip(head.task.region_names, dice, strict=True))


class _Cases:
    """The tables of all cases, and the Dice that thresholds come to on them."""

    def __init__(self, tables: Sequence[Table], head: heads.Head) -> None:
        regions = head.task.regions
        rows = [np.array(table, np.int64).reshape(-1, len(regions) + 2) for table in tables]
        joined = np.concatenate(rows)
        self._head, self._count = head, len(tables)
        self._case = np.repeat(np.arange(len(tables)), [len(each) for each in rows])
        self._below = joined[:, :-2].astype(np.uint8)
        self._voxels = joined[:, -1].astype(np.float64)
        # class "256" -> which regions "r" it belongs to
        self._members = np.zeros((256, len(regions)), bool)
        for place, region in enumerate(regions):
            self._members[list(region.members), place] = True
        self._truth = self._members[joined[:, -2]]

    def score(self, places: Sequence[int]) -> float:
        """Returns the mean Dice over cases and regions; rounded, so that equals are equal."""
        return round(float(self.dice(places).mean()), 9)

    def dice(self, places: Sequence[int]) -> Float[np.ndarray, "cases r"]:
        """Returns the Dice of each case and region by thresholds, given as places in CANDIDATES."""
        found = self._members[self._head.paint(self._below > np.asarray(places, np.uint8))]
        total = self._counted(self._truth) + self._counted(found)
        both = self._counted(self._truth & found)
        return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)

    def _counted(self, mask: Bool[np.ndarray, "n r"]) -> Real[np.ndarray, "cases r"]:
        columns = (
            np.bincount(self._case[column], self._voxels[column], self._count) for column in mask.T
        )
        return np.stack([*columns], axis=-1)
