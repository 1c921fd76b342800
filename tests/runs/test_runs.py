"""From probabilities on the working grid to classes on the scan's own."""

import numpy as np
import pytest

from kdnet_jax.data.scans import geometry
from kdnet_jax.models import heads
from kdnet_jax.prediction import predictors
from tests.helpers import glioma


@pytest.mark.parametrize("spacing", [None, 1.3])
@glioma.each_head
def test_channels_are_resampled_and_then_decided(head: heads.Head, spacing: float | None) -> None:
    way = geometry.make_geometry(
        (7, 6, 9), np.diag([-2.0, 1.0, 1.5, 1]), box=((1, 8), (0, 6), (1, 6)), spacing=spacing
    )
    rng = np.random.default_rng(0)
    probs = rng.random((*way.working_shape, len(head.outputs))).astype(np.float32)
    actual = predictors.segmentation_on_scan(probs, head, way)
    assert actual.dtype == np.uint8
    assert len(np.unique(actual)) == 4
    if head.kind == "softmax":
        np.testing.assert_array_equal(actual, geometry.back_to_scan(probs, way))
    else:
        regions = [geometry.threshold_to_scan(probs[..., c], way) for c in range(3)]
        decided = np.stack(regions, axis=-1).astype(np.float32)
        np.testing.assert_array_equal(actual, head.decide(decided))
    if spacing is None:
        inside = geometry.orient(actual, way.affine)[1:8, :, 1:6]
        np.testing.assert_array_equal(inside, head.decide(probs))
