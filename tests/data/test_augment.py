"""Augmentation: one geometry for image and label, background kept, draws by key, distributions."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.data import augment
from kdnet_jax.errors import UserError

SHAPE = (2, 3, 4)


def options(**values: Any) -> augment.AugmentOptions:
    return augment.AugmentOptions(**{"flip_axes": "", "scale": 0, "shift": 0, "noise": 0} | values)


def numbered(samples: int, modalities: int = 2) -> tuple[jax.Array, jax.Array]:
    """Every voxel's image is its own number in all modalities, its label the number mod 4."""
    numbers = np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE)
    image = np.broadcast_to(numbers[None, ..., None], (samples, *SHAPE, modalities))
    label = np.broadcast_to(numbers % 4, (samples, *SHAPE))
    return jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.uint8)


def test_nothing_asked_for_changes_nothing() -> None:
    image, label = numbered(3)
    out, out_label = augment.augment(jax.random.key(0), image, label, options())
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(out_label, label)
    assert out_label.dtype == label.dtype


def test_flips_move_all_sequences_and_the_label_together() -> None:
    image, label = numbered(64)
    out, out_label = augment.augment(jax.random.key(0), image, label, options(flip_axes="dhw"))
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out_label, out[..., 0] % 4)
    # Each sample is one of the eight mirror images, and all eight come up.
    mirrors = [
        np.flip(image[0], axes)
        for size in range(4)
        for axes in itertools.combinations(range(3), size)
    ]
    seen = [
        [index for index, mirror in enumerate(mirrors) if (sample == mirror).all()]
        for sample in np.asarray(out)
    ]
    assert all(len(matches) == 1 for matches in seen)
    assert {matches[0] for matches in seen} == set(range(8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_the_axes_asked_for_are_flipped_and_half_of_the_time(axis: int) -> None:
    image, label = numbered(400, 1)
    out, _ = augment.augment(jax.random.key(1), image, label, options(flip_axes="dhw"[axis]))
    flipped = (np.asarray(out) == np.flip(image, 1 + axis)).all((1, 2, 3, 4))
    kept = (np.asarray(out) == np.asarray(image)).all((1, 2, 3, 4))
    assert (flipped ^ kept).all()
    # 400 fair draws: four standard deviations are 40.
    assert abs(flipped.sum() - 200) < 40


def test_background_stays_zero_and_the_brain_does_not_become_background() -> None:
    image, label = numbered(4)
    image = image.at[:, 0].set(0).at[:, 1, 0, 0, 1].set(0)
    strong = options(scale=0.5, shift=0.5, noise=0.5)
    out, out_label = augment.augment(jax.random.key(0), image, label, strong)
    np.testing.assert_array_equal(out == 0, image == 0)
    np.testing.assert_array_equal(out_label, label)


def test_the_background_moves_with_the_flip() -> None:
    image, label = numbered(32)
    image = jnp.where((label == 0)[..., None], 0, image)
    everything = augment.AugmentOptions(noise=0.1)
    out, out_label = augment.augment(jax.random.key(0), image, label, everything)
    np.testing.assert_array_equal(out[..., 0] == 0, out_label == 0)


def test_intensities_are_one_line_per_sample_and_sequence() -> None:
    image, label = numbered(300)
    out, _ = augment.augment(jax.random.key(0), image, label, options(scale=0.2, shift=0.3))
    x, y = (np.asarray(a, np.float64).reshape(300, -1, 2) for a in (image, out))
    factor = (y[:, -1] - y[:, 0]) / (x[:, -1] - x[:, 0])
    offset = y[:, 0] - factor * x[:, 0]
    np.testing.assert_allclose(y, factor[:, None] * x + offset[:, None], rtol=1e-4, atol=1e-4)
    for values, middle, reach in ((factor, 1, 0.2), (offset, 0, 0.3)):
        # Uniform: the standard deviation is reach / sqrt(3); 600 draws.
        assert np.abs(values - middle).max() <= reach + 1e-4
        assert abs(values.mean() - middle) < 4 * reach / np.sqrt(3 * 600)
        assert values.std() == pytest.approx(reach / np.sqrt(3), rel=0.1)
    # The sequences are drawn apart, and so are factor and offset.
    assert abs(np.corrcoef(factor.T)[0, 1]) < 0.25
    assert abs(np.corrcoef(factor.ravel(), offset.ravel())[0, 1]) < 0.25


def test_noise_has_a_level_of_its_own_in_each_sample() -> None:
    image = jnp.ones((200, 8, 8, 8, 1))
    label = jnp.zeros(image.shape[:4], jnp.uint8)
    out, _ = augment.augment(jax.random.key(0), image, label, options(noise=0.4))
    levels = np.asarray(out - 1).std((1, 2, 3, 4))
    assert levels.max() < 0.4 * 1.1
    assert levels.mean() == pytest.approx(0.2, rel=0.15)
    assert abs(np.asarray(out - 1).mean()) < 0.01


def test_the_key_decides() -> None:
    image, label = numbered(8)
    everything = augment.AugmentOptions(noise=0.1)
    first, first_label = augment.augment(jax.random.key(7), image, label, everything)
    again, again_label = augment.augment(jax.random.key(7), image, label, everything)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_label, again_label)
    other, _ = augment.augment(jax.random.key(8), image, label, everything)
    assert (other != first).mean() > 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip_axes": "xw"}, "augment.flip_axes is 'xw'"),
        ({"scale": -0.1}, "augment.scale is -0.1"),
        ({"shift": -1}, "augment.shift is -1"),
        ({"noise": -1}, "augment.noise is -1"),
    ],
)
def test_a_wrong_option_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**values)
