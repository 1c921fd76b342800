"""What calibrated probabilities say of a mask: its expected Dice, and a range of each volume."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from scipy import stats

from kdnet_jax.models import heads
from kdnet_jax.runs import calibration as calibration_lib

# The share of scans whose volume the range is to hold.
_COVERAGE: Final = 0.95


@dataclasses.dataclass(frozen=True)
class Confidence:
    """Of a region of a scan.

    Attributes:
        dice_expected: `2 sum_M p / (|M| + sum p)`, M the mask: the Dice with references that are
            drawn from the probabilities, the mean of the quotient taken as that of means; `None`
            where both are empty.
        ml_expected: the sum of the probabilities, ml.
        ml_low: lower end of the range that is to hold the reference's volume in 95 % of scans like
            those of validation; `None` where there were too few.
        ml_high: its upper end, at most the volume in which the scan has data.
    """

    dice_expected: float | None
    ml_expected: float
    ml_low: float | None
    ml_high: float | None

    def __str__(self) -> str:
        """Returns such as "2.1 to 9.8 ml, expected Dice 0.71"; what is unknown is left out."""
        parts = []
        if self.ml_low is not None:
            parts.append(f"{self.ml_low:.1f} to {self.ml_high:.1f} ml")
        if self.dice_expected is not None:
            parts.append(f"expected Dice {self.dice_expected:.2f}")
        return ", ".join(parts)


def of_regions(
    probs: Float[np.ndarray, "n k"],
    classes: UInt8[np.ndarray, "n"],
    head: heads.Head,
    calibration: calibration_lib.Calibration,
    voxel_ml: float,
) -> dict[str, Confidence]:
    """Returns the confidence by region.

    Args:
        probs: calibrated, of the head's outputs, on the voxels in which the scan has data.
        classes: the decision on the same voxels.
        head: what the outputs are.
        calibration: of the network.
        voxel_ml: volume of a voxel.
    """
    regions = head.region_probabilities(probs)
    errors = calibration.volumes or (None,) * len(head.task.regions)
    found = {}
    for place, (name, error) in enumerate(zip(head.task.region_names, errors, strict=True)):
        p, mask = regions[:, place], head.task.mask(classes, name)
        total = float(p.sum(dtype=np.float64))
        size = total + np.count_nonzero(mask)
        dice = 2 * float(p[mask].sum(dtype=np.float64)) / size if size else None
        expected = total * voxel_ml
        low, high = volume_range(expected, error) if error else (None, None)
        if high is not None:
            high = min(high, len(probs) * voxel_ml)
        found[name] = Confidence(dice, expected, low, high)
    return found


def volume_range(expected_ml: float, error: calibration_lib.VolumeError) -> tuple[float, float]:
    """Returns the prediction interval of a volume, ml.

    `(E + 1) exp(m +- t s sqrt(1 + 1/n)) - 1`, t of n - 1 degrees of freedom and not below 0: that
    of a further case whose ln ratio is normal as those of the validation cases.

    Args:
        expected_ml: E, the sum of the calibrated probabilities.
        error: m, s and n.
    """
    t = float(stats.t.ppf((1 + _COVERAGE) / 2, error.cases - 1))
    half = t * error.deviation * math.sqrt(1 + 1 / error.cases)
    ends = [(expected_ml + 1) * math.exp(error.mean + sign * half) - 1 for sign in (-1, 1)]
    return max(ends[0], 0.0), max(ends[1], 0.0)


def from_cells(cells: Mapping[str, str], prefix: str) -> Confidence:
    """Returns a confidence from a row of texts whose columns are its fields after a prefix.

    Raises:
        KeyError, ValueError: the row has no such columns, or no numbers in them.
    """
    texts = {field.name: cells[prefix + field.name] for field in dataclasses.fields(Confidence)}
    expected = float(texts.pop("ml_expected"))
    others = {name: float(text) if text else None for name, text in texts.items()}
    return Confidence(ml_expected=expected, **others)
