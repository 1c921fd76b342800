"""What is done to a segmentation after the network: an explicit step, off unless asked for."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Integer
from scipy import ndimage

from kdnet_jax import conventions
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import lesions, overlap

# The thresholds that `choose` tries, ml. 0.05 are the 50 voxels below which BraTS 2023's
# lesion-wise scores ignore a lesion.
SMALL_ET_CANDIDATES_ML: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
MIN_COMPONENT_CANDIDATES_ML: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_MM3_PER_ML: Final = 1000.0
_NEIGHBOURS_26: Final = np.ones((3, 3, 3), bool)

Spacing = tuple[float, float, float]
# Of one case, by component threshold: lesion-wise Dice, and Dice of ET by ET threshold; see
# `tabulate`. Plain numbers, so that it can be kept as JSON.
Table = list[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is done; 0 switches a rule off.

    Attributes:
        small_et_ml: ET of a smaller total volume becomes NCR. BraTS scores any ET in a case
            without ET with Dice 0, so a few false voxels cost as much as a large false tumour
            (Isensee et al., "nnU-Net for Brain Tumor Segmentation", arXiv 2011.00848).
        min_component_ml: 26-connected components of the whole tumour that are smaller become
            background.
    """

    small_et_ml: float = 0.0
    min_component_ml: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}: expected a volume in ml, 0 for off")

    def text(self) -> str:
        """Returns the rules in words, "none" where both are off."""
        parts = []
        if self.min_component_ml:
            parts.append(f"tumour components below {self.min_component_ml:g} ml are removed")
        if self.small_et_ml:
            parts.append(f"ET below {self.small_et_ml:g} ml in total becomes NCR")
        return "; ".join(parts) or "none"


def apply(
    classes: Integer[np.ndarray, "x y z"], spacing: Spacing, rules: Rules
) -> Integer[np.ndarray, "x y z"]:
    """Returns the classes after the rules; the argument is left as it is.

    Components go first, so that the ET of a removed one does not count. Applied twice, the rules
    do nothing more.

    Args:
        classes: 0..3, or 4 for a resection cavity, which no rule touches.
        spacing: mm per axis.
        rules: what is done.
    """
    voxel_ml = math.prod(spacing) / _MM3_PER_ML
    if rules.min_component_ml:
        classes = _without_small_components(classes, voxel_ml, rules.min_component_ml)
    enhancing = conventions.region_mask(classes, "ET")
    if np.count_nonzero(enhancing) * voxel_ml < rules.small_et_ml:
        ncr = classes.dtype.type(conventions.CLASSES.index("NCR"))
        classes = np.where(enhancing, ncr, classes)
    return classes


def _without_small_components(
    classes: Integer[np.ndarray, "x y z"], voxel_ml: float, min_ml: float
) -> Integer[np.ndarray, "x y z"]:
    components, count = ndimage.label(conventions.region_mask(classes, "WT"), _NEIGHBOURS_26)
    small = np.bincount(components.ravel(), minlength=count + 1) * voxel_ml < min_ml
    small[0] = False  # the background
    return np.where(small[components], classes.dtype.type(0), classes)


def choose(tables: Sequence[Table]) -> Rules:
    """Returns the rules that do best on validation cases; the smallest thresholds of equals.

    First the component threshold with the best mean lesion-wise Dice over the regions (a false
    component hardly shows in Dice), then, after it, the ET threshold with the best mean ET Dice.
    The candidates are `MIN_COMPONENT_CANDIDATES_ML` and `SMALL_ET_CANDIDATES_ML`, 0 (off) among
    them; the scores have BraTS's conventions for empty masks.

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
    et_dice = np.mean([table[component][1] for table in tables], axis=0)
    return Rules(
        small_et_ml=SMALL_ET_CANDIDATES_ML[int(et_dice.argmax())],
        min_component_ml=MIN_COMPONENT_CANDIDATES_ML[component],
    )


def tabulate(
    reference: Integer[np.ndarray, "x y z"],
    predicted: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
) -> Table:
    """Returns the scores of one case after each component threshold.

    Each is the lesion-wise Dice over the regions, and the Dice of ET after each ET threshold.

    Args:
        reference: classes.
        predicted: classes.
        spacing: mm per axis.
    """
    rows: Table = []
    former = None
    for threshold in MIN_COMPONENT_CANDIDATES_ML:
        left = apply(predicted, spacing, Rules(min_component_ml=threshold))
        # Most thresholds remove nothing more, and lesions take a while to score.
        same = former is not None and np.array_equal(left, former)
        rows.append(rows[-1] if same else _scores(reference, left, spacing))
        former = left
    return rows


def _scores(
    reference: Integer[np.ndarray, "x y z"],
    predicted: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
) -> tuple[float, list[float]]:
    by_lesion = [
        lesions.score(
            conventions.region_mask(reference, region),
            conventions.region_mask(predicted, region),
            spacing,
        ).dice
        for region in conventions.REGIONS
    ]
    return float(np.mean(by_lesion)), _et_dice(reference, predicted, spacing)


def _et_dice(
    reference: Integer[np.ndarray, "x y z"],
    predicted: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
) -> list[float]:
    """Returns the ET Dice of one case after each ET threshold."""
    wanted = conventions.region_mask(reference, "ET")
    found = conventions.region_mask(predicted, "ET")
    volume_ml = np.count_nonzero(found) * (math.prod(spacing) / _MM3_PER_ML)
    kept, emptied = overlap.dice(wanted, found), overlap.dice(wanted, np.zeros_like(found))
    return [emptied if volume_ml < threshold else kept for threshold in SMALL_ET_CANDIDATES_ML]
