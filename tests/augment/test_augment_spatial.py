"""One resampling for rotation, zoom and bending: against SciPy, and by what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate, ndimage

from kdnet_jax.augment import spatial

SIZE, PATCH = (22, 20, 24), (12, 10, 14)
CHANCE = spatial.Chance
OFF = CHANCE(0.0, 0.0, 0.0)


def crop(sequences: int = 2, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, nowhere 0, and classes in blobs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(sequences, *size))
    image = ndimage.gaussian_filter(noise, (0, 1, 1, 1)) + 5
    label = (ndimage.gaussian_filter(rng.normal(size=size), 2) * 60).astype(int) % 4
    return image.astype(np.float32), label.astype(np.uint8)


def some_matrix(seed: int = 0) -> np.ndarray:
    angles = np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 3))
    return 1.2 * np.asarray(spatial.rotation_matrix(jnp.asarray(angles)))[0]


def some_bend(reach: float = 6.0) -> np.ndarray:
    return np.random.default_rng(1).uniform(-reach, reach, (4, 4, 4, 3)).astype(np.float32)


def reference_coordinates(matrix: np.ndarray, bend: np.ndarray | None) -> np.ndarray:
    """Where each voxel comes from, in float64 and with SciPy's B-splines."""
    grid = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing="ij"), -1).astype(float)
    offset = grid - (np.array(PATCH) - 1) / 2
    if bend is not None:
        knots = np.arange(-3, 5) * spatial.CONTROL_SPACING
        basis = [
            interpolate.BSpline.design_matrix(np.arange(edge, dtype=float), knots, 3).toarray()
            for edge in PATCH
        ]
        offset = offset + np.einsum("di,hj,wk,ijkc->dhwc", *basis, bend)
    return offset @ matrix.T + (np.array(SIZE) - 1) / 2


@pytest.mark.parametrize("bent", [False, True])
def test_it_is_scipy_s_linear_and_nearest_interpolation(bent: bool) -> None:
    image, label = crop()
    matrix, bend = some_matrix(), some_bend() if bent else None
    out, out_label = jax.jit(spatial.resample, static_argnums=4)(image, label, matrix, bend, PATCH)
    where = np.moveaxis(reference_coordinates(matrix, bend), -1, 0)
    inside = np.all([(c > 0) & (c < n - 1) for c, n in zip(where, SIZE, strict=True)], axis=0)
    assert inside.mean() > 0.5
    for channel in range(2):
        expected = ndimage.map_coordinates(image[channel], where, order=1)
        np.testing.assert_allclose(out[channel][inside], expected[inside], atol=2e-5)
    nearest = ndimage.map_coordinates(label, where, order=0)
    # Rounding of a coordinate at the middle between two voxels may go either way.
    clear = inside & (np.abs(where % 1 - 0.5) > 1e-4).all(0)
    np.testing.assert_array_equal(np.asarray(out_label)[clear], nearest[clear])
    assert out_label.dtype == label.dtype
    assert set(np.unique(out_label)) <= set(range(4))


def test_outside_of_the_crop_is_zero() -> None:
    image, label = crop()
    out, out_label = spatial.resample(image, label + 1, 5 * np.eye(3), None, PATCH)
    where = np.moveaxis(reference_coordinates(5 * np.eye(3), None), -1, 0)
    beyond = np.any([(c <= -1) | (c >= n) for c, n in zip(where, SIZE, strict=True)], axis=0)
    assert 0.5 < beyond.mean() < 1
    assert not np.asarray(out)[:, beyond].any()
    assert not np.asarray(out_label)[beyond].any()
    assert np.asarray(out)[:, ~beyond].any()


def test_no_rotation_and_no_bending_is_the_middle_to_the_bit() -> None:
    image, label = crop()
    out, out_label = spatial.resample(image, label, np.eye(3), 0 * some_bend(), PATCH)
    np.testing.assert_array_equal(out, image[:, 5:17, 5:15, 5:19])
    np.testing.assert_array_equal(out_label, label[5:17, 5:15, 5:19])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_numpy_s(axis: int) -> None:
    image, label = crop(size=(12, 12, 12))
    angles = np.zeros((1, 3))
    angles[0, axis] = np.pi / 2
    matrix = np.round(spatial.rotation_matrix(jnp.asarray(angles))[0])
    out, out_label = spatial.resample(image, label, matrix, None, (12, 12, 12))
    plane = [(1, 2), (2, 0), (0, 1)][axis]
    turned = np.stack([np.rot90(sequence, -1, plane) for sequence in image])
    np.testing.assert_array_equal(out, turned)
    np.testing.assert_array_equal(out_label, np.rot90(label, -1, plane))


def test_rotation_is_scipy_s_about_d_then_h_then_w() -> None:
    angles = np.array([0.3, -0.4, 0.5])
    from scipy.spatial import transform

    expected = transform.Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(
        spatial.rotation_matrix(jnp.asarray(angles[None]))[0], expected, atol=1e-6
    )


def test_the_inverse_rotation_brings_the_image_back() -> None:
    image, label = crop()
    smooth = ndimage.gaussian_filter(image, (0, 1.5, 1.5, 1.5))
    matrix = some_matrix() / 1.2
    there, _ = spatial.resample(smooth, label, matrix, None, SIZE)
    back, _ = spatial.resample(there, label, matrix.T, None, PATCH)
    middle = spatial.middle(smooth, PATCH)[:, 3:-3, 3:-3, 3:-3]
    error = np.abs(np.asarray(back)[:, 3:-3, 3:-3, 3:-3] - middle)
    assert error.max() < 0.15 * np.ptp(middle)


