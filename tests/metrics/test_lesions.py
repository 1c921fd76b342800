"""Lesion-wise scores, counted by hand (BraTS 2023, adult glioma)."""

import numpy as np
import pytest

from kdnet_jax.metrics import lesions

ISO = (1.0, 1.0, 1.0)


def cubes(*corners_and_edges: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((40, 40, 40), bool)
    for x, y, z, edge in corners_and_edges:
        mask[x : x + edge, y : y + edge, z : z + edge] = True
    return mask


A, FAR, SPECK = (5, 5, 5, 4), (28, 28, 28, 4), (30, 5, 30, 1)


def test_a_found_a_missed_and_a_false_lesion() -> None:
    got = lesions.score(cubes(A, FAR), cubes(A, SPECK), ISO)
    assert got == lesions.LesionScore(
        dice=pytest.approx(1 / 3),
        hd95_mm=pytest.approx(2 * 374 / 3),
        ref=2,
        pred=2,
        missed=1,
        false=1,
    )


def test_dilation_by_three_steps_merges_lesions_over_up_to_six_voxels() -> None:
    # Two faces apart by 6 empty voxels: 3 + 3 steps fill the gap; with 7 one voxel stays free.
    for gap, expected in ((6, 1), (7, 2)):
        pair = cubes(A, (5 + 4 + gap, 5, 5, 4))
        assert lesions.score(pair, pair, ISO).ref == expected
    # Along a space diagonal a step takes two of three axes: 3 steps make (2, 2, 2), so two
    # corners meet over 4 empty voxels and not over 5.
    for gap, expected in ((4, 1), (5, 2)):
        pair = cubes(A, (9 + gap, 9 + gap, 9 + gap, 4))
        assert lesions.score(pair, pair, ISO).ref == expected


def test_a_component_near_a_lesion_matches_it_without_overlap() -> None:
    near, apart = (cubes((9 + gap, 5, 5, 4)) for gap in (2, 3))
    got = lesions.score(cubes(A), near, ISO)
    assert (got.dice, got.missed, got.false) == (0.0, 0, 0)
    assert got.hd95_mm == pytest.approx(6.0)
    got = lesions.score(cubes(A), apart, ISO)
    assert (got.dice, got.hd95_mm, got.missed, got.false) == (0.0, 374.0, 1, 1)


def test_one_component_over_two_lesions_counts_against_both() -> None:
    reference = cubes((2, 2, 2, 4), (20, 2, 2, 4))
    prediction = reference.copy()
    prediction[2:24, 2:4, 2:4] = True
    got = lesions.score(reference, prediction, ISO)
    size = prediction.sum()
    assert (got.ref, got.pred, got.missed, got.false) == (2, 1, 0, 0)
    assert got.dice == pytest.approx(2 * 64 / (64 + size))


def test_lesions_of_up_to_50_cubic_millimetres_do_not_count() -> None:
    rod = np.zeros((40, 40, 60), bool)
    rod[20, 20, 3:53] = True
    empty = np.zeros_like(rod)
    nothing = lesions.LesionScore(1.0, 0.0, ref=0, pred=0, missed=0, false=0)
    assert lesions.score(rod, empty, ISO) == nothing
    assert lesions.score(rod, rod, ISO) == nothing._replace(pred=1)  # found, and not false
    assert lesions.score(rod, empty, (1.0, 1.0, 1.0000001)).ref == 0
    assert lesions.score(rod, empty, (1.0, 1.0, 1.1)).ref == 1  # 55 mm³
    rod[20, 20, 53] = True
    assert lesions.score(rod, empty, ISO) == lesions.LesionScore(0.0, 374.0, 1, 0, 1, 0)


def test_what_touches_an_ignored_lesion_is_no_false_positive() -> None:
    small = (28, 28, 28, 2)
    got = lesions.score(cubes(A, small), cubes(A, FAR), ISO)
    assert got == lesions.LesionScore(1.0, 0.0, ref=1, pred=2, missed=0, false=0)


def test_components_that_meet_at_a_corner_are_one() -> None:
    assert lesions.score(cubes(A), cubes((20, 20, 20, 2), (22, 22, 22, 2)), ISO).pred == 1


def test_empty_sides() -> None:
    empty = cubes()
    assert lesions.score(empty, empty, ISO) == lesions.LesionScore(1.0, 0.0, 0, 0, 0, 0)
    assert lesions.score(empty, cubes(SPECK), ISO) == lesions.LesionScore(0.0, 374.0, 0, 1, 0, 1)


def test_the_spacing_is_that_of_hd95_not_of_the_dilation() -> None:
    shifted = cubes((7, 5, 5, 4))
    assert lesions.score(cubes(A), shifted, (3.0, 1.0, 1.0)).hd95_mm == pytest.approx(6.0)
    assert lesions.score(cubes(A, FAR), cubes(A), (9.0, 9.0, 9.0)).missed == 1
