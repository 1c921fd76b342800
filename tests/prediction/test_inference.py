"""The sliding window: covering, blending, padding, mirrors."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdnet_jax.models import heads, networks, unet
from kdnet_jax.prediction import inference
from tests.helpers import glioma


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def local(windows: jax.Array) -> jax.Array:
    """A prediction that looks at one voxel only: windows of any cut must give the same."""
    return jnp.concatenate([jax.nn.sigmoid(windows), jax.nn.sigmoid(-windows)], axis=-1)


@given(
    size=st.integers(1, 300),
    edge=st.integers(1, 128),
    overlap=st.floats(0, 0.95),
)
def test_windows_cover_the_axis_and_share_the_overlap(size: int, edge: int, overlap: float) -> None:
    starts = inference.window_starts(size, edge, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(size - edge, 0)
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= edge).all()
    # To the nearest voxel, for starts are whole voxels.
    assert (gaps <= max(edge * (1 - overlap), 1) + 1).all()


def test_window_starts_by_hand() -> None:
    assert inference.window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert inference.window_starts(12, 4, 0.0) == [0, 4, 8]
    assert inference.window_starts(9, 4, 0.0) == [0, 2, 5]
    assert inference.window_starts(3, 4, 0.5) == [0]


def test_gaussian_window_by_hand() -> None:
    weight = inference.gaussian_window((9, 3, 2))
    assert weight.shape == (9, 3, 2)
    # Half a voxel from the centre of an edge of 2 is two standard deviations of 2 / 8.
    assert weight[4, 1, 0] == pytest.approx(np.exp(-2), rel=1e-5)
    # A voxel along 9 is one of 9 / 8.
    assert weight[5, 1, 0] / weight[4, 1, 0] == pytest.approx(np.exp(-0.5 * (8 / 9) ** 2), rel=1e-5)
    assert weight.min() == pytest.approx(1e-3)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1, ::-1])


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 5, 9), (2, 3, 4), (3, 10, 4)])
def test_a_local_prediction_is_the_same_in_any_windows(
    shape: tuple[int, int, int], overlap: float
) -> None:
    image = normal(*shape, 1)
    actual = inference.sliding_window(local, image, (4, 4, 4), overlap)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, local(image[None])[0], rtol=1e-4)


def test_a_constant_prediction_stays_constant() -> None:
    def predict(windows: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.array([0.1, 0.2, 0.7]), (*windows.shape[:4], 3))

    actual = inference.sliding_window(predict, normal(7, 5, 9, 2), (4, 4, 4), 0.5)
    np.testing.assert_allclose(actual, np.broadcast_to([0.1, 0.2, 0.7], (7, 5, 9, 3)), rtol=1e-5)


def test_one_window_over_the_volume_is_one_forward_pass() -> None:
    image, calls = normal(4, 6, 8, 1), []

    def predict(windows: jax.Array) -> np.ndarray:
        calls.append(windows.shape)
        return normal(1, 4, 6, 8, 2)

    actual = inference.sliding_window(predict, image, (4, 6, 8), 0.5)
    assert calls == [(1, 4, 6, 8, 1)]
    np.testing.assert_allclose(actual, normal(1, 4, 6, 8, 2)[0], rtol=1e-5)


def test_a_volume_smaller_than_the_window_is_padded_with_background_on_both_sides() -> None:
    image, windows = 1 + np.abs(normal(2, 3, 4, 1)), []

    def predict(window: jax.Array) -> jax.Array:
        windows.append(np.asarray(window)[0])
        return local(window)

    actual = inference.sliding_window(predict, image, (4, 4, 4), 0.5)
    assert actual.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(windows[0], np.pad(image, ((1, 1), (0, 1), (0, 0), (0, 0))))


@pytest.mark.parametrize("batch", [1, 3, 8, 11])
def test_any_batch_of_windows_gives_the_same_by_one_shape(batch: int) -> None:
    image, shapes = normal(6, 5, 7, 1), set()

    def predict(windows: np.ndarray) -> jax.Array:
        shapes.add(windows.shape)
        # Depends on the place in the window and on nothing of the other windows.
        return local(jnp.asarray(windows) * jnp.arange(4.0)[:, None])

    expected = inference.sliding_window(predict, image, (4, 4, 4), 0.5)
    shapes.clear()
    actual = inference.sliding_window(predict, image, (4, 4, 4), 0.5, batch=batch)
    np.testing.assert_array_equal(actual, expected)
    assert shapes == {(batch, 4, 4, 4, 1)}


def test_without_overlap_every_voxel_has_one_window() -> None:
    count = itertools.count()

    def predict(window: jax.Array) -> np.ndarray:
        return np.full((*window.shape[:4], 1), next(count), np.float32)

    actual = inference.sliding_window(predict, normal(4, 4, 4, 1), (2, 2, 2), 0.0)[..., 0]
    blocks = np.arange(8).reshape(2, 2, 2)
    expected = blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_overlapping_windows_are_blended_by_their_weights() -> None:
    count = itertools.count()

    def predict(window: jax.Array) -> np.ndarray:
        return np.full((*window.shape[:4], 1), next(count), np.float32)

    # Two windows of 4 at 0 and 2: the first says 0, the second 1.
    actual = inference.sliding_window(predict, normal(6, 1, 1, 1), (4, 1, 1), 0.5).ravel()
    weight = inference.gaussian_window((4, 1, 1)).ravel()
    shared = weight[:2] / (weight[:2] + weight[2:])
    np.testing.assert_allclose(actual, [0, 0, *shared, 1, 1], rtol=1e-5)


@glioma.each_head
def test_mirroring_is_the_mean_over_the_eight_flips(head: heads.Head) -> None:
    ramp = jnp.asarray(normal(2, 4, 6, 4))

    def apply(params: Any, windows: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        return params * windows * ramp, {}

    windows = jnp.asarray(normal(1, 2, 4, 6, 1))
    expected = np.mean(
        [
            np.flip(head.probabilities(apply(2.0, np.flip(windows, axes))[0]), axes)
            for axes in [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
        ],
        axis=0,
    )
    mirrored = inference.make_predict(apply, head, mirror=True)(2.0, windows)
    np.testing.assert_allclose(mirrored, expected, rtol=1e-5)
    plain = inference.make_predict(apply, head, mirror=False)(2.0, windows)
    np.testing.assert_allclose(plain, head.probabilities(apply(2.0, windows)[0]), rtol=1e-5)


def test_entropy_by_hand() -> None:
    classes = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]], np.float32)
    expected = [np.log(4), 0, np.log(2)]
    np.testing.assert_allclose(inference.entropy(classes, glioma.SOFTMAX), expected, rtol=1e-6)
    regions = np.array([[0.5, 0.5, 0.5], [1, 0, 1], [0.9, 0, 0]], np.float32)
    expected = [3 * np.log(2), 0, -0.9 * np.log(0.9) - 0.1 * np.log(0.1)]
    np.testing.assert_allclose(inference.entropy(regions, glioma.REGIONS), expected, rtol=1e-5)


@glioma.each_head
@pytest.mark.parametrize("mirror", [False, True])
def test_the_last_channel_is_the_mean_entropy_of_the_images(head: heads.Head, mirror: bool) -> None:
    ramp = jnp.asarray(normal(2, 4, 6, 4))

    def apply(params: Any, windows: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        return params * windows * ramp, {}

    windows = normal(1, 2, 4, 6, 1)
    flips = [
        axes for n in range(4 if mirror else 1) for axes in itertools.combinations((1, 2, 3), n)
    ]
    answers = [
        np.flip(head.probabilities(apply(2.0, np.flip(windows, axes))[0]), axes) for axes in flips
    ]
    got = inference.make_predict(apply, head, mirror, entropies=True)(2.0, windows)
    np.testing.assert_allclose(got[..., :-1], np.mean(answers, axis=0), rtol=1e-5, atol=1e-6)
    expected = np.mean([inference.entropy(answer, head) for answer in answers], axis=0)
    np.testing.assert_allclose(got[..., -1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_window_over_the_volume_is_a_plain_pass_of_the_network(mirror: bool) -> None:
    config = unet.UNetConfig(widths=(2, 2), blocks=1, last_blocks=1)
    model, params = unet.UNet(config), networks.init_params(config, 1, jax.random.key(0))
    image = normal(4, 6, 4, 1)
    predict = inference.make_predict(model.apply, glioma.SOFTMAX, mirror)
    actual = inference.sliding_window(lambda w: predict(params, w), image, (4, 6, 4), batch=2)
    flips = [
        axes for n in range(4 if mirror else 1) for axes in itertools.combinations((1, 2, 3), n)
    ]
    plain = [
        np.flip(jax.nn.softmax(model.apply(params, jnp.flip(image[None], axes))[0]), axes)[0]
        for axes in flips
    ]
    np.testing.assert_allclose(actual, np.mean(plain, axis=0), rtol=1e-4, atol=1e-6)


def test_a_network_over_a_whole_volume() -> None:
    config = unet.UNetConfig(widths=(2, 2), blocks=1, last_blocks=1, head="regions")
    model = unet.UNet(config)
    params = networks.init_params(config, 1, jax.random.key(0))
    predict = inference.make_predict(model.apply, glioma.REGIONS, mirror=False)
    image = normal(4, 6, 4, 1)
    actual = inference.sliding_window(lambda w: predict(params, w), image, (4, 6, 4))
    expected = jax.nn.sigmoid(model.apply(params, jnp.asarray(image[None]))[0])[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
