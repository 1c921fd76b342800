"""The two sliding windows of `benchmarks.speed` do the same work."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the peer of the benchmarks needs torch")
pytest.importorskip("monai", reason="the peer's sliding window is MONAI's")

from benchmarks import speed_cases, speed_ours, speed_peer


def test_same_probabilities_where_the_windows_lie_alike(tmp_path) -> None:
    path = str(tmp_path / "params.pickle")
    speed_ours.save_params(path, (4, 8))
    # Edges of 1, 1.5 and 2 windows: both sides place the windows at 0, 8 and 16.
    shared = {"path": path, "widths": (4, 8), "shape": (16, 24, 32), "patch": (16, 16, 16)}
    ours = speed_ours.prediction(**shared, overlap=0.5)
    form = {"bfloat16": False, "layout": "contiguous", "batch": 2, "threads": 1}
    peer = speed_peer.prediction(**shared, overlap=0.5, **form)
    ours.run()
    peer.run()
    probs, windows = peer.result()
    assert windows == ours.about["windows"] == 1 * 2 * 3
    np.testing.assert_allclose(probs, ours.result(), atol=1e-4)


def test_agreement_of_two_predictions() -> None:
    ours = np.zeros((1, 1, 4, 2), np.float32)
    ours[..., 0] = [1, 1, 1, 0]
    ours[..., 1] = 1 - ours[..., 0]
    peer = ours.copy()
    peer[0, 0, 2] = [0.25, 0.75]
    found = speed_cases.agreement(ours, peer)
    assert found["same_class_share"] == 0.75
    # Class 0: 3 and 2 voxels, 2 shared: 4/5. Class 1: 1 and 2, 1 shared: 2/3.
    assert found["least_dice_of_a_class"] == pytest.approx(2 / 3)
    assert found["largest_difference"] == 0.75
    assert found["mean_difference"] == pytest.approx(1.5 / 8)