def test_image_and_label_move_together() -> None:
    # An image that is its own label. Where its mean is of one class alone, that is the label; and
    # where background prevails, image and label agree on it.
    noise = np.random.default_rng(0).normal(size=SIZE)
    label = 3 * (ndimage.gaussian_filter(noise, 4) > 0).astype(np.uint8)
    image = label[None].astype(np.float32)
    out, moved = spatial.resample(image, label, some_matrix(), some_bend(), PATCH)
    out, moved = np.asarray(out)[0], np.asarray(moved)
    assert (moved[out > 3 - 1e-5] == 3).all()
    assert 0.2 < (out > 3 - 1e-5).mean() < 0.9
    # Trilinear and nearest differ within half a voxel of an outline, and nowhere else.
    differ = (out > 0) != (moved > 0)
    assert differ.mean() < 0.1
    rim = ndimage.binary_dilation(moved > 0) & ~ndimage.binary_erosion(moved > 0)
    assert not (differ & ~rim).any()


def test_the_background_keeps_its_outline() -> None:
    # Half of the crop is background: its border stays where the mask's is, and is no ramp.
    image, label = crop(1)
    image[..., :11] = 0
    matrix = some_matrix(3)
    out = np.asarray(spatial.resample(image, label, matrix, None, PATCH)[0])[0]
    where = np.moveaxis(reference_coordinates(matrix, None), -1, 0)
    weight = ndimage.map_coordinates((image[0] != 0).astype(float), where, order=1)
    clear = np.abs(weight - 0.5) > 1e-4
    np.testing.assert_array_equal((out != 0)[clear], (weight > 0.5)[clear])
    assert out[out != 0].min() > 0.5 * 3.5
    assert 0.2 < (out == 0).mean() < 0.8


def test_a_bending_moves_no_voxel_further_than_its_control_points() -> None:
    patch, bend = (40, 33, 32), np.full((5, 5, 4, 3), 3.0, np.float32)
    np.testing.assert_allclose(spatial.displacement(bend, patch), 3, atol=1e-5)
    rng = np.random.default_rng(0)
    moves = spatial.displacement(rng.uniform(-3, 3, bend.shape), patch)
    assert moves.shape == (*patch, 3)
    assert 0.3 < np.abs(moves).max() <= 3


def test_the_strongest_bending_folds_nothing() -> None:
    reach = spatial.LARGEST_BEND
    bend = reach * np.sign(np.random.default_rng(0).normal(size=(6, 6, 6, 3)))
    moves = np.asarray(spatial.displacement(bend, (70, 70, 70)), float)
    jacobian = np.stack([np.stack(np.gradient(moves[..., c]), -1) for c in range(3)], -2)
    assert np.linalg.det(jacobian + np.eye(3)).min() > 0


def test_flips_are_along_the_axes_drawn_and_allowed() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    drawn = np.array([True, False, True])
    np.testing.assert_array_equal(spatial.flip(volume, drawn, "dhw"), volume[::-1, :, ::-1])
    np.testing.assert_array_equal(spatial.flip(volume, drawn, "hw"), volume[..., ::-1])
    np.testing.assert_array_equal(spatial.flip(volume, drawn, ""), volume)


def test_bends_are_drawn_up_to_their_reach() -> None:
    reach = jnp.array([0.0, 2.0, 6.0])
    bend = spatial.draw_bend(jax.random.key(0), (40, 32, 33), reach)
    assert bend.shape == (3, 5, 4, 5, 3)
    largest = np.abs(bend).max((1, 2, 3, 4))
    assert largest[0] == 0
    assert (largest <= reach).all()
    assert (largest[1:] > 0.95 * np.asarray(reach)[1:]).all()
    # Along each axis on its own.
    assert abs(np.corrcoef(bend[2].reshape(-1, 3).T) - np.eye(3)).max() < 0.3


def test_the_source_is_what_each_part_alone_needs() -> None:
    patch = (128, 128, 128)
    rotation, zoom, elastic = CHANCE(0.2, -30, 30), CHANCE(0.2, 0.7, 1.4), CHANCE(0.1, 0, 8)
    assert spatial.source_patch(patch, OFF, OFF, OFF) == patch
    # 128 (cos 30 + sin 30) = 174.9; 128 * 1.4 = 179.2; in steps of 8 beyond 128.
    assert spatial.source_patch(patch, rotation, OFF, OFF) == (176, 176, 176)
    assert spatial.source_patch(patch, OFF, zoom, OFF) == (184, 184, 184)
    assert spatial.source_patch(patch, OFF, OFF, elastic) == (144, 144, 144)
    assert spatial.source_patch(patch, rotation, zoom, elastic) == (200, 200, 200)
    # Zooming in needs no more than the patch.
    assert spatial.source_patch(patch, OFF, CHANCE(1, 0.5, 0.9), OFF) == patch
    # By hand: at 90 degrees an edge is as long as its diagonal partner makes it on the way.
    flat = spatial.source_patch((24, 64, 64), CHANCE(1, 0, 90), OFF, OFF)
    assert flat == (72, 96, 96)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rotation_about_one_axis_brings_no_border_in(axis: int) -> None:
    patch = (24, 32, 16)
    rotation = CHANCE(1.0, -40, 40)
    size = spatial.source_patch(patch, rotation, OFF, OFF)
    ones, label = np.ones((1, *size), np.float32), np.ones(size, np.uint8)
    resample = jax.jit(spatial.resample, static_argnums=(3, 4))
    for degrees in (-40, -20, 13, 40):
        angles = np.zeros((1, 3))
        angles[0, axis] = np.radians(degrees)
        matrix = spatial.rotation_matrix(jnp.asarray(angles))[0]
        out, out_label = resample(ones, label, matrix, None, patch)
        np.testing.assert_allclose(out, 1, atol=1e-5)
        assert np.asarray(out_label).all()
