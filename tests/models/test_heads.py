"""Heads: probabilities, targets, and back to classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.models import heads

SOFTMAX, REGIONS = (heads.Head(task_lib.GLIOMA, kind) for kind in ("softmax", "regions"))


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


@pytest.mark.parametrize("head", [SOFTMAX, REGIONS], ids=lambda head: head.kind)
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
