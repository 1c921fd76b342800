"""The tables of scores: of runs with intervals of the mean, and of one case."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.drawing import html
from kdnet_jax.metrics import cases, statistics, surface

Scores = Sequence[cases.RegionScore]

_UNDEFINED: Final = "–"


class _Column(NamedTuple):
    """A score: its column in `cases.csv`, heading, digits, and the largest value it can have."""

    name: str
    heading: str
    digits: int
    largest: float


_COLUMNS: Final = (
    _Column("dice", "Dice", 3, 1.0),
    _Column("lesion_dice", "Lesion-wise Dice", 3, 1.0),
    _Column("hd95_mm", "HD95, mm", 1, math.inf),
    _Column("nsd", "NSD at 1 mm", 3, 1.0),
    _Column("nsd_2mm", "NSD at 2 mm", 3, 1.0),
)

_MEDIAN_PLACE: Final = 3

_NOTE: Final = (
    "Mean over the test cases with its 95 % interval below it: mean ± t(0.975, n − 1) · SD / √n "
    "(Student’s t), cut off at values that the score cannot have. It tells how far the mean would "
    "move with other cases of the same kind; it holds nothing of what another training of the same "
    "network would change, so that two runs here are no proof that one method beats another. "
    "Scored per case on the scan’s own grid. {regions}Dice: 1 if reference and prediction are both "
    "empty, 0 if only one is. "
    "Lesion-wise Dice: as BraTS 2023, each missed or false lesion counts 0. "
    "HD95: the larger of the two directed 95th percentiles of surface distances; 0 if both are "
    f"empty, {surface.EMPTY_PENALTY_MM:.0f} mm if only one is, so the median tells more than the "
    "mean where that happens. NSD: normalised surface Dice."
)


def mean(values: Sequence[float], smallest: float, largest: float) -> statistics.Interval:
    """Returns the mean of scores of cases with its 95 % interval, within what the score can be."""
    found = statistics.mean_interval([np.asarray(values, np.float64)[None]])
    return found._replace(low=max(found.low, smallest), high=min(found.high, largest))


def results(runs: Mapping[str, Scores], note: str = "", *, task: task_lib.Task) -> html.Table:
    """Returns the scores per region and run, with the 95 % intervals of the means.

    Args:
      runs: Scores by the run's name, in the order of the rows.
      note: What a reader must know beyond how the scores are defined.
      task: Whose regions they are.
    """
    rows: list[list[str]] = []
    for region in task.region_names:
        rows.append([region])
        for name, scores in runs.items():
            rows.append([name, *_cells([score for score in scores if score.region == region])])
    columns = [column.heading for column in _COLUMNS]
    columns.insert(_MEDIAN_PLACE, "HD95, mm, median")
    header = ["Run", *columns, "Cases", "Reference empty"]
    about = f"{_NOTE.format(regions=_described(task))} {note}".strip()
    return html.Table("Test scores by region and run", header, rows, about)


def decisions(summaries: Mapping[str, typed.JsonView]) -> list[html.Table]:
    """Returns a table of the Dice by chosen thresholds and by the fixed decision, if any has both.

    Args:
      summaries: Of the evaluations, by the run's name.
    """
    rows = [
        [
            name,
            region,
            f"{threshold:g}",
            f"{summary['regions'][region]['dice']['mean']:.3f}",
            f"{summary['decision']['fixed_dice'][region]:.3f}",
        ]
        for name, summary in summaries.items()
        for region, threshold in summary.get("decision", {"thresholds": {}})["thresholds"].items()
    ]
    if not rows:
        return []
    header = ["Run", "Region", "Threshold", "Dice", "Dice, fixed decision"]
    note = (
        "Mean Dice over the test cases by the thresholds that were chosen on validation cases, "
        "which is the decision of all other scores here, and by the fixed one: the most probable "
        "class, or of a regions head above 0.5."
    )
    return [html.Table("Decision by region and run", header, rows, note)]


def calibration(measured: Mapping[str, typed.JsonView]) -> list[html.Table]:
    """Returns a table of how far the probabilities can be believed, if it was measured of any run.

    Args:
      measured: `calibration.summarise` of the runs, by the run's name.
    """
    rows = [
        [
            name,
            region,
            f"{found['temperature']:.2f}",
            *(_number_or_none(row[f"ece_{when}"], 3) for when in ("before", "after")),
            _number_or_none(row["dice_rank"], 2),
            _number_or_none(row["dice_error"], 3),
            f"{row['covered']} of {row['ranged']}" if row["ranged"] else _UNDEFINED,
        ]
        for name, found in measured.items()
        for region, row in found["regions"].items()
    ]
    if not rows:
        return []
    header = ["Run", "Region", "T", "ECE, as trained", "ECE, calibrated"]
    header += ["Expected Dice, rank correlation", "its mean error", "Volumes within range"]
    note = (
        "Of the test cases, on the working grid. T: the temperature that was fitted on validation "
        "cases, with a bias for each output. ECE: expected calibration error "
        "in 20 bins, over the voxels that get a probability of at least 0.05. Expected Dice: what "
        "the probabilities of a case say that its mask's Dice will be, against what it is: "
        "Spearman's correlation over the cases, and the mean absolute difference. Volumes within "
        "range: cases whose volume lies in the 95 % range, which comes from the validation cases."
    )
    return [html.Table("Probabilities by region and run", header, rows, note)]


def _described(task: task_lib.Task) -> str:
    """Returns a sentence on what the regions are, and a space; empty where nothing is known."""
    texts = [f"{each.name}: {each.description}" for each in task.regions if each.description]
    return f"{', '.join(texts)}. " if texts else ""


def _cells(scores: Scores) -> list[str]:
    cells = [_mean([getattr(score, each.name) for score in scores], each) for each in _COLUMNS]
    median = float(np.median([score.hd95_mm for score in scores])) if scores else math.nan
    cells.insert(_MEDIAN_PLACE, _number(median, 1))
    return [*cells, str(len(scores)), str(sum(score.ref_empty for score in scores))]


def _mean(values: Sequence[float], column: _Column) -> str:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return _UNDEFINED
    found = mean(defined, 0.0, column.largest)
    text = _number(found.estimate, column.digits)
    if math.isnan(found.low):
        return text
    return f"{text}\n{_number(found.low, column.digits)} to {_number(found.high, column.digits)}"


def _number_or_none(value: float | None, digits: int) -> str:
    return _UNDEFINED if value is None else _number(value, digits)


def _number(value: float, digits: int) -> str:
    return _UNDEFINED if math.isnan(value) else f"{value:.{digits}f}"


def of_case(case_id: str, scores: Scores) -> html.Table:
    """Returns the scores of one case, a row per region."""
    header = ["Region", *(column.heading for column in _COLUMNS)]
    rows = [
        [
            score.region,
            *(_number(getattr(score, column.name), column.digits) for column in _COLUMNS),
            f"{score.volume_ref_mm3 / 1000:.1f}",
            f"{score.volume_pred_mm3 / 1000:.1f}",
            f"{score.lesions_missed} of {score.lesions_ref}",
            f"{score.lesions_false} of {score.lesions_pred}",
        ]
        for score in scores
    ]
    header += ["Reference, ml", "Prediction, ml", "Lesions missed", "Lesions false"]
    return html.Table(f"Scores of {case_id}", header, rows)
