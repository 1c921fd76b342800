"""Post-processing of a segmentation: an explicit step, off by default."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Integer

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import labelling, lesions, overlap

# The thresholds that `choose` tries, ml. 0.05 are the 50 voxels below which BraTS 2023's
# lesion-wise scores ignore a lesion.
SMALL_REGION_CANDIDATES_ML: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
MIN_COMPONENT_CANDIDATES_ML: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_MM3_PER_ML: Final = 1000.0

Spacing = tuple[float, float, float]
# Of one case, by component threshold: lesion-wise Dice, and by region with a fallback its Dice by
# threshold; see `tabulate`. Plain numbers, so that it can be kept as JSON.
Table = list[Sequence[typed.JsonValue]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is done; 0 switches a rule off.

    Attributes:
        small_region_ml: region -> volume. Of a smaller total volume it becomes its fallback class
            (`task.Region.fallback`). Any false voxel of a region in a case without it means Dice
            0, so a few cost as much as a large false region (Isensee et al., "nnU-Net for Brain
            Tumor Segmentation", arXiv 2011.00848, for enhancing tumour in BraTS). Regions of 0 ml
            are left out.
        min_component_ml: 26-connected components of all regions together that are smaller become
            background.
    """

    small_region_ml: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_component_ml: float = 0.0

    def __post_init__(self) -> None:
        small = {f"small_region_ml of {name}": ml for name, ml in self.small_region_ml.items()}
        for name, value in {**small, "min_component_ml": self.min_component_ml}.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}: expected a volume in ml, 0 for off")
        kept = {name: ml for name, ml in self.small_region_ml.items() if ml}
        object.__setattr__(self, "small_region_ml", kept)

    def text(self, task: task_lib.Task) -> str:
        """Returns the rules in words, "none" where all are off."""
        parts = []
        if self.min_component_ml:
            parts.append(f"{task.noun} components below {self.min_component_ml:g} ml are removed")
        for region, fallback in _replaceable(task):
            if ml := self.small_region_ml.get(region.name):
                name = task.classes[fallback]
                parts.append(f"{region.name} below {ml:g} ml in total becomes {name}")
        return "; ".join(parts) or "none"


def _replaceable(task: task_lib.Task) -> list[tuple[task_lib.Region, int]]:
    """Returns the regions that have a fallback, and it; what is painted last comes first."""
    painted = [task.regions[place] for place in reversed(task.painting)]
    return [(region, region.fallback) for region in painted if region.fallback is not None]


def chosen_text(task: task_lib.Task) -> str:
    """Returns what `choose` chooses, in words; the thresholds themselves are a run's own."""
    small = [
        f"small {region.name} to {task.classes[fallback]}"
        for region, fallback in _replaceable(task)
    ]
    parts = ", ".join(["small components removed", *small])
    return f"{parts}; thresholds chosen on validation cases"


def small_regions(task: task_lib.Task, ml: float) -> dict[str, float]:
    """Returns one threshold for every region of the task that has a fallback."""
    return {region.name: ml for region, _ in _replaceable(task)}


def apply(
    classes: Integer[np.ndarray, "x y z"], spacing: Spacing, rules: Rules, *, task: task_lib.Task
) -> Integer[np.ndarray, "x y z"]:
    """Returns the classes after the rules; the argument is left as it is.

    Components go first, so that what a removed one holds of a region does not count. Regions
    follow, inner ones before those that contain them.

    Args:
        classes: of the task; no rule touches its unscored values.
        spacing: mm per axis.
        rules: what is done.
        task: what is segmented.
    """
    voxel_ml = math.prod(spacing) / _MM3_PER_ML
    if rules.min_component_ml:
        classes = _without_small_components(classes, voxel_ml, rules.min_component_ml, task)
    for region, fallback in _replaceable(task):
        mask = task.mask(classes, region.name)
        if np.count_nonzero(mask) * voxel_ml < rules.small_region_ml.get(region.name, 0.0):
            classes = np.where(mask, classes.dtype.type(fallback), classes)
    return classes


