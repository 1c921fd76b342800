"""The scores on a run's test cases as `model.json` and the model card have them."""

import math
from collections.abc import Sequence
from typing import Final

from kdnet_jax.core import typed
from kdnet_jax.metrics import cases
from kdnet_jax.reports import score_tables

# Each score, and the largest that it can be.
_METRICS: Final = {"dice": 1.0, "nsd": 1.0, "hd95_mm": math.inf}
# Of `calibration.summarise`.
_CALIBRATION: Final = ("ece_before", "ece_after", "covered", "ranged")


def collect(
    scores: Sequence[cases.RegionScore],
    summary: typed.JsonView,
    teacher: typed.JsonView | None,
    calibration: typed.JsonView | None,
) -> typed.Json:
    """Returns means with 95 % intervals over the cases, JSON.

    Args:
        scores: of each case and region.
        summary: `summary.json` of the run.
        teacher: `summary.json` of its teacher on the same cases, where there is one.
        calibration: `calibration.json` of the run's evaluation; older runs have none.
    """
    found = {
        "cases": len({score.case for score in scores}),
        "mean_dice": summary["mean_dice"],
        "hd95": summary["hd95"],
        "regions": {
            region: _region([score for score in scores if score.region == region], row)
            for region, row in summary["regions"].items()
        },
    }
    if teacher:
        dice = {name: row["dice"]["mean"] for name, row in teacher["regions"].items()}
        own = {"modalities": teacher["modalities"], "cases": teacher["cases"], "dice": dice}
        found["teacher"] = own
    if calibration:
        found["calibration"] = {
            region: {key: row[key] for key in _CALIBRATION}
            for region, row in calibration["regions"].items()
        }
    return found


def _region(scores: Sequence[cases.RegionScore], row: typed.JsonView) -> typed.Json:
    """Returns a region's row of the summary with intervals, and how often it was missed."""
    intervals = {
        key: row[key] | _interval([getattr(each, key) for each in scores], largest)
        for key, largest in _METRICS.items()
    }
    missed = sum(each.pred_empty and not each.ref_empty for each in scores)
    return {**row, **intervals, "missed": missed}


def _interval(values: Sequence[float], largest: float) -> dict[str, float | None]:
    """Returns the ends of the interval of a mean; `None` where so few cases give none."""
    found = score_tables.mean(values, 0.0, largest)
    ends = {"low": found.low, "high": found.high}
    return {key: None if math.isnan(end) else end for key, end in ends.items()}
