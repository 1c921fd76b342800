"""Thresholds of regions: the table of a case, and the choice, against plain searches."""

import itertools

import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax.evaluation import decisions
from kdnet_jax.metrics import overlap
from kdnet_jax.models import heads
from tests.helpers import glioma, made_up_tasks

LESION = dataset_json.parse(
    {"channel_names": {"0": "t1"}, "labels": {"background": 0, "lesion": 1}}, "lesion"
)
ONE = heads.Head(LESION, "regions")


def _line(*probabilities: float) -> np.ndarray:
    return np.array(probabilities, np.float32).reshape(1, 1, -1, 1)


def _table(head: heads.Head, probs: np.ndarray, reference: np.ndarray) -> decisions.Table:
    return decisions.tabulate(head.region_probabilities(probs), reference, head.task)


def _dice(head: heads.Head, probs: np.ndarray, reference: np.ndarray, limits: tuple) -> list:
    decided = head.decide(probs, limits)
    task = head.task
    return [
        overlap.dice(task.mask(reference, name), task.mask(decided, name))
        for name in task.region_names
    ]


def test_a_choice_by_hand() -> None:
    # Above 0.2 lie the two voxels of the lesion and one other: 2 * 2 / (2 + 3) = 0.8. Below 0.2
    # there are two others more; above 0.35 one voxel of the lesion is left: 2 / 3.
    reference = np.array([1, 1, 0, 0, 0], np.uint8).reshape(1, 1, -1)
    table = _table(ONE, _line(0.42, 0.32, 0.22, 0.12, 0.12), reference)
    # Above 0.25 and 0.3 the lesion alone: 1; 0.3 is nearer to 0.5.
    assert decisions.choose([table], ONE) == (0.3,)
    assert decisions.mean_dice([table], (0.3,), ONE) == {"lesion": 1.0}
    assert decisions.mean_dice([table], (0.2,), ONE) == {"lesion": 0.8}
    assert decisions.mean_dice([table], (0.35,), ONE) == {"lesion": pytest.approx(2 / 3)}


def test_a_network_that_cannot_know_gets_half_of_its_dice() -> None:
    # Calibrated: of 10 voxels at 0.2 two are lesion. All of them: 2 * 2 / (2 + 10) = 1 / 3, and by
    # any threshold from 0.2 on, 0.
    reference = np.array([1, 1, *[0] * 8], np.uint8).reshape(1, 1, -1)
    table = _table(ONE, _line(*[0.2] * 10), reference)
    assert decisions.choose([table], ONE) == (0.15,)
    assert decisions.mean_dice([table], (0.15,), ONE)["lesion"] == pytest.approx(1 / 3)
    assert decisions.mean_dice([table], (0.2,), ONE) == {"lesion": 0.0}


def test_where_nothing_helps_the_threshold_stays_at_half() -> None:
    nothing = _table(ONE, _line(0.01, 0.02), np.zeros((1, 1, 2), np.uint8))
    missed = _table(ONE, _line(0.01, 0.02), np.array([[[1, 0]]], np.uint8))
    assert decisions.choose([nothing, missed], ONE) == (0.5,)
    # Both empty is 1, one empty 0; the case without a row counts.
    assert decisions.mean_dice([missed, nothing], (0.5,), ONE) == {"lesion": 0.5}


def test_a_mean_over_cases_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(3):
        reference = rng.integers(0, 2, (3, 4, 5)).astype(np.uint8)
        noisy = 0.3 * reference + 0.5 * rng.random(reference.shape)
        cases.append((noisy.astype(np.float32)[..., None], reference))
    means = {
        limit: np.mean([_dice(ONE, *case, (limit,)) for case in cases])
        for limit in decisions.CANDIDATES
    }
    tables = [_table(ONE, *case) for case in cases]
    (chosen,) = decisions.choose(tables, ONE)
    assert means[chosen] == pytest.approx(max(means.values()))
    assert chosen != 0.5
    for limit, expected in means.items():
        found = decisions.mean_dice(tables, (limit,), ONE)["lesion"]
        assert found == pytest.approx(expected), limit


@pytest.mark.parametrize(
    "head",
    [glioma.SOFTMAX, glioma.REGIONS, heads.Head(made_up_tasks.HEART, "regions")],
    ids=["softmax", "nested", "overlapping"],
)
def test_the_table_holds_what_the_decision_makes_of_all_regions(head: heads.Head) -> None:
    rng = np.random.default_rng(1)
    # Of the heart's task 4 is the ignore label.
    reference = rng.integers(0, 5 if head.task.ignore else 4, (4, 5, 6)).astype(np.uint8)
    probs = rng.dirichlet(np.ones(len(head.outputs)), reference.shape).astype(np.float32)
    table = _table(head, probs, reference)
    assert sum(row[-1] for row in table) <= reference.size
    known = reference != (head.task.ignore or 255)
    for limits in itertools.product((0.05, 0.3, 0.65), repeat=len(head.task.regions)):
        found = decisions.mean_dice([table], limits, head)
        expected = _dice(head, probs[known], reference[known], limits)
        np.testing.assert_allclose([*found.values()], expected)
    chosen = decisions.mean_dice([table], decisions.choose([table], head), head)
    half = decisions.mean_dice([table], (0.5,) * len(chosen), head)
    assert sum(chosen.values()) >= sum(half.values())
