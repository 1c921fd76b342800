"""Each normalisation by hand, the background of scans with their skull, and what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import intensities
from kdnet_jax.errors import UserError

CT = task_lib.Channel(name="ct", normalisation="ct", statistics=(-100.0, 300.0, 50.0, 80.0))


def channel(normalisation: task_lib.Normalisation) -> task_lib.Channel:
    return task_lib.Channel(name="x", normalisation=normalisation)


def body(shape: tuple[int, int, int] = (8, 9, 10), margin: int = 2) -> np.ndarray:
    """Noise about 100, with rows of zeros on all sides and one 0 in the middle."""
    volume = np.zeros(shape)
    inner = tuple(slice(margin, size - margin) for size in shape)
    volume[inner] = np.random.default_rng(0).normal(100, 20, shape)[inner]
    volume[4, 4, 5] = 0
    return volume


def normalised(volume: np.ndarray, kind: task_lib.Normalisation) -> np.ndarray:
    mask, notes = intensities.foreground(volume, channel(kind), 1e-3, "scan")
    assert notes == []
    return intensities.normalise(volume, mask, channel(kind), "scan")


def test_the_foreground_is_what_is_not_zero_with_its_holes_filled() -> None:
    volume = body()
    mask, _ = intensities.foreground(volume, channel("zscore"), 1e-3, "scan")
    np.testing.assert_array_equal(mask, ndimage.binary_fill_holes(volume != 0))
    assert mask[4, 4, 5]
    # A CT in Hounsfield units has zeros here and there, and no background.
    air = np.where(body(margin=3) > 0, body(margin=3), -1000)
    air[1, 1, 1] = 0
    assert intensities.foreground(air, CT, 1e-3, "scan")[0].all()


def test_a_head_with_its_skull_is_refused_only_where_a_stripped_one_is_expected() -> None:
    head = np.random.default_rng(0).normal(100, 20, (9, 9, 9))
    assert intensities.foreground(head, channel("zscore"), 1.0, "scan")[0].all()
    with pytest.raises(UserError, match=intensities.SKULL_ON):
        intensities.foreground(head, channel("zscore_nonzero"), 1.0, "scan")


def test_a_z_score_over_all_voxels_of_the_channel_s_own_box() -> None:
    volume = body()
    inner = volume[2:-2, 2:-2, 2:-2]
    expected = (volume - inner.mean()) / inner.std()
    np.testing.assert_allclose(normalised(volume, "zscore"), expected, rtol=1e-5)
    # More zeros around a scan, as where another channel needs a larger crop, change nothing.
    wider = normalised(np.pad(volume, 3), "zscore")
    np.testing.assert_array_equal(wider[3:-3, 3:-3, 3:-3], normalised(volume, "zscore"))
    volume[3, 3, 3] = 1e6
    assert normalised(volume, "zscore").max() == intensities.MAX_Z


def test_a_ct_is_cut_and_scored_by_the_statistics_of_its_channel() -> None:
    volume = np.array([-1000.0, -100.0, 0.0, 50.0, 290.0, 300.0, 3000.0]).reshape(1, 1, 7)
    found = intensities.normalise(volume, volume == volume, CT, "scan")
    expected = np.array([-150, -150, -50, 0, 240, 250, 250]) / 80
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)
    unmeasured = dataclasses.replace(CT, statistics=None)
    with pytest.raises(UserError, match="the channel ct is a CT without statistics"):
        intensities.normalise(volume, volume == volume, unmeasured, "scan")


def test_rescaled_to_its_own_range_and_as_it_is() -> None:
    volume = body()
    volume[2, 2, 2], volume[3, 3, 3] = -50, 450
    rescaled = normalised(volume, "rescale")
    np.testing.assert_allclose(rescaled, (volume + 50) / 500, rtol=1e-6)
    np.testing.assert_array_equal(normalised(volume, "none"), volume.astype(np.float32))
    # Beside a box without zeros, zeros are no lower than the lowest intensity.
    positive = np.pad(np.arange(1.0, 28.0).reshape(3, 3, 3), 1)
    assert normalised(positive, "rescale").min() == 0


def test_what_cannot_be_normalised_is_refused() -> None:
    for kind in ("zscore", "rescale", "none"):
        with pytest.raises(UserError, match="scan: every voxel is 0"):
            intensities.foreground(np.zeros((4, 4, 4)), channel(kind), 1.0, "scan")
    for kind in ("zscore", "rescale"):
        with pytest.raises(UserError, match="scan: every voxel is 7; the file holds a mask"):
            normalised(np.pad(np.full((3, 3, 3), 7.0), 1), kind)
    with pytest.raises(UserError, match="scan: holds intensities of up to 70000"):
        normalised(np.full((3, 3, 3), -70000.0), "none")


def test_nnunet_s_own_normalisation() -> None:
    schemes = pytest.importorskip(
        "nnunetv2.preprocessing.normalization.default_normalization_schemes"
    )
    volume = body(margin=0).astype(np.float32)
    low, high, mean, deviation = CT.statistics
    properties = {
        "percentile_00_5": low,
        "percentile_99_5": high,
        "mean": mean,
        "std": deviation,
    }
    theirs = {
        "zscore": schemes.ZScoreNormalization(False, {}),
        "ct": schemes.CTNormalization(False, properties),
        "rescale": schemes.RescaleTo01Normalization(False, {}),
        "none": schemes.NoNormalization(False, {}),
    }
    for kind, scheme in theirs.items():
        chosen = CT if kind == "ct" else channel(kind)
        mask, _ = intensities.foreground(volume, chosen, 1e-3, "scan")
        ours = intensities.normalise(volume, mask, chosen, "scan")
        np.testing.assert_allclose(ours, scheme.run(volume.copy()), rtol=1e-4, atol=1e-5)
