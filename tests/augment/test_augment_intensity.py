"""Noise, blur, contrast, low resolution and gamma: against SciPy and PyTorch, and by property."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from kdnet_jax.augment import intensity

SIZE = (14, 11, 12)


def patch(sequences: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """z-scores with a background of 0 of different share in each sequence, and where brain is."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=(sequences, *SIZE)), (0, 1, 1, 1)) * 4 + 0.3
    for sequence in range(sequences):
        image[sequence, : 2 + 2 * sequence] = 0
    return image.astype(np.float32), image != 0


def statistics(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Mean, deviation, least and largest of each sequence's brain."""
    values = [np.asarray(image, np.float64)[m][brain[m]] for m in range(len(image))]
    return np.array([(v.mean(), v.std(), v.min(), v.max()) for v in values])


def test_noise_has_its_deviation_and_is_each_sequence_s_own() -> None:
    image = np.zeros((2, 24, 24, 24), np.float32)
    out = np.asarray(intensity.noise(image, jax.random.key(0), jnp.float32(0.4)))
    assert out.std((1, 2, 3)) == pytest.approx([0.4, 0.4], rel=0.03)
    assert np.abs(out.mean()) < 0.01
    assert abs(np.corrcoef(out.reshape(2, -1))[0, 1]) < 0.04
    # Gaussian: a third of the values lie beyond one deviation.
    assert (np.abs(out) > 0.4).mean() == pytest.approx(0.3173, abs=0.015)


def test_blur_is_scipy_s_gaussian_filter() -> None:
    image, _ = patch()
    sigma = np.array([[0.5, 0.8, 1.0], [1.0, 0.6, 0.7], [0.9, 0.9, 0.55]], np.float32)
    out = intensity.blur(image, sigma, 1.0)
    for sequence in range(3):
        expected = ndimage.gaussian_filter(
            image[sequence].astype(float), sigma[sequence], radius=3, mode="mirror"
        )
        np.testing.assert_allclose(out[sequence], expected, atol=1e-5)


def test_a_kernel_wider_than_the_patch_is_mirrored_twice() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    out = intensity.blur(image, np.full((1, 3), 2.0, np.float32), 2.0)
    expected = ndimage.gaussian_filter(image[0].astype(float), 2.0, radius=6, mode="mirror")
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def test_a_sequence_that_is_not_blurred_stays_to_the_bit() -> None:
    image, _ = patch()
    sigma = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    out = intensity.blur(image, sigma, 1.0)
    np.testing.assert_array_equal(out[::2], image[::2])
    assert (out[1] != image[1]).mean() > 0.8


@pytest.mark.parametrize("scale", [0.5, 0.61, 0.77, 0.99])
def test_low_resolution_is_pytorch_s_nearest_down_and_trilinear_up(scale: float) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch's interpolation is the reference")
    # batchgeneratorsv2's definition (transforms/spatial/low_resolution.py), sequence by sequence.
    image, _ = patch()
    scales = np.array([scale, 1.0, scale + 0.005], np.float32)
    out = intensity.low_resolution(image, scales)
    np.testing.assert_array_equal(out[1], image[1])
    for sequence in (0, 2):
        volume = torch.from_numpy(image[sequence])[None, None]
        size = [round(edge * float(scales[sequence])) for edge in SIZE]
        down = torch.nn.functional.interpolate(volume, size, mode="nearest-exact")
        up = torch.nn.functional.interpolate(down, SIZE, mode="trilinear")
        np.testing.assert_allclose(out[sequence], up[0, 0], atol=1e-5)


def test_contrast_stretches_about_the_mean_of_the_brain_within_its_range() -> None:
    image, brain = patch()
    factor = np.array([0.75, 1.25, 1.0], np.float32)
    out = np.asarray(intensity.contrast(image, brain, factor))
    mean, _, low, high = statistics(image, brain).T[..., None, None, None]
    stretched = (image - mean) * factor[:, None, None, None] + mean
    expected = np.clip(stretched, low, high)
    np.testing.assert_allclose(out[brain], expected[brain], atol=1e-5)


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_is_its_formula_and_keeps_mean_and_deviation(invert: bool) -> None:
    image, brain = patch()
    exponent = np.array([0.7, 1.5, 1.1], np.float32)
    out = np.asarray(intensity.gamma(image, brain, exponent, invert=invert))
    np.testing.assert_allclose(
        statistics(out, brain)[:, :2], statistics(image, brain)[:, :2], atol=1e-4
    )
    for sequence in range(3):
        inside = brain[sequence]
        x = image[sequence][inside].astype(float) * (-1 if invert else 1)
        curved = ((x - x.min()) / np.ptp(x)) ** exponent[sequence]
        expected = (curved - curved.mean()) / curved.std() * x.std() + x.mean()
        expected *= -1 if invert else 1
        np.testing.assert_allclose(out[sequence][inside], expected, atol=1e-4)


def test_gamma_one_changes_nothing_but_rounding() -> None:
    image, brain = patch()
    out = intensity.gamma(image, brain, np.ones(3, np.float32), invert=False)
    np.testing.assert_allclose(np.asarray(out)[brain], image[brain], atol=1e-5)


Part = Callable[[np.ndarray, np.ndarray], jax.Array]
STATISTICAL: dict[str, Part] = {
    "contrast": lambda x, b: intensity.contrast(x, b, jnp.full(1, 1.2)),
    "gamma": lambda x, b: intensity.gamma(x, b, jnp.full(1, 1.4), invert=False),
    "inverted": lambda x, b: intensity.gamma(x, b, jnp.full(1, 0.7), invert=True),
}


@pytest.mark.parametrize("name", STATISTICAL)
def test_the_share_of_background_does_not_matter(name: str) -> None:
    image, brain = patch(1)
    wider = ((0, 0), (0, 9), (4, 0), (0, 0))
    alone = np.asarray(STATISTICAL[name](image, brain))
    padded = np.asarray(STATISTICAL[name](np.pad(image, wider), np.pad(brain, wider)))
    np.testing.assert_allclose(padded[np.pad(brain, wider)], alone[brain], atol=1e-5)


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_constant_brain_stays_finite(name: str) -> None:
    image = np.full((1, *SIZE), 2.0, np.float32)
    out = np.asarray(STATISTICAL[name](image, image != 0))
    np.testing.assert_allclose(out, 2.0, atol=1e-5)
