"""Overlap measures from hand-counted voxels."""

import math

import numpy as np
import pytest

from kdnet_jax.metrics import overlap


def test_hand_counted() -> None:
    reference = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    prediction = np.array([0, 1, 1, 1, 1, 0, 0, 0], bool)
    assert overlap.dice(reference, prediction) == pytest.approx(2 * 2 / (3 + 4))
    assert overlap.dice(prediction, reference) == overlap.dice(reference, prediction)
    assert overlap.sensitivity(reference, prediction) == pytest.approx(2 / 3)
    assert overlap.specificity(reference, prediction) == pytest.approx(3 / 5)


def test_empty_and_full_masks() -> None:
    empty, full = np.zeros((2, 3, 4), bool), np.ones((2, 3, 4), bool)
    assert overlap.dice(empty, empty) == 1.0
    assert overlap.dice(empty, full) == overlap.dice(full, empty) == 0.0
    assert math.isnan(overlap.sensitivity(empty, full))
    assert math.isnan(overlap.specificity(full, empty))
    assert overlap.sensitivity(full, empty) == overlap.specificity(empty, full) == 0.0
    assert overlap.specificity(empty, empty) == overlap.sensitivity(full, full) == 1.0


def test_disjoint_masks() -> None:
    mask = np.eye(4, dtype=bool)
    assert overlap.dice(mask, ~mask) == overlap.sensitivity(mask, ~mask) == 0.0
