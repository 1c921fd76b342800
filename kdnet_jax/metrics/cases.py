"""Scores of cases: a row per case and region, the rows of `cases.csv`, and their summary."""

import csv
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Integer

from kdnet_jax import task as task_lib
from kdnet_jax.core import files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import boxes, lesions, overlap, surface


@dataclasses.dataclass(frozen=True)
class RegionScore:
    """One region of one case; the fields are the columns of `cases.csv`, in order.

    Attributes:
      case: The case's id.
      region: Name of a region of the task.
      dice: Both empty 1, exactly one empty 0.
      hd95_mm: Both empty 0, exactly one empty 373.12866 (see `surface.SurfaceDistances`).
      nsd: Normalised surface Dice at 1 mm.
      sensitivity: NaN, an empty cell, where the reference is empty.
      specificity: NaN, an empty cell, where the reference fills the grid.
      volume_ref_mm3: Volume of the reference.
      volume_pred_mm3: Volume of the prediction.
      ref_empty: Whether the reference has no voxel of the region.
      pred_empty: Whether the prediction has none.
      nsd_2mm: Normalised surface Dice at 2 mm.
      lesion_dice: Lesion-wise Dice of BraTS 2023 (see `lesions`); no lesion on either side 1.
      lesion_hd95_mm: Lesion-wise HD95 of BraTS 2023; no lesion on either side 0.
      lesions_ref: Lesions of the reference that count (more than 50 mm³).
      lesions_pred: Components of the prediction.
      lesions_missed: Lesions of `lesions_ref` that no component touches.
      lesions_false: Components that touch no lesion.
    """

    case: str
    region: str
    dice: float
    hd95_mm: float
    nsd: float
    sensitivity: float
    specificity: float
    volume_ref_mm3: float
    volume_pred_mm3: float
    ref_empty: bool
    pred_empty: bool
    nsd_2mm: float
    lesion_dice: float
    lesion_hd95_mm: float
    lesions_ref: int
    lesions_pred: int
    lesions_missed: int
    lesions_false: int


COLUMNS: Final = tuple(field.name for field in dataclasses.fields(RegionScore))
METRICS: Final = (
    "dice",
    "hd95_mm",
    "nsd",
    "nsd_2mm",
    "lesion_dice",
    "lesion_hd95_mm",
    "sensitivity",
    "specificity",
)
COUNTS: Final = ("lesions_ref", "lesions_pred", "lesions_missed", "lesions_false")
_NUMBERS: Final = (*METRICS, "volume_ref_mm3", "volume_pred_mm3")
_SHARES: Final = ("dice", "nsd", "nsd_2mm", "lesion_dice", "sensitivity", "specificity")
# mm, mm3 or lesions: more than any body holds, and no infinity.
_LARGEST: Final = 1e9
_BOOLEANS: Final = {"true": True, "false": False}


def score_case(
    case_id: str,
    reference_classes: Integer[np.ndarray, "..."],
    prediction_classes: Integer[np.ndarray, "..."],
    spacing: surface.Spacing,
    *,
    task: task_lib.Task,
) -> list[RegionScore]:
    """Scores one case on the whole grid that it is given on.

    Unlabelled voxels are not counted (`labelled`).

    Args:
      case_id: The case's id.
      reference_classes: Classes "d h w"; the task's unscored values belong to no region.
      prediction_classes: The same, on the same grid, without the ignore label.
      spacing: mm per axis.
      task: What is segmented.

    Returns:
      A row per region, in the order of the task.

    Raises:
      UserError: The grids differ, or a value is not a class.
    """
    if reference_classes.shape != prediction_classes.shape:
        raise UserError(
            f"case {case_id}: the prediction's grid {prediction_classes.shape} is not the "
            f"reference's {reference_classes.shape}; give both on the scan's own grid"
        )
    last = len(task.classes) + len(task.unscored) - 1
    _check_classes(case_id, "reference", reference_classes, max(last, task.ignore or 0))
    _check_classes(case_id, "prediction", prediction_classes, last)
    ignored = 0 if task.ignore is None else int((reference_classes == task.ignore).sum())
    both = labelled(reference_classes, prediction_classes, task)
    # Every region lies within the hull, so outside of its box there is nothing to measure.
    box = boxes.bounding_box(np.logical_or(*map(task.hull_mask, both)))
    # NIfTI's first axis runs fastest; what follows goes along the last.
    reference, prediction = (np.ascontiguousarray(each[box]) for each in both)
    outside = reference_classes.size - reference.size - ignored
    return [
        _score_region(
            case_id,
            region,
            task.mask(reference, region),
            task.mask(prediction, region),
            spacing,
            outside,
        )
        for region in task.region_names
    ]


