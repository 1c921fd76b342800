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
from jaxtyping import Float, Integer, PyTree

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import labels
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
        np.searchsorted(edges, probabilities[..., place]) for place in range(len(task.regions))
    ]
    rows = np.stack([*below, reference], axis=-1).astype(np.uint8)
    # What no candidate paints and no region holds changes no Dice.
    counts = rows[..., :-1].any(axis=-1) | task.hull_mask(reference)
    if task.ignore is not None:
        counts &= reference != task.ignore
    kinds, voxels = np.unique(rows[counts], axis=0, return_counts=True)
    return np.column_stack([kinds, voxels]).tolist()


def tabulate_cases(
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> list[tuple[int, Table]]:
    """Returns the table of each of the numbered cases, on the working grid.

    Args:
        predictor: of one network.
        params: its parameters, on this process's own devices.
        cases: each with its number.
        cavity: what a resection cavity in the reference counts as (`labels.map_cavity`).
    """
    head, placed = predictor.models[0].head, predictor.place([params])
    tables = []
    for place, case in cases:
        assert case.label is not None  # prepared cases of a run have one
        probs = predictor.probabilities(placed, predictor.image(case))
        reference = labels.map_cavity(case.label, cavity, task=head.task)
        tables.append((place, tabulate(head.region_probabilities(probs), reference, head.task)))
    return tables


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
    cases, places = _joined(tables), [_HALF] * len(head.task.regions)
    # Of two that are as near to 0.5, the lower one.
    by_distance = sorted(range(len(CANDIDATES)), key=lambda place: abs(place - _HALF))
    best, former = _score(cases, places, head), None
    while places != former:
        former = list(places)
        for region in head.task.painting:
            for candidate in by_distance:
                tried = [*places[:region], candidate, *places[region + 1 :]]
                score = _score(cases, tried, head)
                if score > best:
                    best, places = score, tried
    return tuple(CANDIDATES[place] for place in places)


def mean_dice(
    tables: Sequence[Table], thresholds: Sequence[float], head: heads.Head
) -> dict[str, float]:
    """Returns region -> mean Dice over the cases by thresholds out of `CANDIDATES`."""
    places = [CANDIDATES.index(threshold) for threshold in thresholds]
    dice = _dice(_joined(tables), places, head).mean(axis=0).tolist()
    return dict(zip(head.task.region_names, dice, strict=True))


def _joined(tables: Sequence[Table]) -> Integer[np.ndarray, "n c"]:
    """Returns the rows of all cases, each with the number of its case before it."""
    return np.array([[case, *row] for case, table in enumerate(tables) for row in table])


def _score(cases: Integer[np.ndarray, "n c"], places: Sequence[int], head: heads.Head) -> float:
    # Rounded, so that no rounding error tells equals apart.
    return round(float(_dice(cases, places, head).mean()), 9)


def _dice(
    cases: Integer[np.ndarray, "n c"], places: Sequence[int], head: heads.Head
) -> Float[np.ndarray, "cases r"]:
    case, below, reference, voxels = cases[:, 0], cases[:, 1:-2], cases[:, -2], cases[:, -1]
    predicted = head.paint(below > np.asarray(places))

    def counted(mask: np.ndarray) -> np.ndarray:
        return np.bincount(case, voxels * mask)

    columns = []
    for region in head.task.region_names:
        truth, found = (head.task.mask(classes, region) for classes in (reference, predicted))
        total = counted(truth) + counted(found)
        both = counted(truth & found)
        columns.append(np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0))
    return np.stack(columns, axis=-1)
