"""Calibration: the temperature, the error and the range of volumes, by hand and against others."""

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest
from scipy import optimize, special

from kdnet_jax import dataset_json
from kdnet_jax.data.scans import geometry, prepare
from kdnet_jax.evaluation import calibration
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence
from kdnet_jax.runs import calibration as calibration_lib
from tests.helpers import glioma

LESION = dataset_json.parse(
    {"channel_names": {"0": "t1"}, "labels": {"background": 0, "lesion": 1}}, "lesion"
)
ONE = heads.Head(LESION, "regions")
TWO = heads.Head(LESION)


def _drawn(
    head: heads.Head, voxels: int, seed: int, sharpness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities "n k" of a network whose logits are too large, and classes as they truly are.

    Divided by the sharpness, they are frequencies.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(voxels, len(head.outputs))) * 2
    if head.kind == "softmax":
        p = special.softmax(z, axis=-1)
        reference = (rng.random((voxels, 1)) > np.cumsum(p, axis=-1)).sum(axis=-1)
        return special.softmax(z * sharpness, axis=-1).astype(np.float32), reference
    reference = (rng.random(voxels) < special.expit(z)[:, 0]).astype(np.uint8)
    return special.expit(z * sharpness).astype(np.float32), reference


# --- The temperature -----------------------------------------------------------------------------


def test_a_temperature_by_hand() -> None:
    # sqrt(0.64) : sqrt(0.36) = 0.8 : 0.6.
    p = np.array([[0.64, 0.36]], np.float32)
    np.testing.assert_allclose(TWO.tempered(p, 2.0), [[4 / 7, 3 / 7]], rtol=1e-6)
    np.testing.assert_allclose(ONE.tempered(p[:, :1], 2.0), [[4 / 7]], rtol=1e-6)
    np.testing.assert_array_equal(TWO.tempered(p, 1.0), p)


@pytest.mark.parametrize("kind", ["softmax", "regions"])
def test_it_divides_the_logits(kind: Literal["softmax", "regions"]) -> None:
    head = dataclasses.replace(glioma.SOFTMAX, kind=kind)
    z = np.random.default_rng(0).normal(size=(50, len(head.outputs))).astype(np.float32) * 4
    for temperature in (0.5, 3.0):
        found = head.tempered(np.asarray(head.probabilities(z)), temperature)
        np.testing.assert_allclose(found, head.probabilities(z, temperature), atol=1e-5)
        again = head.tempered(found, 1 / temperature)
        np.testing.assert_allclose(again, head.probabilities(z), atol=1e-4)


def test_certainty_stays_certain() -> None:
    above = np.nextafter(np.float32(1), np.float32(2))  # an average may be so by rounding
    sure = np.array([[0.0], [1.0], [above]], np.float32)
    np.testing.assert_array_equal(ONE.tempered(sure, 3.0), [[0], [1], [1]])
    ends = np.array([[0, 1]], np.float32)
    np.testing.assert_array_equal(TWO.tempered(ends, 3.0), ends)


@pytest.mark.parametrize("head", [glioma.SOFTMAX, ONE], ids=["softmax", "regions"])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_what_was_too_sure_is_found(head: heads.Head, sharpness: float) -> None:
    cases = [_drawn(head, 20_000, seed, sharpness) for seed in range(3)]
    tables = [calibration.tabulate(*case, head, 1.0) for case in cases]
    found, about = calibration.choose(tables)
    # Within a step of the candidates, which lie 9 % apart.
    assert found.temperature == pytest.approx(sharpness, rel=0.1)
    assert about["likelihood_after"] <= about["likelihood_before"]
    p, reference = cases[0]
    truth = head.task.mask(reference, head.task.region_names[0])
    before, after = (
        calibration.expected_calibration_error(
            calibration.bins(head.region_probabilities(each)[:, 0], truth)
        )
        for each in (p, head.tempered(p, found.temperature))
    )
    assert after < 0.02
    if sharpness != 1:
        assert before > 2 * after


@pytest.mark.parametrize("head", [glioma.SOFTMAX, ONE], ids=["softmax", "regions"])
def test_the_best_candidate_is_beside_the_optimum_of_scipy(head: heads.Head) -> None:
    p, reference = _drawn(head, 5000, 1, 1.7)

    def likelihood(log_temperature: float) -> float:
        q = head.tempered(p.astype(np.float64), math.exp(log_temperature)).astype(np.float64)
        if head.kind == "regions":
            return -np.log(np.where(reference, q[:, 0], 1 - q[:, 0])).mean()
        return -np.log(q[np.arange(len(q)), reference]).mean()

    best = optimize.minimize_scalar(likelihood, bounds=(-1.4, 2), method="bounded")
    found, about = calibration.choose([calibration.tabulate(p, reference, head, 1.0)])
    assert abs(math.log(found.temperature) - best.x) <= math.log(2) / 16 + 1e-3
    assert about["likelihood_before"] == pytest.approx(likelihood(0), rel=1e-5)