def _without_small_components(
    classes: Integer[np.ndarray, "x y z"], voxel_ml: float, min_ml: float, task: task_lib.Task
) -> Integer[np.ndarray, "x y z"]:
    parts = labelling.label(task.hull_mask(classes), corners=True)
    small = np.bincount(parts.ravel()) * voxel_ml < min_ml
    small[0] = False  # the background
    return np.where(small[parts], classes.dtype.type(0), classes)


def choose(tables: Sequence[Table]) -> Rules:
    """Returns the rules that do best on validation cases; the smallest thresholds of equals.

    First the component threshold with the best mean lesion-wise Dice over the regions (a false
    component hardly shows in Dice), then, after it, for each region with a fallback the threshold
    with its best mean Dice. The candidates are `MIN_COMPONENT_CANDIDATES_ML` and
    `SMALL_REGION_CANDIDATES_ML`, 0 (off) among them; the scores have BraTS's conventions for empty
    masks.

    A threshold that is chosen on the cases it is scored on makes their scores too good: the cases
    must be validation cases.

    Args:
        tables: one of each case.

    Raises:
        UserError: there is no case.
    """
    if not tables:
        raise UserError("thresholds are chosen on validation cases, and there is none")
    lesion_dice = np.mean([[lesions for lesions, _ in table] for table in tables], axis=0)
    # argmax takes the first of equals.
    component = int(lesion_dice.argmax())
    by_region = [table[component][1] for table in tables]
    best = {
        name: int(np.mean([each[name] for each in by_region], axis=0).argmax())
        for name in by_region[0]
    }
    return Rules(
        small_region_ml={name: SMALL_REGION_CANDIDATES_ML[place] for name, place in best.items()},
        min_component_ml=MIN_COMPONENT_CANDIDATES_ML[component],
    )


def tabulate(
    reference: Integer[np.ndarray, "x y z"],
    predicted: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
    *,
    task: task_lib.Task,
) -> Table:
    """Returns the scores of one case after each component threshold.

    Each is the lesion-wise Dice over the regions, and for each region with a fallback its Dice
    after each of its thresholds.

    Args:
        reference: classes.
        predicted: classes.
        spacing: mm per axis.
        task: what is segmented.
    """
    rows: Table = []
    former = None
    for threshold in MIN_COMPONENT_CANDIDATES_ML:
        left = apply(predicted, spacing, Rules(min_component_ml=threshold), task=task)
        # Most thresholds remove nothing more, and lesions take a while to score.
        same = former is not None and np.array_equal(left, former)
        rows.append(rows[-1] if same else _scores(reference, left, spacing, task))
        former = left
    return rows


def _scores(
    reference: Integer[np.ndarray, "x y z"],
    predicted: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
    task: task_lib.Task,
) -> tuple[float, dict[str, list[float]]]:
    # The rules see all voxels, the scores those that have a label.
    ml = {
        region.name: np.count_nonzero(task.mask(predicted, region.name))
        * (math.prod(spacing) / _MM3_PER_ML)
        for region, _ in _replaceable(task)
    }
    both = case_metrics.labelled(reference, predicted, task)
    masks = {
        name: (task.mask(both[0], name), task.mask(both[1], name)) for name in task.region_names
    }
    by_lesion = [lesions.score(a, b, spacing).dice for a, b in masks.values()]
    dice = {name: _thresholded_dice(*masks[name], ml[name]) for name in ml}
    return float(np.mean(by_lesion)), dice


def _thresholded_dice(
    reference: Bool[np.ndarray, "x y z"], predicted: Bool[np.ndarray, "x y z"], volume_ml: float
) -> list[float]:
    """Returns the Dice of a region of one case after each threshold of its volume."""
    kept = overlap.dice(reference, predicted)
    emptied = overlap.dice(reference, np.zeros_like(predicted))
    return [emptied if volume_ml < threshold else kept for threshold in SMALL_REGION_CANDIDATES_ML]
