"""Background and brain, on a brain whose mask is known before it is resampled."""

import numpy as np
import pytest
from scipy import ndimage

from kdnet_jax.data.scans import brain, intensities
from kdnet_jax.errors import UserError

SHAPE = (52, 48, 44)
MOVE = (0.4, 0.3, 0.5)
INTERPOLATED = "as after interpolation"


def _ball(radius: float) -> np.ndarray:
    grid = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    return (grid**2).sum(0) < radius**2


BRAIN = _ball(15)


@pytest.fixture
def stripped() -> np.ndarray:
    """Tissue of 300 to 700 with a dark ventricle, a bright rim, and 0 around it."""
    rng = np.random.default_rng(0)
    tissue = 500 + 60 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) * 10
    tissue = np.clip(tissue, 300, 700)
    tissue[BRAIN & ~_ball(13)] *= 1.5
    tissue[_ball(4)] = 5
    return np.where(BRAIN, tissue, 0).astype(np.float32)


def _moved(volume: np.ndarray, **how: object) -> np.ndarray:
    return ndimage.shift(volume, MOVE, order=3, **how)


def _linear(volume: np.ndarray) -> int:
    """The voxels that a brain covers wholly or in part, as interpolation without ringing has it."""
    return np.count_nonzero(ndimage.shift(volume, MOVE, order=1))


STORED = {
    "float": lambda v: v,
    "int16": lambda v: v.round().astype(np.int16),
    "negatives cut": lambda v: v.clip(0).round().astype(np.uint16),
    "bright turned to dark": lambda v: -v,
}


@pytest.mark.parametrize("stored", STORED)
def test_ringing_is_background_and_said(stripped: np.ndarray, stored: str) -> None:
    resampled = STORED[stored](_moved(stripped))
    mask, notes = intensities.find_brain(resampled, 1e-3, "scan")
    assert len(notes) == 1
    assert notes[0].startswith("scan: the background is not 0")
    assert INTERPOLATED in notes[0]
    assert np.count_nonzero(mask) == pytest.approx(_linear(stripped), rel=0.02)
    assert np.count_nonzero(resampled) > 1.2 * _linear(stripped)
    inner = ndimage.binary_erosion(BRAIN, iterations=3)
    assert mask[inner].all()  # The ventricle is as dark as the ringing, and is no background.
    linear = ndimage.shift(stripped, MOVE, order=1)
    expected = intensities.z_score(linear, linear != 0, "linear")[inner].std()
    found = intensities.z_score(resampled, mask, "scan")[inner].std()
    assert found == pytest.approx(expected, rel=0.15)


def test_ringing_around_a_background_that_is_not_zero(stripped: np.ndarray) -> None:
    scored = ((stripped - 450) / 150).astype(np.float32)  # The background is -3.
    mask, notes = intensities.find_brain(_moved(scored, mode="nearest"), 1e-3, "scan")
    assert "the background is not -3" in notes[0]
    assert INTERPOLATED in notes[0]
    assert np.count_nonzero(mask) == pytest.approx(_linear(stripped), rel=0.02)


def test_ringing_around_negative_and_positive_scores(stripped: np.ndarray) -> None:
    scored = intensities.z_score(stripped, BRAIN, "scan")
    mask, notes = intensities.find_brain(_moved(scored), 1e-3, "scan")
    assert INTERPOLATED in notes[0]
    assert mask[ndimage.binary_erosion(BRAIN, iterations=2)].all()
    assert np.count_nonzero(mask) < 1.2 * _linear(stripped)


@pytest.mark.parametrize("background", [0, -0.75])
def test_a_volume_cropped_to_the_brain(stripped: np.ndarray, background: float) -> None:
    """The brain touches all six faces, the corners are background."""
    used = [np.flatnonzero(BRAIN.any(axis=rest)) for rest in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(places[0], places[-1] + 1) for places in used)
    scored = np.where(BRAIN, stripped / 200 + 1, background).astype(np.float32)[box]
    mask, notes = intensities.find_brain(scored, 1e-3, "scan")
    np.testing.assert_array_equal(mask, BRAIN[box])
    assert [note[6:] for note in notes] == (
        ["the background is -0.75, not 0; it was taken as such"] if background else []
    )


@pytest.mark.parametrize("order", [0, 1])
def test_sharp_edges_leave_a_scan_as_it_is(stripped: np.ndarray, order: int) -> None:
    stripped[20:24, 20:24, 20:24] = 0  # Zeros inside, as a resection may leave: background.
    if order == 0:  # A rim of one value, such as a sequence has where its field of view ends.
        stripped[_ball(15) & ~_ball(14.5)] = 4
    volume = ndimage.shift(stripped, (0.4, 0, 0), order=order)
    mask, notes = intensities.find_brain(volume, 1e-3, "scan")
    assert notes == []
    np.testing.assert_array_equal(mask, volume != 0)


NOISE = {
    "magnitudes": lambda rng: np.hypot(*rng.normal(0, 6, (2, *SHAPE))),
    "integers, mostly 0": lambda rng: rng.choice([0, 1, 2], SHAPE, p=[0.6, 0.3, 0.1]),
    "integers, mostly 1": lambda rng: rng.choice([0, 1, 2], SHAPE, p=[0.2, 0.6, 0.2]),
}


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("noise", NOISE)
def test_noise_around_a_head_is_not_ringing(
    stripped: np.ndarray, noise: str, resampled: bool
) -> None:
    """The head fills less than a brain's volume here: only the noise shows that it is one."""
    air = NOISE[noise](np.random.default_rng(2))
    # 8 bits, so one step is a share of the level that ringing has.
    head = np.where(BRAIN, stripped / 5, air).astype(np.float32)
    mask, notes = brain.foreground(_moved(head, mode="nearest") if resampled else head, "scan")
    assert not any(INTERPOLATED in note for note in notes)
    assert mask is None or np.count_nonzero(mask) > 1.5 * np.count_nonzero(BRAIN)
    if noise != "integers, mostly 0":
        with pytest.raises(UserError, match=intensities.SKULL_ON):
            intensities.find_brain(head, 1e-3, "scan")


def test_a_head_whose_air_was_removed_is_a_head_by_its_volume(stripped: np.ndarray) -> None:
    millilitres = 3000 / np.count_nonzero(BRAIN)
    with pytest.raises(UserError, match=f"34.. ml are not background.*{intensities.SKULL_ON}"):
        intensities.find_brain(_moved(stripped), millilitres, "scan")