def test_cases_count_alike_whatever_their_size() -> None:
    large = calibration.tabulate(*_drawn(ONE, 40_000, 0, 4.0), ONE, 1.0)
    small = calibration.tabulate(*_drawn(ONE, 4000, 1, 1.0), ONE, 1.0)
    (both, _), (alone, _) = calibration.choose([large, small]), calibration.choose([large])
    assert 1 < both.temperature < alone.temperature


# --- Its error -----------------------------------------------------------------------------------


def test_an_error_by_hand() -> None:
    # Bin 4 (0.2 to 0.25): 4 voxels at 0.2, one true: |1 - 0.8| = 0.2. Bin 19: p = 1, true: 0.
    # Bin 0: 5 voxels at 0, one true: 1. In all (0.2 + 1) / 10; without bin 0 0.2 / 5.
    p = np.array([0.2] * 4 + [1.0] + [0.0] * 5, np.float32)
    truth = np.array([1, 0, 0, 0, 1, 1, 0, 0, 0, 0], bool)
    counted = calibration.bins(p, truth)
    np.testing.assert_allclose(counted[[0, 4, 19]], [[5, 0, 1], [4, 0.8, 1], [1, 1, 1]], rtol=1e-6)
    assert counted[:, 0].sum() == 10
    assert calibration.expected_calibration_error(counted) == pytest.approx(0.12, abs=1e-6)
    assert calibration.expected_calibration_error(counted, first=1) == pytest.approx(0.04, abs=1e-6)
    assert calibration.expected_calibration_error(np.zeros((20, 3))) is None


def test_the_error_is_that_of_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    p = rng.random((9, 10, 11)).astype(np.float32)
    truth = rng.random(p.shape) < p**2
    metric = metrics.CalibrationErrorMetric(
        num_bins=calibration.BINS, calibration_reduction="expected"
    )
    as_monai = [torch.tensor(each, dtype=torch.float32)[None, None] for each in (p, truth)]
    metric(y_pred=as_monai[0], y=as_monai[1])
    found = calibration.expected_calibration_error(calibration.bins(p.ravel(), truth.ravel()))
    assert found == pytest.approx(float(metric.aggregate().mean()), abs=1e-6)


# --- What it says of a scan ----------------------------------------------------------------------


def _confidence(
    p: np.ndarray, mask: np.ndarray, found: calibration_lib.Calibration = calibration_lib.NONE
) -> confidence.Confidence:
    probs = p.astype(np.float32)[:, None]
    (told,) = confidence.of_regions(probs, mask.astype(np.uint8), ONE, found, 0.5).values()
    return told


def test_an_expected_dice_and_volume_by_hand() -> None:
    # The mask holds 0.9 and 0.7 of 0.9 + 0.7 + 0.4: 2 * 1.6 / (2 + 2).
    told = _confidence(np.array([0.9, 0.7, 0.4]), np.array([1, 1, 0]))
    assert told.dice_expected == pytest.approx(0.8)
    assert told.ml_expected == pytest.approx(1.0)
    assert told.ml_low is None
    assert str(told) == "expected Dice 0.80"
    assert _confidence(np.zeros(3), np.zeros(3)).dice_expected is None
    assert _confidence(np.array([0.4, 0.0]), np.zeros(2)).dice_expected == 0


def test_the_expected_dice_is_that_of_drawn_references() -> None:
    rng = np.random.default_rng(0)
    p = special.expit(rng.normal(-2, 2, 4000))
    mask = p > 0.5
    drawn = rng.random((200, p.size)) < p
    dice = 2 * (drawn & mask).sum(axis=1) / (drawn.sum(axis=1) + mask.sum())
    assert _confidence(p, mask).dice_expected == pytest.approx(dice.mean(), abs=0.005)


def test_a_range_by_hand() -> None:
    # t(0.975, 2) = 4.3027; 4.3027 * 0.1 * sqrt(4 / 3) = 0.49683; 3 * exp(0.1 -+ 0.49683) - 1.
    error = calibration_lib.VolumeError(mean=0.1, deviation=0.1, cases=3)
    low, high = confidence.volume_range(2.0, error)
    assert (low, high) == (pytest.approx(1.01727, abs=1e-4), pytest.approx(4.44899, abs=1e-4))
    found = calibration_lib.Calibration(1.0, (error,))
    told = _confidence(np.array([1.0, 1.0, 1.0, 1.0]), np.ones(4), found)
    assert str(told) == "1.0 to 4.4 ml, expected Dice 1.00"
    # A region that is hardly there may be absent, and has no volume below 0.
    assert confidence.volume_range(0.0, error)[0] == 0


