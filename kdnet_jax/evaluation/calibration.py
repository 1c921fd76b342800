"""Calibration: how far a network's probabilities are frequencies, and what brings them there.

A temperature T and a bias b for each output: softmax(z / T + b), the bias-corrected temperature
scaling of Alexandari, Kundaje & Shrikumar, "Maximum likelihood with bias-corrected calibration is
hard-to-beat at label shift adaptation", ICML 2020. T alone (Guo et al., "On calibration of modern
neural networks", ICML 2017) makes all classes surer or less sure; but networks that train on
patches around tumours, by a loss that balances classes, find them too often everywhere. Here both
act on what windows, and mirror images if there are any, were averaged to (`Head.calibrated`).

Only voxels count in which a scan has data and a reference (`seen`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Integer, PyTree, UInt8
from scipy import optimize, special, stats

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.scans import prepare
from kdnet_jax.evaluation import working_grid
from kdnet_jax.metrics import overlap
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence, inference
from kdnet_jax.runs import calibration as calibration_lib

Result = TypeVar("Result")

# Below it a logarithm says more of rounding than of the network.
_SMALLEST: Final = 1e-7
BINS: Final = 20
# Of a case, for the fit of a handful of numbers.
_VOXELS: Final = 5000
# Of a normal prior on ln T and b, as the share of a case: it holds what no case has.
_PRIOR: Final = 0.001


class Sample(NamedTuple):
    """Some voxels of a case.

    Attributes:
        z: logits "n k": ln p, of a regions head ln p - ln (1 - p).
        reference: their classes.
    """

    z: list[list[float]]
    reference: list[int]


def seen(
    case: prepare.PreparedCase, reference: UInt8[np.ndarray, "d h w"], task: task_lib.Task
) -> Bool[np.ndarray, "d h w"]:
    """Returns the voxels that count: those with data and a reference."""
    return case.inside if task.ignore is None else case.inside & (reference != task.ignore)


def sample(
    probs: Float[np.ndarray, "n k"],
    reference: UInt8[np.ndarray, "n"],
    head: heads.Head,
    voxel_ml: float,
) -> Sample:
    """Returns a sample of a case's `doubtful` voxels, always the same.

    Args:
        probs: of the head's outputs, on the voxels that are `seen`.
        reference: their classes.
        head: what the outputs are.
        voxel_ml: not read.
    """
    del voxel_ml
    found = np.flatnonzero(doubtful(probs, head))
    if len(found) > _VOXELS:
        found = np.random.default_rng(len(found)).choice(found, _VOXELS, replace=False)
    z = np.log(np.maximum(probs[found], _SMALLEST))
    if head.kind == "regions":
        z -= np.log(np.maximum(1 - probs[found], _SMALLEST))
    return Sample(z.tolist(), reference[found].tolist())


def doubtful(probs: Float[np.ndarray, "n k"], head: heads.Head) -> Bool[np.ndarray, "n"]:
    """Returns the voxels that are in a region with a probability of at least 1 / `BINS`.

    Nearly all others are surely background. They are so many that they alone would decide, and
    hide every error.
    """
    if head.kind == "softmax":
        return probs[:, 0] <= 1 - 1 / BINS
    return probs.max(axis=-1) >= 1 / BINS


def fit(
    samples: Sequence[Sample], head: heads.Head
) -> tuple[calibration_lib.Calibration, dict[str, float]]:
    """Returns T and b of the smallest mean of -ln p of the reference, over cases and their voxels.

    A normal prior holds ln T and b near 0 as far as the cases leave them open. They are for other
    cases than these.

    Args:
        samples: of each validation case; those without a voxel count for nothing.
        head: what the outputs are.

    Returns:
        The calibration, without volumes, and the mean of -ln p before and after.
    """
    softmax = head.kind == "softmax"
    cases = [(np.array(each.z, np.float64), np.array(each.reference)) for each in samples if each.z]
    targets = [
        np.eye(len(head.outputs))[classes] if softmax else _truth(classes, head.task).astype(float)
        for _, classes in cases
    ]

    def loss(x: Float[np.ndarray, "p"]) -> tuple[float, Float[np.ndarray, "p"]]:
        """Returns the mean over cases of -ln p, and its gradient, for ln (1 / T) and b."""
        total, slopes = 0.0, np.zeros_like(x)
        for (z, _), target in zip(cases, targets, strict=True):
            scaled = z * math.exp(x[0]) + x[1:]
            if softmax:
                log_p = special.log_softmax(scaled, axis=-1)
                value, p = -(target * log_p).sum(), np.exp(log_p)
            else:
                value = np.logaddexp(0, np.where(target > 0, -scaled, scaled)).sum()
                p = special.expit(scaled)
            apart = (p - target) / len(z)
            total += value / len(z)
            slopes[0] += (apart * z).sum() * math.exp(x[0])
            slopes[1:] += apart.sum(axis=0)
        return total / len(cases), slopes / len(cases)

    def penalised(x: Float[np.ndarray, "p"]) -> tuple[float, Float[np.ndarray, "p"]]:
        value, slopes = loss(x)
        return value + _PRIOR * float(x @ x), slopes + 2 * _PRIOR * x

    start = np.zeros(1 + len(head.outputs))
    if not cases:
        return calibration_lib.NONE, {}
    ends = [(-3.0, 3.0)] + [(-10.0, 10.0)] * len(head.outputs)
    best = optimize.minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=ends).x
    # Of a softmax only differences count.
    biases = best[1:] - best[1] if softmax else best[1:]
    found = calibration_lib.Calibration(math.exp(-best[0]), tuple(biases.tolist()))
    return found, {"loss_before": float(loss(start)[0]), "loss_after": float(loss(best)[0])}


class Volumes(NamedTuple):
    """Of a case, ml by region: the sum of the calibrated probabilities, and the truth."""

    expected: list[float]
    true: list[float]


def spread(cases: Sequence[Volumes]) -> tuple[calibration_lib.VolumeError, ...]:
    """Returns the errors of the volumes of validation cases by region; of too few none."""
    if len(cases) < calibration_lib.FEWEST_CASES:
        return ()
    expected, true = np.array(cases).transpose(1, 0, 2)
    ratios = np.log((true + 1) / (expected + 1))
    return tuple(
        calibration_lib.VolumeError(float(of.mean()), float(of.std(ddof=1)), len(cases))
        for of in ratios.T
    )


def volumes(
    probs: Float[np.ndarray, "n k"],
    reference: UInt8[np.ndarray, "n"],
    head: heads.Head,
    voxel_ml: float,
) -> Volumes:
    """Returns the volumes of a case: as `sample`, of calibrated probabilities and by voxel_ml."""
    expected = head.region_probabilities(probs).sum(axis=0, dtype=np.float64) * voxel_ml
    true = _truth(reference, head.task).sum(axis=0) * voxel_ml
    return Volumes(expected.tolist(), true.tolist())


def of_cases(
    of: Callable[..., Result],
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> list[tuple[int, Result]]:
    """Returns what `sample` or `volumes` makes of each of the numbered cases.

    Args:
        of: the one or the other.
        predictor: see `working_grid.predict`.
        params: likewise.
        cases: likewise.
        cavity: likewise.
    """
    model, results = predictor.models[0], []
    for each in working_grid.predict(predictor, params, cases, cavity):
        counts = seen(each.case, each.reference, model.task)
        calibrated = model.calibration.apply(model.head, each.probabilities[counts])
        found = of(calibrated, each.reference[counts], model.head, each.case.geometry.voxel_ml)
        results.append((each.place, found))
    return results


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
    before = calibration.undo(head, after)
    voxel_ml = case.geometry.voxel_ml
    decided = head.decide(before, thresholds)
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
        have at least 1 / `BINS` (see `doubtful`) and `ece_all` of all, each before and after;
        `dice_rank`, Spearman's correlation of expected and true Dice over the cases (`None` of
        fewer than 3), `dice_error`, their mean absolute difference, and `covered`, in how many of
        `ranged` cases the range holds the true volume.
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
    return {
        "temperature": calibration.temperature,
        "biases": list(calibration.biases),
        "regions": regions,
    }


def _rank_correlation(pairs: Float[np.ndarray, "cases 2"]) -> float | None:
    if len(pairs) < 3 or np.ptp(pairs, axis=0).min() == 0:
        return None
    return float(np.corrcoef(stats.rankdata(pairs, axis=0).T)[0, 1])


def _truth(reference: Integer[np.ndarray, "n"], task: task_lib.Task) -> Bool[np.ndarray, "n r"]:
    return np.stack([task.mask(reference, name) for name in task.region_names], axis=-1)