def labelled(
    reference: Integer[np.ndarray, "d h w"],
    prediction: Integer[np.ndarray, "d h w"],
    task: task_lib.Task,
) -> tuple[Integer[np.ndarray, "d h w"], Integer[np.ndarray, "d h w"]]:
    """Returns both with background where the reference has the ignore label."""
    if task.ignore is None:
        return reference, prediction
    unknown = reference == task.ignore
    return np.where(unknown, 0, reference), np.where(unknown, 0, prediction)


def _check_classes(case_id: str, name: str, classes: Integer[np.ndarray, "..."], last: int) -> None:
    if not classes.size:
        raise UserError(f"case {case_id}: the {name} has no voxel (shape {classes.shape})")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high > last:
        raise UserError(
            f"case {case_id}: the {name} holds values from {low} to {high}, expected classes "
            f"0 to {last}; check the label convention of its files"
        )


def _score_region(
    case_id: str,
    region: str,
    reference: Bool[np.ndarray, "d h w"],
    prediction: Bool[np.ndarray, "d h w"],
    spacing: surface.Spacing,
    outside: int,
) -> RegionScore:
    surfaces = surface.surfaces(reference, prediction, spacing)
    distances = surfaces.distances
    by_lesion = lesions.score(reference, prediction, spacing, surfaces)
    voxel = math.prod(spacing)
    return RegionScore(
        case=case_id,
        region=region,
        dice=overlap.dice(reference, prediction),
        hd95_mm=distances.hd95(),
        nsd=distances.nsd(1.0),
        sensitivity=overlap.sensitivity(reference, prediction),
        specificity=overlap.specificity(reference, prediction, outside),
        volume_ref_mm3=float(np.count_nonzero(reference) * voxel),
        volume_pred_mm3=float(np.count_nonzero(prediction) * voxel),
        ref_empty=not reference.any(),
        pred_empty=not prediction.any(),
        nsd_2mm=distances.nsd(2.0),
        lesion_dice=by_lesion.dice,
        lesion_hd95_mm=by_lesion.hd95_mm,
        lesions_ref=by_lesion.ref,
        lesions_pred=by_lesion.pred,
        lesions_missed=by_lesion.missed,
        lesions_false=by_lesion.false,
    )


# --- cases.csv ---------------------------------------------------------------------------------


def write_cases_csv(path: str | os.PathLike, scores: Iterable[RegionScore]) -> None:
    """Writes `cases.csv` beside and renames it; undefined numbers become empty cells."""
    rows = ([_cell(getattr(score, name)) for name in COLUMNS] for score in scores)
    files.write_text(path, files.csv_text(COLUMNS, rows))