def test_a_range_holds_95_of_100_further_cases() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        ratios = rng.normal(0.2, 0.5, 6)
        error = calibration_lib.VolumeError(
            float(ratios[:5].mean()), float(ratios[:5].std(ddof=1)), 5
        )
        low, high = confidence.volume_range(20.0, error)
        held.append(low <= 21 * math.exp(ratios[5]) - 1 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_spread_of_volumes_is_that_of_the_validation_cases() -> None:
    # At any temperature p = 0.5 stays: 8 voxels of 0.5 ml are 2 ml expected; 1, 2, 4 are true.
    p = np.full((8, 1), 0.5, np.float32)
    truths = [np.arange(8) < count for count in (2, 4, 8)]
    tables = [calibration.tabulate(p, truth.astype(np.uint8), ONE, 0.5) for truth in truths]
    (error,) = calibration.choose(tables)[0].volumes
    ratios = np.log([2 / 3, 1, 5 / 3])
    assert error.mean == pytest.approx(ratios.mean())
    assert error.deviation == pytest.approx(ratios.std(ddof=1))
    assert error.cases == 3
    assert calibration.choose(tables[:2])[0].volumes == ()


# --- Over test cases -----------------------------------------------------------------------------


def _case(inside: np.ndarray) -> prepare.PreparedCase:
    shape = inside.shape
    box = tuple((0, edge) for edge in shape)
    return prepare.PreparedCase(
        case_id="one",
        patient_id="one",
        grade=None,
        modalities=("t1",),
        image=inside[..., None].astype(np.float16),
        label=None,
        reference=None,
        geometry=geometry.Geometry(shape, np.diag([10.0, 10, 10, 1]), box, (10.0,) * 3, shape),
    )


def test_a_case_is_measured_where_it_has_data() -> None:
    inside = np.array([[[1, 1, 1, 0]]], bool)
    # The last voxel lies outside, and would be wrong.
    raw = np.array([0.9, 0.8, 0.1, 0.9], np.float32).reshape(1, 1, 4, 1)
    reference = np.array([[[1, 0, 0, 0]]], np.uint8)
    error = calibration_lib.VolumeError(0.0, 0.0, 3)
    found = calibration_lib.Calibration(2.0, (error,))
    calibrated = ONE.tempered(raw, 2.0)
    told = calibration.measure(_case(inside), calibrated, reference, ONE, found)
    row = told["lesion"]
    # 0.75, 2 / 3, 0.25: odds of 9, 4 and 1 / 9, their roots 3, 2 and 1 / 3.
    assert row["ml_expected"] == row["ml_low"] == row["ml_high"] == pytest.approx(5 / 3)
    assert row["ml_true"] == 1
    assert row["dice"] == pytest.approx(2 / 3)
    assert row["dice_expected"] == pytest.approx(2 * (0.75 + 2 / 3) / (2 + 5 / 3))
    before, after = (np.array(row[f"bins_{when}"]) for when in ("before", "after"))
    assert before[:, 0].sum() == after[:, 0].sum() == 3
    assert (before[[2, 16, 18], 0] == 1).all()
    assert (after[[5, 13, 15], 0] == 1).all()


def test_a_summary_over_cases_by_hand() -> None:
    def row(expected: float | None, dice: float, true: float) -> dict:
        counted = np.zeros((20, 3))
        counted[10] = 10, 5, 4
        bins = {f"bins_{when}": counted.tolist() for when in ("before", "after")}
        told = confidence.Confidence(expected, 2.0, 1.0, 3.0)
        return {"lesion": dataclasses.asdict(told) | {"dice": dice, "ml_true": true} | bins}

    cases = {
        "a": row(0.9, 0.8, 2.0),
        "b": row(0.5, 0.6, 4.0),
        "c": row(0.7, 0.3, 3.0),
        "d": row(None, 1.0, 0.0),
    }
    found = calibration.summarise(cases, calibration_lib.Calibration(1.5))
    assert found["temperature"] == 1.5
    lesion = found["regions"]["lesion"]
    assert lesion["ece_before"] == lesion["ece_after"] == pytest.approx(0.1)
    # Ranks 3, 1, 2 and 3, 2, 1 of the three that have an expected Dice.
    assert lesion["dice_rank"] == pytest.approx(0.5)
    assert lesion["dice_error"] == pytest.approx((0.1 + 0.1 + 0.4) / 3)
    assert (lesion["covered"], lesion["ranged"]) == (2, 4)
    two = calibration.summarise({name: cases[name] for name in "ab"}, calibration_lib.NONE)
    assert two["regions"]["lesion"]["dice_rank"] is None
