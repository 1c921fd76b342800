"""Heads: probabilities, targets, and back to classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import conventions
from kdnet_jax.models import heads


def test_softmax_probabilities_by_hand() -> None:
    logits = jnp.log(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(
        heads.probabilities(logits, "softmax"), [[0.1, 0.2, 0.3, 0.4]], rtol=1e-5
    )
    # T = 1/2 squares the odds: 1, 4, 9, 16 of 30.
    np.testing.assert_allclose(
        heads.probabilities(logits, "softmax", 0.5), np.array([[1, 4, 9, 16]]) / 30, rtol=1e-5
    )


def test_region_probabilities_by_hand() -> None:
    logits = jnp.array([[0.0, np.log(3.0), -np.log(3.0)]])
    np.testing.assert_allclose(
        heads.probabilities(logits, "regions"), [[0.5, 0.75, 0.25]], rtol=1e-5
    )
    np.testing.assert_allclose(
        heads.probabilities(logits, "regions", 0.5), [[0.5, 0.9, 0.1]], rtol=1e-5
    )


def test_targets_are_one_hot_classes_or_nested_regions() -> None:
    labels = jnp.arange(4, dtype=jnp.uint8)
    np.testing.assert_array_equal(heads.targets(labels, "softmax"), np.eye(4))
    # background, NCR, ED, ET against ET, TC, WT
    np.testing.assert_array_equal(
        heads.targets(labels, "regions"), [[0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
    )


def test_region_targets_agree_with_the_project_s_regions() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    targets = heads.targets(jnp.asarray(labels), "regions")
    for channel, region in enumerate(conventions.REGIONS):
        np.testing.assert_array_equal(
            targets[..., channel], conventions.region_mask(labels, region)
        )


@pytest.mark.parametrize("head", ["softmax", "regions"])
def test_classes_of_the_targets_are_the_labels(head: heads.Head) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    classes = heads.to_classes(np.asarray(heads.targets(jnp.asarray(labels), head)), head)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, labels)


def test_regions_are_nested_when_turned_into_classes() -> None:
    # ET, TC, WT: a region outside the one around it is dropped; 0.5 itself is not above.
    probs = np.array(
        [[0.9, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.9], [0.9, 0.9, 0.5]]
    )
    np.testing.assert_array_equal(heads.to_classes(probs, "regions"), [0, 2, 1, 3, 0])


def test_foreground_leaves_out_the_background_only() -> None:
    assert conventions.CLASSES[heads.foreground("softmax")] == ("NCR", "ED", "ET")
    assert conventions.REGIONS[heads.foreground("regions")] == ("ET", "TC", "WT")
