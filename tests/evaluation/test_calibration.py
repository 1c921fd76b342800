"""Calibration: the fit, the error and the range of volumes, by hand and against others."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from scipy import optimize, special

from kdnet_jax import dataset_json
from kdnet_jax.data.scans import geometry, prepare
from kdnet_jax.errors import UserError
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
    head: heads.Head, voxels: int, seed: int, temperature: float, biases: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities "n k" of a network, and classes that have other frequencies.

    Those are softmax(z / T + b) of the network's logits z.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(voxels, len(head.outputs))) * 3
    true = z / temperature + biases
    if head.kind == "softmax":
        p = special.softmax(true, axis=-1)
        reference = (rng.random((voxels, 1)) > np.cumsum(p, axis=-1)).sum(axis=-1)
        return special.softmax(z, axis=-1).astype(np.float32), reference.astype(np.uint8)
    reference = (rng.random(voxels) < special.expit(true)[:, 0]).astype(np.uint8)
    return special.expit(z).astype(np.float32), reference


def test_one_of_another_version_is_told_with_what_to_do(tmp_path: pathlib.Path) -> None:
    path = tmp_path / calibration_lib.FILE
    held = {"temperature": 1.0, "volume_errors": {"lesion": {"mean": 0.1}}}
    path.write_text(json.dumps({"parameters_sha256": "a", "calibration": held}), "utf-8")
    with pytest.raises(UserError) as caught:
        calibration_lib.read(tmp_path, TWO, "a")
    assert str(caught.value) == (
        f"{path} is of another version of kdnet_jax: its calibration has temperature, "
        "volume_errors, where this version has temperature, biases, volume_errors. Remove it and "
        "start the run's python -m kdnet_jax.main again: it is measured anew."
    )


# --- What brings them to frequencies -------------------------------------------------------------


def test_a_temperature_and_a_bias_by_hand() -> None:
    # sqrt(0.64) : sqrt(0.36) = 0.8 : 0.6; times 1 : 3 it is 0.8 : 1.8.
    p = np.array([[0.64, 0.36]], np.float32)
    np.testing.assert_allclose(TWO.calibrated(p, 2.0), [[4 / 7, 3 / 7]], rtol=1e-6)
    shifted = TWO.calibrated(p, 2.0, (0.0, math.log(3)))
    np.testing.assert_allclose(shifted, [[4 / 13, 9 / 13]], rtol=1e-6)
    np.testing.assert_allclose(ONE.calibrated(p[:, 1:], 2.0, (math.log(3),)), [[9 / 13]], rtol=1e-6)
    np.testing.assert_array_equal(TWO.calibrated(p, 1.0, (0.0, 0.0)), p)


@glioma.each_head
def test_it_is_that_of_the_logits(head: heads.Head) -> None:
    z = np.random.default_rng(0).normal(size=(50, len(head.outputs))).astype(np.float32) * 4
    p = np.asarray(head.probabilities(z))
    np.testing.assert_allclose(head.calibrated(p, 3.0), head.probabilities(z, 3.0), atol=1e-5)
    biases = [0.5, -1.0, 0.25, 2.0][: len(head.outputs)]
    found = head.calibrated(p, 0.5, biases)
    np.testing.assert_allclose(found, head.probabilities(z / 0.5 + np.array(biases)), atol=1e-5)
    again = head.calibrated(found, 2.0, [-0.5 * bias for bias in biases])
    np.testing.assert_allclose(again, p, atol=1e-4)


@glioma.each_head
def test_even_an_extreme_one_can_be_undone(head: heads.Head) -> None:
    """T b beyond what e^x holds in float32."""
    biases = (0.0, -9.0, 2.0, -4.0)[: len(head.outputs)]
    found = calibration_lib.Calibration(15.0, biases)
    z = np.random.default_rng(0).normal(size=(50, len(head.outputs))).astype(np.float32) * 4
    p = np.asarray(head.probabilities(z))
    np.testing.assert_allclose(found.undo(head, found.apply(head, p)), p, atol=1e-3)


def test_certainty_stays_certain() -> None:
    above = np.nextafter(np.float32(1), np.float32(2))  # an average may be so by rounding
    sure = np.array([[0.0], [1.0], [above]], np.float32)
    np.testing.assert_array_equal(ONE.calibrated(sure, 3.0, (-1.0,)), [[0], [1], [1]])
    ends = np.array([[0, 1]], np.float32)
    np.testing.assert_array_equal(TWO.calibrated(ends, 3.0, (0.0, -1.0)), ends)


@pytest.mark.parametrize("head", [glioma.SOFTMAX, ONE], ids=["softmax", "regions"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_what_was_too_sure_or_too_often_is_found(head: heads.Head, temperature: float) -> None:
    biases = np.array([0.0, -1.0, 0.5, -0.5][: len(head.outputs)]) - (head is ONE)
    cases = [_drawn(head, 20_000, seed, temperature, biases) for seed in range(4)]
    samples = [calibration.sample(*case, head, 1.0) for case in cases[:3]]
    assert {len(each.z) for each in samples} == {5000}
    found, about = calibration.fit(samples, head)
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.biases == pytest.approx(biases, abs=0.1)
    assert about["loss_after"] < about["loss_before"] or temperature == 1.0
    # On a case that it has not seen.
    p, reference = cases[3]
    after = found.apply(head, p)
    np.testing.assert_allclose(found.undo(head, after), p, atol=1e-3)
    for place, region in enumerate(head.task.region_names):
        truth = head.task.mask(reference, region)
        errors = [
            calibration.expected_calibration_error(
                calibration.bins(head.region_probabilities(each)[:, place], truth)
            )
            for each in (p, after)
        ]
        assert errors[1] < 0.02
        assert errors[0] > 2 * errors[1]


@glioma.each_head
def test_the_fit_is_the_optimum(head: heads.Head) -> None:
    """Against a search without gradients, of the same sum written by voxel."""
    rng = np.random.default_rng(2)
    samples = []
    for voxels in (30, 50):
        z = rng.normal(size=(voxels, len(head.outputs)))
        samples.append(calibration.Sample(z.tolist(), rng.integers(0, 4, voxels).tolist()))

    def value(x: np.ndarray) -> float:
        total = 0.0
        for z, reference in samples:
            likelihood = 0.0
            for row, number in zip(z, reference, strict=True):
                scaled = np.array(row) * math.exp(x[0]) + x[1:]
                if head.kind == "softmax":
                    likelihood -= special.log_softmax(scaled)[number]
                else:
                    inside = [number in region.members for region in head.task.regions]
                    p = special.expit(scaled)
                    likelihood -= np.log(np.where(inside, p, 1 - p)).sum()
            total += likelihood / len(z)
        return total / 2 + 0.001 * float(x @ x)

    start = np.zeros(1 + len(head.outputs))
    best = optimize.minimize(value, start, method="BFGS").x
    found, _ = calibration.fit(samples, head)
    assert found.temperature == pytest.approx(math.exp(-best[0]), rel=0.02)
    expected = best[1:] - best[1] if head.kind == "softmax" else best[1:]
    assert found.biases == pytest.approx(expected, abs=0.02)


def test_cases_count_alike_and_empty_ones_not_at_all() -> None:
    # Half of the first case's voxels are lesion, none of the second's, at p = 0.5.
    mixed = calibration.Sample([[0.0]] * 1000, [0, 1] * 500)
    none = calibration.Sample([[0.0]] * 10, [0] * 10)
    empty = calibration.Sample([], [])
    found, _ = calibration.fit([mixed, none, empty], ONE)
    # A quarter over the cases: ln (1 / 3), but for the prior.
    assert found.biases[0] == pytest.approx(math.log(1 / 3), abs=0.1)
    assert calibration.fit([empty], ONE) == (calibration_lib.NONE, {})


def test_a_class_that_no_case_has_keeps_a_bias() -> None:
    z = np.random.default_rng(0).normal(size=(500, 4))
    reference = np.random.default_rng(1).integers(0, 3, 500)  # no ET
    found, _ = calibration.fit([calibration.Sample(z.tolist(), reference.tolist())], glioma.SOFTMAX)
    assert -8 < found.biases[3] < -1


def test_only_doubtful_voxels_are_taken() -> None:
    p = np.array([0.0, 0.04, 0.06, 0.9], np.float32)
    np.testing.assert_array_equal(calibration.doubtful(p[:, None], ONE), [0, 0, 1, 1])
    both = np.stack([1 - p, p], axis=-1)
    np.testing.assert_array_equal(calibration.doubtful(both, TWO), [0, 0, 1, 1])


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
    found = calibration_lib.Calibration(1.0, (), (error,))
    told = _confidence(np.array([1.0] * 4 + [0.0] * 8), np.arange(12) < 4, found)
    assert str(told) == "1.0 to 4.4 ml, expected Dice 1.00"
    # No volume is larger than what the scan shows: 4 voxels of 0.5 ml.
    assert _confidence(np.ones(4), np.ones(4), found).ml_high == 2.0
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
    cases = [calibration.Volumes([2.0], [true]) for true in (1.0, 2.0, 4.0, 2.0, 2.0)]
    (error,) = calibration.spread(cases)
    ratios = np.log([2 / 3, 1, 5 / 3, 1, 1])
    assert error.mean == pytest.approx(ratios.mean())
    assert error.deviation == pytest.approx(ratios.std(ddof=1))
    assert error.cases == 5
    assert calibration.spread(cases[:4]) == ()


def test_volumes_of_a_case_by_hand() -> None:
    p = np.array([[0.5], [0.25], [1.0]], np.float32)
    found = calibration.volumes(p, np.array([0, 1, 1], np.uint8), ONE, 2.0)
    assert found == calibration.Volumes([3.5], [4.0])


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
    found = calibration_lib.Calibration(2.0, (-math.log(4),), (error,))
    calibrated = found.apply(ONE, raw)
    told = calibration.measure(_case(inside), calibrated, reference, ONE, found)
    row = told["lesion"]
    # Odds of 9, 4 and 1 / 9: a quarter of their roots 3, 2 and 1 / 3. The mask is that of the
    # network: the first two.
    sum_p = 3 / 7 + 1 / 3 + 1 / 13
    assert row["ml_expected"] == row["ml_low"] == row["ml_high"] == pytest.approx(sum_p)
    assert row["ml_true"] == 1
    assert row["dice"] == pytest.approx(2 / 3)
    assert row["dice_expected"] == pytest.approx(2 * (3 / 7 + 1 / 3) / (2 + sum_p))
    before, after = (np.array(row[f"bins_{when}"]) for when in ("before", "after"))
    assert before[:, 0].sum() == after[:, 0].sum() == 3
    assert (before[[2, 16, 18], 0] == 1).all()
    assert (after[[1, 6, 8], 0] == 1).all()


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
