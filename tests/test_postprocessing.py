"""What is done to a segmentation after the network."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from kdnet_jax import conventions, postprocessing
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import overlap

NCR, ED, ET, CAVITY = 1, 2, 3, 4
# Voxels of 0.02 ml: one to ten of them lie on both sides of the candidates.
SPACING = (1.0, 4.0, 5.0)
CLASS_MAPS = hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 4))
RULES = st.builds(
    postprocessing.Rules,
    small_et_ml=st.sampled_from([0.0, 0.05, 0.2, 0.5]),
    min_component_ml=st.sampled_from([0.0, 0.03, 0.1]),
)


def _volume(*voxels: tuple[tuple[int, int, int], int]) -> np.ndarray:
    classes = np.zeros((4, 5, 6), np.uint8)
    for place, value in voxels:
        classes[place] = value
    return classes


@pytest.mark.parametrize(("threshold", "kept"), [(0.04, True), (0.041, False)])
def test_et_below_the_threshold_becomes_ncr_by_ml_not_by_voxels(threshold, kept) -> None:
    classes = _volume(((0, 0, 0), ET), ((3, 4, 5), ET), ((1, 1, 1), ED))  # ET: 2 x 20 mm3

    found = postprocessing.apply(classes, SPACING, postprocessing.Rules(small_et_ml=threshold))

    expected = classes if kept else np.where(classes == ET, NCR, classes)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_components_are_joined_over_corners_and_by_all_tumour_classes() -> None:
    joined = (((0, 0, 0), NCR), ((1, 1, 1), ED), ((2, 2, 2), ET))  # 0.06 ml over two corners
    lone, cavity = ((0, 4, 5), ED), ((3, 4, 0), CAVITY)
    rules = postprocessing.Rules(min_component_ml=0.06)

    found = postprocessing.apply(_volume(*joined, lone, cavity), SPACING, rules)

    np.testing.assert_array_equal(found, _volume(*joined, cavity))


def test_the_et_of_a_removed_component_does_not_count() -> None:
    classes = _volume(((0, 0, 0), ET), ((3, 3, 3), ET), ((3, 3, 4), ED))
    rules = postprocessing.Rules(small_et_ml=0.03, min_component_ml=0.03)

    found = postprocessing.apply(classes, SPACING, rules)

    np.testing.assert_array_equal(found, _volume(((3, 3, 3), NCR), ((3, 3, 4), ED)))


@hypothesis.given(classes=CLASS_MAPS, rules=RULES)
def test_the_rules_add_no_tumour_and_are_done_after_one_go(classes, rules) -> None:
    before = classes.copy()
    once = postprocessing.apply(classes, SPACING, rules)

    np.testing.assert_array_equal(classes, before)
    np.testing.assert_array_equal(postprocessing.apply(once, SPACING, rules), once)
    for region in conventions.REGIONS:
        after = conventions.region_mask(once, region)
        assert not (after & ~conventions.region_mask(classes, region)).any()
    np.testing.assert_array_equal(once == CAVITY, classes == CAVITY)


@hypothesis.given(classes=CLASS_MAPS, threshold=st.floats(0, 2))
def test_the_et_rule_leaves_core_and_whole_tumour(classes, threshold) -> None:
    found = postprocessing.apply(classes, SPACING, postprocessing.Rules(small_et_ml=threshold))
    for region in ("TC", "WT"):
        np.testing.assert_array_equal(
            conventions.region_mask(found, region), conventions.region_mask(classes, region)
        )


@hypothesis.given(classes=CLASS_MAPS, threshold=st.sampled_from([0.01, 0.03, 0.05, 0.1]))
def test_components_agree_with_a_loop_over_them(classes, threshold) -> None:
    rules = postprocessing.Rules(min_component_ml=threshold)
    expected = classes.copy()
    components, count = ndimage.label(np.isin(classes, (1, 2, 3)), np.ones((3, 3, 3)))
    for number in range(1, count + 1):
        if (components == number).sum() * 20 < threshold * 1000:
            expected[components == number] = 0

    np.testing.assert_array_equal(postprocessing.apply(classes, SPACING, rules), expected)


def _case(reference_et: int, predicted_et: int) -> tuple:
    """A case with so many ET voxels of 0.02 ml in both, overlapping as far as they can."""
    masks = np.zeros((2, 200, 1, 1), np.uint8)
    masks[0, :reference_et], masks[1, :predicted_et] = ET, ET
    return masks[0], masks[1], SPACING


def test_the_threshold_removes_false_et_and_keeps_true_et() -> None:
    # False ET of 0.16 ml (8 voxels), true ET of 0.4 ml: 0.2 is the smallest that parts them.
    chosen = postprocessing.choose_small_et([_case(0, 8), _case(20, 20), _case(100, 90)])
    assert chosen == postprocessing.Rules(small_et_ml=0.2)


def test_the_rule_is_off_where_it_does_not_help() -> None:
    assert postprocessing.choose_small_et([_case(20, 20), _case(3, 2)]) == postprocessing.Rules()


@hypothesis.given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1))
def test_the_choice_is_the_best_of_all_candidates_applied(voxels) -> None:
    cases = [_case(*pair) for pair in voxels]

    def mean_dice(threshold: float) -> float:
        rules = postprocessing.Rules(small_et_ml=threshold)
        return np.mean(
            [
                overlap.dice(ref == ET, postprocessing.apply(predicted, spacing, rules) == ET)
                for ref, predicted, spacing in cases
            ]
        )

    means = {ml: mean_dice(ml) for ml in postprocessing.SMALL_ET_CANDIDATES_ML}
    best = min(ml for ml, mean in means.items() if mean == max(means.values()))
    assert postprocessing.choose_small_et(iter(cases)).small_et_ml == best


def test_without_validation_cases_nothing_is_chosen() -> None:
    with pytest.raises(UserError, match="validation"):
        postprocessing.choose_small_et([])


@pytest.mark.parametrize("volume", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_volume_is_refused(volume) -> None:
    with pytest.raises(UserError, match="small_et_ml"):
        postprocessing.Rules(small_et_ml=volume)


def test_rules_in_words() -> None:
    assert postprocessing.Rules().text() == "none"
    assert "ET below 0.5 ml" in postprocessing.Rules(small_et_ml=0.5).text()
    assert "below 0.1 ml are removed" in postprocessing.Rules(min_component_ml=0.1).text()