def _cell(value: str | float | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def read_cases_csv(path: str | os.PathLike, *, regions: Sequence[str]) -> list[RegionScore]:
    """Reads what `write_cases_csv` wrote; further columns are left aside.

    Args:
      path: The file.
      regions: Names that the column `region` may hold.

    Raises:
      UserError: The file or a column is missing, a cell cannot be read, or a case and region
        is duplicate.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: column(s) {', '.join(missing)} missing; expected the columns "
                    f"{','.join(COLUMNS)}. A file of an older version lacks some: evaluate again"
                )
            scores = [_parse_row(path, reader.line_num, row, regions) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the cases.csv of an evaluation") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a table ({error}); expected the cases.csv of an evaluation"
        ) from error
    _refuse_doubles(path, scores)
    return scores


def _parse_row(
    path: str | os.PathLike, line: int, row: dict[str, str], regions: Sequence[str]
) -> RegionScore:
    if None in row or None in row.values():
        raise UserError(
            f"{path}, line {line}: has more or fewer cells than there are columns. The file is cut "
            "off or was changed: evaluate again"
        )
    try:
        numbers = {name: float(row[name] or "nan") for name in _NUMBERS}
        counts = {name: int(row[name]) for name in COUNTS}
        flags = {name: _BOOLEANS[row[name].lower()] for name in ("ref_empty", "pred_empty")}
        dict.fromkeys(regions)[row["region"]]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}, line {line}: cannot read the cell with {error}; expected numbers "
            "(whole ones for lesions), true or false for ref_empty and pred_empty, and "
            f"{either(regions)} for region"
        ) from error
    for name, value in (numbers | counts).items():
        undefined = name in METRICS and math.isnan(value)
        if not undefined and not 0 <= value <= (1 if name in _SHARES else _LARGEST):
            raise UserError(
                f"{path}, line {line}: {name} is {row[name]!r}; expected a number from 0"
                f"{' to 1' if name in _SHARES else ''}. The file was changed: evaluate again"
            )
    if not row["case"]:
        raise UserError(f"{path}, line {line}: names no case. Evaluate again")
    return RegionScore(case=row["case"], region=row["region"], **numbers, **counts, **flags)


def either(names: Sequence[str]) -> str:
    """Returns "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _refuse_doubles(path: str | os.PathLike, scores: Sequence[RegionScore]) -> None:
    seen = set()
    for score in scores:
        if (score.case, score.region) in seen:
            raise UserError(
                f"{path}: case {score.case}, region {score.region} is duplicate; "
                "keep one row per case and region"
            )
        seen.add((score.case, score.region))


def worst_first(scores: Sequence[RegionScore]) -> dict[str, float]:
    """Returns the mean Dice over the regions of each case, the worst case first."""
    by_case: dict[str, list[float]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score.dice)
    means = {case: float(np.mean(dice)) for case, dice in by_case.items()}
    return dict(sorted(means.items(), key=lambda each: (each[1], each[0])))


# --- Summary -----------------------------------------------------------------------------------


def summarise(scores: Sequence[RegionScore], *, task: task_lib.Task) -> dict:
    """Returns the content of `summary.json`, free of NaN: what is undefined is None.

    Returns:
      {"task": see `scored_task`, "cases": number of cases, "mean_dice": mean over the regions of
      the mean Dice, "regions": {region: {"cases", "ref_empty", "pred_empty": counts, for each
      metric {"mean", "sd" (n - 1), "median", "count" (cases where it is defined)}, and for each of
      `COUNTS` the sum over the cases}}}. The penalty of HD95 for an empty mask is part of its mean,
      so the median stands beside it.
    """
    regions = {
        region: _summarise_region([score for score in scores if score.region == region])
        for region in task.region_names
    }
    means = [row["dice"]["mean"] for row in regions.values() if row["dice"]["count"]]
    return {
        "task": scored_task(task),
        "cases": len({score.case for score in scores}),
        "mean_dice": float(np.mean(means)) if means else None,
        "regions": regions,
    }


def scored_task(task: task_lib.Task) -> typed.Json:
    """Returns what scores are of, for `summary.json`: the task's name, its regions' classes."""
    return {
        "name": task.name,
        "regions": {
            region.name: [task.classes[member] for member in region.members]
            for region in task.regions
        },
    }


def _summarise_region(scores: Sequence[RegionScore]) -> dict:
    return {
        "cases": len(scores),
        "ref_empty": sum(score.ref_empty for score in scores),
        "pred_empty": sum(score.pred_empty for score in scores),
        **{name: _statistics([getattr(score, name) for score in scores]) for name in METRICS},
        **{name: sum(getattr(score, name) for score in scores) for name in COUNTS},
    }


def _statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    defined = np.asarray([value for value in values if not math.isnan(value)], np.float64)
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "median": float(np.median(defined)) if defined.size else None,
        "count": int(defined.size),
    }
