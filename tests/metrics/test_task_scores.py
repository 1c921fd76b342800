"""Scores of tasks that are not the glioma, by numbers derived by hand."""

import json
import math

import numpy as np
import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases
from tests.helpers import made_up_tasks

TALL = (2.0, 1.0, 1.0)  # of a rod along the first axis, voxels are 2 mm apart and hold 2 mm3


def rod(*classes: int) -> np.ndarray:
    return np.array(classes, np.uint8).reshape(-1, 1, 1)


def test_one_class_has_one_row() -> None:
    task = made_up_tasks.LESION
    (row,) = cases.score_case("a", rod(0, 1, 1, 0), rod(0, 0, 1, 1), TALL, task=task)
    assert (row.region, row.dice) == ("lesion", 0.5)
    assert row.hd95_mm == pytest.approx(0.95 * 2.0)
    assert (row.sensitivity, row.specificity) == (0.5, 0.5)
    assert (row.volume_ref_mm3, row.volume_pred_mm3) == (4.0, 4.0)
    summary = cases.summarise([row], task=task)
    assert list(summary["regions"]) == ["lesion"]
    assert summary["mean_dice"] == 0.5
    assert summary["task"] == {"name": task.name, "regions": {"lesion": ["lesion"]}}
    json.dumps(summary, allow_nan=False)


def test_two_classes_exclude_one_another() -> None:
    reference, prediction = rod(1, 1, 2, 2, 0), rod(1, 2, 2, 2, 2)
    rows = cases.score_case("a", reference, prediction, TALL, task=made_up_tasks.PROSTATE)
    peripheral, transition = rows
    assert [row.region for row in rows] == ["peripheral zone", "transition zone"]
    assert peripheral.dice == pytest.approx(2 * 1 / (2 + 1))
    assert transition.dice == pytest.approx(2 * 2 / (2 + 4))
    assert (transition.sensitivity, transition.specificity) == (1.0, pytest.approx(1 / 3))
    with pytest.raises(UserError, match=r"prediction holds values from 3 to 3, .* 0 to 2"):
        cases.score_case(
            "a", reference, np.full_like(prediction, 3), TALL, task=made_up_tasks.PROSTATE
        )


def test_overlapping_regions_without_the_voxels_that_nobody_labelled() -> None:
    # Places 4 and 5 have no label: what is predicted there is neither right nor wrong.
    reference = rod(1, 2, 3, 0, 4, 4, 2, 0)
    prediction = rod(1, 1, 3, 3, 2, 0, 2, 0)
    before = reference.copy(), prediction.copy()
    rows = cases.score_case("a", reference, prediction, TALL, task=made_up_tasks.HEART)
    wall, scar, clot = rows
    assert [row.region for row in rows] == ["wall", "scar", "clot"]
    # Wall: places 0, 1 and 6 in both.
    assert (wall.dice, wall.hd95_mm, wall.nsd) == (1.0, 0.0, 1.0)
    assert (wall.volume_ref_mm3, wall.volume_pred_mm3) == (6.0, 6.0)
    assert (wall.lesions_pred, wall.lesions_false) == (2, 0)
    # Scar: places 1, 2, 6 and 2, 3, 6; distances 2, 0, 0 mm, whose 95th percentile is 1.8.
    assert scar.dice == pytest.approx(2 * 2 / (3 + 3))
    assert scar.hd95_mm == pytest.approx(1.8)
    assert scar.sensitivity == pytest.approx(2 / 3)
    # Of the three labelled places that are no scar (0, 3, 7), 3 was taken for it.
    assert scar.specificity == pytest.approx(2 / 3)
    assert clot.dice == pytest.approx(2 * 1 / (1 + 2))
    assert clot.specificity == pytest.approx(4 / 5)
    np.testing.assert_array_equal(before, (reference, prediction))


def test_a_case_that_nobody_labelled_scores_as_empty() -> None:
    reference = rod(4, 4, 4)
    for row in cases.score_case("a", reference, rod(1, 2, 3), TALL, task=made_up_tasks.HEART):
        assert (row.dice, row.hd95_mm, row.ref_empty, row.pred_empty) == (1.0, 0.0, True, True)
        assert math.isnan(row.specificity)


def test_a_prediction_cannot_ignore() -> None:
    with pytest.raises(UserError, match=r"prediction holds values from 4 to 4, .* 0 to 3"):
        cases.score_case("a", rod(4, 1), rod(4, 4), TALL, task=made_up_tasks.HEART)
