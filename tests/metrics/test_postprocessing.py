"""What is done to a segmentation after the network."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import overlap, postprocessing
from tests.helpers import made_up_tasks

NCR, ED, ET, CAVITY = 1, 2, 3, 4
GLIOMA = task_lib.GLIOMA
# Voxels of 0.02 ml: one to ten of them lie on both sides of the candidates.
SPACING = (1.0, 4.0, 5.0)
CLASS_MAPS = hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 4))
RULES = st.builds(
    postprocessing.Rules,
    small_region_ml=st.fixed_dictionaries({"ET": st.sampled_from([0.0, 0.05, 0.2, 0.5])}),
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

    found = postprocessing.apply(
        classes, SPACING, postprocessing.Rules(small_region_ml={"ET": threshold}), task=GLIOMA
    )

    expected = classes if kept else np.where(classes == ET, NCR, classes)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_components_are_joined_over_corners_and_by_all_tumour_classes() -> None:
    joined = (((0, 0, 0), NCR), ((1, 1, 1), ED), ((2, 2, 2), ET))  # 0.06 ml over two corners
    lone, cavity = ((0, 4, 5), ED), ((3, 4, 0), CAVITY)
    rules = postprocessing.Rules(min_component_ml=0.06)

    found = postprocessing.apply(_volume(*joined, lone, cavity), SPACING, rules, task=GLIOMA)

    np.testing.assert_array_equal(found, _volume(*joined, cavity))


def test_the_et_of_a_removed_component_does_not_count() -> None:
    classes = _volume(((0, 0, 0), ET), ((3, 3, 3), ET), ((3, 3, 4), ED))
    rules = postprocessing.Rules(small_region_ml={"ET": 0.03}, min_component_ml=0.03)

    found = postprocessing.apply(classes, SPACING, rules, task=GLIOMA)

    np.testing.assert_array_equal(found, _volume(((3, 3, 3), NCR), ((3, 3, 4), ED)))


@hypothesis.given(classes=CLASS_MAPS, rules=RULES)
def test_the_rules_add_no_tumour_and_are_done_after_one_go(classes, rules) -> None:
    before = classes.copy()
    once = postprocessing.apply(classes, SPACING, rules, task=GLIOMA)

    np.testing.assert_array_equal(classes, before)
    np.testing.assert_array_equal(postprocessing.apply(once, SPACING, rules, task=GLIOMA), once)
    for region in GLIOMA.region_names:
        after = GLIOMA.mask(once, region)
        assert not (after & ~GLIOMA.mask(classes, region)).any()
    np.testing.assert_array_equal(once == CAVITY, classes == CAVITY)


@hypothesis.given(classes=CLASS_MAPS, threshold=st.floats(0, 2))
def test_the_et_rule_leaves_core_and_whole_tumour(classes, threshold) -> None:
    found = postprocessing.apply(
        classes, SPACING, postprocessing.Rules(small_region_ml={"ET": threshold}), task=GLIOMA
    )
    for region in ("TC", "WT"):
        np.testing.assert_array_equal(GLIOMA.mask(found, region), GLIOMA.mask(classes, region))


@hypothesis.given(classes=CLASS_MAPS, threshold=st.sampled_from([0.01, 0.03, 0.05, 0.1]))
def test_components_agree_with_a_loop_over_them(classes, threshold) -> None:
    rules = postprocessing.Rules(min_component_ml=threshold)
    expected = classes.copy()
    components, count = ndimage.label(np.isin(classes, (1, 2, 3)), np.ones((3, 3, 3)))
    for number in range(1, count + 1):
        if (components == number).sum() * 20 < threshold * 1000:
            expected[components == number] = 0

    np.testing.assert_array_equal(
        postprocessing.apply(classes, SPACING, rules, task=GLIOMA), expected
    )


# Reference classes, predicted classes, mm per axis.
Case = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


def _choose(cases: list[Case]) -> postprocessing.Rules:
    # As JSON, as an evaluation keeps them.
    return postprocessing.choose(
        [json.loads(json.dumps(postprocessing.tabulate(*case, task=GLIOMA))) for case in cases]
    )


def _case(reference_et: int, predicted_et: int, ncr: int = 0) -> Case:
    """A row of 0.02 ml voxels: NCR in both, then ET, overlapping as far as the two can."""
    masks = np.zeros((2, 200, 1, 1), np.uint8)
    masks[:, :ncr] = NCR
    for mask, count in zip(masks, (reference_et, predicted_et), strict=True):
        mask[ncr : ncr + count] = ET
    return masks[0], masks[1], SPACING


def _with_speck(case: Case, voxels: int) -> Case:
    reference, predicted, spacing = case
    predicted[190 - voxels : 190] = ED
    return reference, predicted, spacing


def test_the_et_threshold_removes_false_et_and_keeps_true_et() -> None:
    # False ET of 0.16 ml (8 voxels) beside true NCR; true ET of 0.4 ml: 0.2 parts them.
    cases = [_case(0, 8, ncr=60), _case(20, 20, ncr=60), _case(100, 90, ncr=60)]
    assert _choose(cases) == postprocessing.Rules(small_region_ml={"ET": 0.2})


def test_the_component_threshold_removes_false_components_and_keeps_true_ones() -> None:
    # A false component of 0.16 ml, a true one of 0.4 ml.
    cases = [_with_speck(_case(60, 60), 8), _case(20, 20)]
    assert _choose(cases) == postprocessing.Rules(min_component_ml=0.2)


def test_the_rules_are_off_where_they_do_not_help() -> None:
    assert _choose([_case(20, 20), _case(3, 2)]) == postprocessing.Rules()


@pytest.mark.once
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30), st.integers(0, 40)),
        min_size=1,
        max_size=3,
    )
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_the_choice_is_the_best_of_all_candidates_applied(rows) -> None:
    cases = [_with_speck(_case(ref, found, ncr), speck) for ref, found, ncr, speck in rows]

    def left(rules: postprocessing.Rules) -> list:
        return [
            (ref, postprocessing.apply(found, mm, rules, task=GLIOMA), mm)
            for ref, found, mm in cases
        ]

    def lesion_dice(threshold: float) -> float:
        scores = [
            score.lesion_dice
            for triple in left(postprocessing.Rules(min_component_ml=threshold))
            for score in case_metrics.score_case("x", *triple, task=GLIOMA)
        ]
        return round(float(np.mean(scores)), 9)

    def et_dice(small_et: float, component: float) -> float:
        rules = postprocessing.Rules({"ET": small_et}, component)
        return round(
            float(np.mean([overlap.dice(ref == ET, found == ET) for ref, found, _ in left(rules)])),
            9,
        )

    component = max(postprocessing.MIN_COMPONENT_CANDIDATES_ML, key=lesion_dice)
    small_et = max(
        postprocessing.SMALL_REGION_CANDIDATES_ML, key=lambda each: et_dice(each, component)
    )
    assert _choose(cases) == postprocessing.Rules({"ET": small_et}, component)


def test_without_validation_cases_nothing_is_chosen() -> None:
    with pytest.raises(UserError, match="validation"):
        postprocessing.choose([])


@pytest.mark.parametrize("volume", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_volume_is_refused(volume) -> None:
    with pytest.raises(UserError, match="small_region_ml of ET"):
        postprocessing.Rules(small_region_ml={"ET": volume})


def test_rules_in_words() -> None:
    assert postprocessing.Rules().text(GLIOMA) == "none"
    assert "ET below 0.5 ml" in postprocessing.Rules(small_region_ml={"ET": 0.5}).text(GLIOMA)
    assert "below 0.1 ml are removed" in postprocessing.Rules(min_component_ml=0.1).text(GLIOMA)


# --- Of other tasks ------------------------------------------------------------------------------


def test_a_small_region_becomes_its_fallback_and_components_are_those_of_all_regions() -> None:
    task = made_up_tasks.PROSTATE
    classes = _volume(((0, 0, 0), 2), ((0, 0, 1), 1), ((3, 4, 5), 1))  # 0.02 ml a voxel
    small = postprocessing.Rules({"transition zone": 0.03})
    expected = _volume(((0, 0, 0), 1), ((0, 0, 1), 1), ((3, 4, 5), 1))
    np.testing.assert_array_equal(
        postprocessing.apply(classes, SPACING, small, task=task), expected
    )
    components = postprocessing.Rules(min_component_ml=0.03)
    np.testing.assert_array_equal(
        postprocessing.apply(classes, SPACING, components, task=task),
        _volume(((0, 0, 0), 2), ((0, 0, 1), 1)),
    )
    both = postprocessing.Rules({"transition zone": 0.03}, 0.04)
    assert both.text(task) == (
        "gland components below 0.04 ml are removed; "
        "transition zone below 0.03 ml in total becomes peripheral zone"
    )
    assert postprocessing.small_regions(made_up_tasks.LESION, 1.0) == {}
    assert postprocessing.chosen_text(made_up_tasks.LESION) == (
        "small components removed; thresholds chosen on validation cases"
    )


def test_thresholds_are_chosen_without_the_voxels_that_nobody_labelled() -> None:
    # A false component of 0.16 ml counts, unless nobody labelled its place.
    reference, predicted = np.zeros((2, 200, 1, 1), np.uint8)
    reference[:60], predicted[:60], predicted[100:108] = 2, 2, 1

    def chosen() -> postprocessing.Rules:
        table = postprocessing.tabulate(reference, predicted, SPACING, task=made_up_tasks.HEART)
        return postprocessing.choose([json.loads(json.dumps(table))])

    assert chosen() == postprocessing.Rules(min_component_ml=0.2)
    reference[100:108] = made_up_tasks.HEART.ignore
    assert chosen() == postprocessing.Rules()
