"""Heads: probabilities, targets, and back to classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax.models import heads
from tests.helpers import made_up_tasks
from tests.helpers.glioma import REGIONS, SOFTMAX, each_head


def test_softmax_probabilities_by_hand() -> None:
    logits = jnp.log(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(SOFTMAX.probabilities(logits), [[0.1, 0.2, 0.3, 0.4]], rtol=1e-5)
    # T = 1/2 squares the odds: 1, 4, 9, 16 of 30.
    np.testing.assert_allclose(
        SOFTMAX.probabilities(logits, 0.5), np.array([[1, 4, 9, 16]]) / 30, rtol=1e-5
    )


def test_region_probabilities_by_hand() -> None:
    logits = jnp.array([[0.0, np.log(3.0), -np.log(3.0)]])
    np.testing.assert_allclose(REGIONS.probabilities(logits), [[0.5, 0.75, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(REGIONS.probabilities(logits, 0.5), [[0.5, 0.9, 0.1]], rtol=1e-5)


def test_targets_are_one_hot_classes_or_nested_regions() -> None:
    labels = jnp.arange(4, dtype=jnp.uint8)
    np.testing.assert_array_equal(SOFTMAX.targets(labels), np.eye(4))
    # background, NCR, ED, ET against ET, TC, WT
    np.testing.assert_array_equal(
        REGIONS.targets(labels), [[0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
    )


def test_region_targets_agree_with_the_project_s_regions() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    targets = REGIONS.targets(jnp.asarray(labels))
    members = {"ET": [3], "TC": [1, 3], "WT": [1, 2, 3]}
    for channel, region in enumerate(REGIONS.outputs):
        np.testing.assert_array_equal(targets[..., channel], np.isin(labels, members[region]))


@each_head
def test_classes_of_the_targets_are_the_labels(head: heads.Head) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    classes = head.decide(np.asarray(head.targets(jnp.asarray(labels))))
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, labels)


def test_regions_are_nested_when_turned_into_classes() -> None:
    # ET, TC, WT: a region outside the one around it is dropped; 0.5 itself is not above.
    probs = np.array(
        [[0.9, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.9], [0.9, 0.9, 0.5]]
    )
    np.testing.assert_array_equal(REGIONS.decide(probs), [0, 2, 1, 3, 0])


def test_foreground_leaves_out_the_background_only() -> None:
    assert SOFTMAX.outputs[SOFTMAX.foreground] == ("NCR", "ED", "ET")
    assert REGIONS.outputs[REGIONS.foreground] == ("ET", "TC", "WT")


# Of tasks with regions that are not nested: "wall" (1, 2) and "scar" (2, 3) overlap, "clot" (3)
# lies in "scar", and 4 is what nobody labelled.
HEART_SOFTMAX, HEART = (heads.Head(made_up_tasks.HEART, kind) for kind in ("softmax", "regions"))


def test_regions_that_overlap_have_common_targets() -> None:
    labels = jnp.arange(5, dtype=jnp.uint8)
    wall, scar, clot = np.asarray(HEART.targets(labels)).T
    np.testing.assert_array_equal(wall, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(scar, [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(clot, [0, 0, 0, 1, 0])


@pytest.mark.parametrize("head", [HEART_SOFTMAX, HEART], ids=lambda head: head.kind)
def test_voxels_without_a_label_have_no_target(head: heads.Head) -> None:
    labels = jnp.array([0, 3, 4, 4, 1], jnp.uint8)
    np.testing.assert_array_equal(head.known(labels), [1, 1, 0, 0, 1])
    assert not head.targets(labels)[2:4].any()


def test_all_voxels_of_a_task_without_an_ignore_label_count() -> None:
    assert REGIONS.known(jnp.arange(4)) is None


def test_regions_are_painted_one_over_the_other_inside_what_contains_them() -> None:
    answers = {
        # wall, scar, clot
        (0.9, 0.1, 0.1): 1,
        (0.9, 0.9, 0.1): 2,
        (0.1, 0.9, 0.1): 2,  # the wall overlaps the scar, but does not contain it
        (0.1, 0.9, 0.9): 3,
        (0.9, 0.9, 0.9): 3,
        (0.9, 0.1, 0.9): 1,  # a clot outside of a scar is none
        (0.1, 0.1, 0.9): 0,
        (0.5, 0.5, 0.5): 0,
    }
    np.testing.assert_array_equal(HEART.decide(np.array(list(answers))), list(answers.values()))


def test_a_region_painted_later_covers_what_it_contains() -> None:
    task = dataset_json.parse(
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "core": 2, "all": [1, 2]},
            "regions_class_order": [2, 1],
        },
        "core",
    )
    probs = np.array([[0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    np.testing.assert_array_equal(heads.Head(task, "regions").decide(probs), [2, 1, 1])


def test_regions_from_both_kinds_of_head() -> None:
    classes = np.array([[[[0.1, 0.2, 0.3, 0.4]]]], np.float32)  # background NCR ED ET
    sums = SOFTMAX.region_probabilities(classes)
    assert np.allclose(sums, [[[[0.4, 0.6, 0.9]]]])
    regions = np.array([[[[0.4, 0.6, 0.9]]]], np.float32)
    assert REGIONS.region_probabilities(regions) is regions
    # The head says what the channels are, and not their number.
    four = np.array([[[[0.4, 0.6, 0.9, 0.1]]]], np.float32)
    assert REGIONS.region_probabilities(four) is four
    with pytest.raises(IndexError):
        SOFTMAX.region_probabilities(regions)


def test_thresholds_of_a_softmax_paint_regions_by_their_classes_sums() -> None:
    probs = np.array(
        [
            [0.70, 0.10, 0.10, 0.10],  # ET 0.1, TC 0.2, WT 0.3: WT alone is above
            [0.60, 0.05, 0.05, 0.30],  # ET 0.3, TC 0.35, WT 0.4
            [0.55, 0.15, 0.20, 0.10],  # ET 0.1, TC 0.25, WT 0.45
            [0.80, 0.00, 0.00, 0.20],  # ET 0.2 and TC 0.2, but outside of WT: 0.2
        ]
    )
    np.testing.assert_array_equal(SOFTMAX.decide(probs, (0.15, 0.22, 0.25)), [2, 3, 1, 0])
    np.testing.assert_array_equal(SOFTMAX.decide(probs), [0, 0, 0, 0])
