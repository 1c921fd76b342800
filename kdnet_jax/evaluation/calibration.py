"""Calibration: how far a network's probabilities are frequencies, and the temperature for it.

A temperature T divides the logits: softmax(z / T). It changes no decision for the most probable
class, and its one number is found on few cases (Guo et al., "On calibration of modern neural
networks", ICML 2017). Here it acts on what windows, and mirror images if there are any, were
averaged to: p^(1/T), normalised (`heads.Head.tempered`).

All sums are over the voxels in which a scan has data and a reference (`seen`).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, PyTree, UInt8
from scipy import special, stats

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.metrics import overlap
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence, inference
from kdnet_jax.runs import calibration as calibration_lib

# Each 9 % above the one before; 1 is among them.
TEMPERATURES: Final = tuple(2 ** (step / 8) for step in range(-16, 25))
_ONE: Final = TEMPERATURES.index(1.0)
# Below it a logarithm says more of rounding than of the network.
_SMALLEST: Final = 1e-7
BINS: Final = 20


class CaseTable(NamedTuple):
    """What the choice of a temperature, and the spread of volumes, depend on in a case.

    Attributes:
        likelihoods: for each of `TEMPERATURES` the mean over voxels of -ln p of the reference's
            class; of a regions head, of all regions' outcomes.
        expected_ml: for each temperature the sum of each region's probabilities, ml.
        true_ml: of each region, ml.
    """

    likelihoods: list[float]
    expected_ml: list[list[float]]
    true_ml: list[float]


def seen(
    case: prepare.PreparedCase, reference: UInt8[np.ndarray, "d h w"], task: task_lib.Task
) -> Bool[np.ndarray, "d h w"]:
    """Returns the voxels that count: those with data and a reference."""
    return case.inside if task.ignore is None else case.inside & (reference != task.ignore)


def tabulate(
    probs: Float[np.ndarray, "n k"],
    reference: Integer[np.ndarray, "n"],
    head: heads.Head,
    voxel_ml: float,
) -> CaseTable:
    """Returns the table of a case.

    Args:
        probs: of the head's outputs.
        reference: classes, of the same voxels.
        head: what the outputs are.
        voxel_ml: volume of a voxel.
    """
    truth = _truth(reference, head.task)
    z = np.log(np.maximum(probs, _SMALLEST))
    if head.kind == "regions":
        z -= np.log(np.maximum(1 - probs, _SMALLEST))
    likelihoods, expected = [], []
    for temperature in TEMPERATURES:
        scaled = z / np.float32(temperature)
        if head.kind == "regions":
            terms = np.logaddexp(0, np.where(truth, -scaled, scaled)).sum(axis=-1)
            regions = special.expit(scaled)
        else:
            log_p = special.log_softmax(scaled, axis=-1)
            terms = -np.take_along_axis(log_p, reference[:, None].astype(np.intp), axis=-1)
            regions = head.region_probabilities(np.exp(log_p))
        likelihoods.append(float(terms.sum(dtype=np.float64)) / max(len(reference), 1))
        expected.append((regions.sum(axis=0, dtype=np.float64) * voxel_ml).tolist())
    return CaseTable(likelihoods, expected, (truth.sum(axis=0) * voxel_ml).tolist())


def tabulate_cases(
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> list[tuple[int, CaseTable]]:
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
        counts = seen(case, reference, head.task)
        voxel_ml = math.prod(case.geometry.spacing) / 1000
        tables.append((place, tabulate(probs[counts], reference[counts], head, voxel_ml)))
    return tables


def choose(
    tables: Sequence[Sequence],
) -> tuple[calibration_lib.Calibration, dict[str, float]]:
    """Returns the calibration with the smallest mean over cases of their likelihoods.

    It is for other cases than these: the temperature, as any choice, fits its own cases best.

    Args:
        tables: a `CaseTable`, or its fields in a list, of each validation case; at least one.

    Returns:
        The calibration, and what else was measured: the mean of -ln p at T = 1 and at its own.
    """
    cases = [CaseTable(*table) for table in tables]
    mean = np.mean([case.likelihoods for case in cases], axis=0)
    # Of equals the nearest to 1.
    order = sorted(range(len(TEMPERATURES)), key=lambda place: abs(place - _ONE))
    best = min(order, key=lambda place: round(float(mean[place]), 9))
    about = {"cases": len(cases), "likelihood_before": mean[_ONE], "likelihood_after": mean[best]}
    errors: list[calibration_lib.VolumeError] = []
    if len(cases) >= calibration_lib.FEWEST_CASES:
        expected = np.array([case.expected_ml[best] for case in cases])
        ratios = np.log((np.array([case.true_ml for case in cases]) + 1) / (expected + 1))
        errors = [
            calibration_lib.VolumeError(float(of.mean()), float(of.std(ddof=1)), len(cases))
            for of in ratios.T
        ]
    found = calibration_lib.Calibration(TEMPERATURES[best], tuple(errors))
    return found, {name: float(value) for name, value in about.items()}


# --- Test cases ----------------------------------------------------------------------------------


def measure(
    case: prepare.PreparedCase,
    probs: Float[np.ndarray, "d h w k"],
    reference: UInt8[np.ndarray, "d h w"],
    head: heads.Head,
    calibration: calibration_lib.Calibration,
    thresholds: Sequence[float] = (),
) -> typed.Json:
    """Returns what calibrated probabilities say of a case, and what is true, as JSON.

    Args:
        case: of which the probabilities are.
        probs: calibrated, on the working grid.
        reference: classes, likewise.
        head: what the outputs are.
        calibration: of the network.
        thresholds: of the regions; empty: the fixed decision.

    Returns:
        Region -> the fields of `confidence.Confidence`, `dice` and `ml_true` on the working grid,
        and the `bins` of the probabilities before and after.
    """
    counts = seen(case, reference, head.task)
    after = probs[counts]
    before = head.tempered(after, 1 / calibration.temperature)
    voxel_ml = math.prod(case.geometry.spacing) / 1000
    decided = head.decide(after, thresholds)
    told = confidence.of_regions(after, decided, head, calibration, voxel_ml)
    truth, regions = _truth(reference[counts], head.task), {}
    tables = [head.region_probabilities(each) for each in (before, after)]
    for place, (name, each) in enumerate(told.items()):
        mask = truth[:, place]
        regions[name] = dataclasses.asdict(each) | {
            "dice": overlap.dice(mask, head.task.mask(decided, name)),
            "ml_true": float(mask.sum()) * voxel_ml,
            "bins_before": bins(tables[0][:, place], mask).tolist(),
            "bins_after": bins(tables[1][:, place], mask).tolist(),
        }
    return regions


def bins(p: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "bins 3"]:
    """Returns voxels, sum of p and true voxels of `BINS` equal steps of p, closed below.

    p = 1 is in the last.
    """
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    weights = (None, p.astype(np.float64), truth.astype(np.float64))
    return np.stack([np.bincount(place, each, BINS) for each in weights], axis=-1)


def expected_calibration_error(
    counted: Float[np.ndarray, "bins 3"], first: int = 0
) -> float | None:
    """Returns `sum_b n_b / n |mean truth - mean p|` over bins from `first` on; `None` of no voxel.

    Guo et al., ICML 2017, equation 3, of the binary outcome of a region.
    """
    kept = np.asarray(counted, np.float64)[first:]
    voxels = kept[:, 0].sum()
    return float(np.abs(kept[:, 2] - kept[:, 1]).sum() / voxels) if voxels else None


def summarise(
    cases: Mapping[str, typed.JsonView], calibration: calibration_lib.Calibration
) -> typed.Json:
    """Returns the calibration over test cases, as JSON.

    Args:
        cases: name -> `measure` of the case.
        calibration: of the network.

    Returns:
        By region the bins over all cases, the expected calibration error `ece` of the voxels that
        have at least 1 / `BINS` (nearly all others are certainly background, and hide every error)
        and `ece_all` of all, each before and after; `dice_rank`, Spearman's correlation of expected
        and true Dice over the cases (`None` of fewer than 3), `dice_error`, their mean absolute
        difference, and `covered`, in how many of `ranged` cases the range holds the true volume.
    """
    regions = {}
    for name in next(iter(cases.values())):
        rows = [case[name] for case in cases.values()]
        found: typed.Json = {}
        for when in ("before", "after"):
            counted = np.sum([row[f"bins_{when}"] for row in rows], axis=0)
            found[f"bins_{when}"] = counted.tolist()
            found[f"ece_{when}"] = expected_calibration_error(counted, first=1)
            found[f"ece_all_{when}"] = expected_calibration_error(counted)
        told = [row for row in rows if row["dice_expected"] is not None]
        pairs = np.array([[row["dice_expected"], row["dice"]] for row in told]).reshape(-1, 2)
        ranged = [row for row in rows if row["ml_low"] is not None]
        found |= {
            "dice_rank": _rank_correlation(pairs),
            "dice_error": float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()) if told else None,
            "covered": sum(row["ml_low"] <= row["ml_true"] <= row["ml_high"] for row in ranged),
            "ranged": len(ranged),
        }
        regions[name] = found
    return {"temperature": calibration.temperature, "regions": regions}


def _rank_correlation(pairs: Float[np.ndarray, "cases 2"]) -> float | None:
    if len(pairs) < 3 or np.ptp(pairs, axis=0).min() == 0:
        return None
    return float(np.corrcoef(stats.rankdata(pairs, axis=0).T)[0, 1])


def _truth(reference: Integer[np.ndarray, "n"], task: task_lib.Task) -> Bool[np.ndarray, "n r"]:
    masks = [np.isin(reference, region.members) for region in task.regions]
    return np.stack(masks, axis=-1)
