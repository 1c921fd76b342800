"""Surface distances against brute force, hand-derived values and properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kdnet_jax.metrics import surface

Spacing = tuple[float, float, float]
ISO = (1.0, 1.0, 1.0)
ANISO = (5.5, 0.7, 1.3)


def brute_surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with at least one face neighbour outside of the mask or of the grid."""
    points = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = voxel.copy()
            other[axis] += step
            inside = (other >= 0).all() and (other < mask.shape).all()
            if not inside or not mask[tuple(other)]:
                points.append(voxel)
                break
    return np.asarray(points, float).reshape(-1, 3)


def brute_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    a, b = (brute_surface(mask) * spacing for mask in (reference, prediction))
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return table.min(axis=1), table.min(axis=0)


def box(shape: tuple[int, ...], *slices: slice | int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def measured(
    reference: np.ndarray, prediction: np.ndarray, spacing: Spacing
) -> surface.SurfaceDistances:
    return surface.surfaces(reference, prediction, spacing).distances


@pytest.mark.parametrize("spacing", [ISO, ANISO])
@pytest.mark.parametrize("seed", range(4))
def test_random_blobs_agree_with_brute_force(seed: int, spacing: Spacing) -> None:
    generator = np.random.default_rng(seed)
    reference, prediction = generator.random((2, 6, 9, 8)) < (0.75 if seed % 2 else 0.2)
    forth, back = brute_distances(reference, prediction, spacing)
    expected = max(np.percentile(forth, 95), np.percentile(back, 95))
    assert measured(reference, prediction, spacing).hd95() == pytest.approx(expected)
    near = (forth <= 1.45).sum() + (back <= 1.45).sum()
    got = measured(reference, prediction, spacing).nsd(1.45)
    assert got == pytest.approx(near / (len(forth) + len(back)))


def test_two_voxels_two_slices_apart() -> None:
    reference, prediction = np.zeros((2, 5, 5, 5), bool)
    reference[0, 2, 2], prediction[2, 2, 2] = True, True  # the first touches the border
    assert measured(reference, prediction, ANISO).hd95() == pytest.approx(11.0)
    assert measured(reference, prediction, ANISO).nsd(11.0) == 1.0
    assert measured(reference, prediction, ANISO).nsd(10.9) == 0.0


def test_larger_directed_percentile_is_taken_not_the_pooled_one() -> None:
    # The reference lies within the prediction's 1 x 1 x 40 rod: forth 0, back 0..39.
    reference, prediction = np.zeros((2, 1, 1, 40), bool)
    reference[..., :1], prediction[...] = True, True
    assert measured(reference, prediction, ISO).hd95() == pytest.approx(0.95 * 39)
    assert measured(prediction, reference, ISO).hd95() == pytest.approx(0.95 * 39)


def test_interior_voxels_are_not_surface() -> None:
    # A 5-cube with and without its inner voxel: the hole adds six surface voxels inside.
    solid = box((7, 7, 7), slice(1, 6), slice(1, 6), slice(1, 6))
    hollow = solid.copy()
    hollow[3, 3, 3] = False
    distances = measured(solid, hollow, ISO)
    assert distances.from_reference.size == 5**3 - 3**3
    assert distances.from_prediction.size == 5**3 - 3**3 + 6
    assert sorted(set(distances.from_prediction.tolist())) == [0.0, 1.0]


def test_mask_that_fills_the_grid_has_a_surface() -> None:
    full = np.ones((3, 3, 3), bool)
    assert measured(full, full, ISO).from_reference.size == 26
    assert measured(full, full, ISO).hd95() == 0.0


def test_empty_masks() -> None:
    empty, voxel = np.zeros((4, 4, 4), bool), box((4, 4, 4), 1, 1, 1)
    assert measured(empty, empty, ISO).hd95() == 0.0
    assert measured(empty, empty, ISO).nsd(1.0) == 1.0
    for pair in ((empty, voxel), (voxel, empty)):
        assert measured(*pair, ISO).hd95() == pytest.approx(373.12866)
        assert measured(*pair, ISO).nsd(1.0) == 0.0


def test_tolerance_forgives_float32_spacing() -> None:
    reference, prediction = box((3, 3, 3), 0, 1, 1), box((3, 3, 3), 1, 1, 1)
    assert measured(reference, prediction, (1.0000001, 1.0, 1.0)).nsd(1.0) == 1.0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shift=st.tuples(*[st.integers(0, 4)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
def test_symmetric_and_blind_to_translation_axis_order_and_scale(
    seed: int, shift: tuple[int, int, int], spacing: Spacing
) -> None:
    small = np.random.default_rng(seed).random((2, 4, 5, 4)) < 0.4
    placed = np.zeros((2, 10, 10, 10), bool)
    placed[(slice(None), *(slice(s, s + n) for s, n in zip(shift, (4, 5, 4), strict=True)))] = small
    value = measured(*small, spacing).hd95()
    assert measured(*small[::-1], spacing).hd95() == pytest.approx(value)
    assert measured(*placed, spacing).hd95() == pytest.approx(value)
    swapped = measured(*small.transpose(0, 3, 1, 2), (spacing[2], spacing[0], spacing[1])).hd95()
    assert swapped == pytest.approx(value)
    if small[0].any() and small[1].any():
        doubled = tuple(2 * step for step in spacing)
        assert measured(*small, doubled).hd95() == pytest.approx(2 * value)


def test_parts_are_measured_as_if_they_were_alone() -> None:
    """Also where the nearest voxel of the whole surface belongs to no part, or a part is empty."""
    rng = np.random.default_rng(3)
    masks = [ndimage.gaussian_filter(rng.normal(size=(24, 30, 12)), 2) > 0.03 for _ in range(2)]
    both = surface.surfaces(*masks, ANISO)
    for shares in ((0.5, 0.5), (0.9, 0.02), (1, 1), (0.3, 0), (0, 0)):
        parts = [rng.random(len(v)) < share for v, share in zip(both.voxels, shares, strict=True)]
        points = [
            voxels[part] * np.asarray(ANISO)
            for voxels, part in zip(both.voxels, parts, strict=True)
        ]
        apart = np.linalg.norm(points[0][:, None] - points[1], axis=-1)
        got = both.between_parts(*parts)
        np.testing.assert_allclose(got.from_reference, apart.min(axis=1, initial=np.inf))
        np.testing.assert_allclose(got.from_prediction, apart.min(axis=0, initial=np.inf))
