"""Counting of label values against NumPy's own, slower way."""

import numpy as np
import pytest

from kdnet_jax.core import counting

_LABELS = np.random.default_rng(0).integers(0, 5, (30, 40, 50))
_ARRAYS = {
    "uint8": _LABELS.astype(np.uint8),
    "stored as in a file": np.asfortranarray(_LABELS.astype(np.uint8)),
    "a part": _LABELS.astype(np.int16)[3:20:2, ::-1, 7:],
    "float": _LABELS.astype(np.float64),
    "more at once than one part": np.tile(_LABELS.astype(np.uint8), (20, 1, 1)),
    "negative": _LABELS.astype(np.int16) - 1,
    "large": _LABELS * 1000,
    "256 and more": _LABELS.astype(np.float32) + 253,
    "fractions": _LABELS / 3,
    "not finite": np.where(_LABELS == 1, np.nan, np.where(_LABELS == 2, np.inf, _LABELS)),
    "one": np.full((2, 2), 255, np.uint8),
    "none": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("name", _ARRAYS)
@pytest.mark.filterwarnings("error")
def test_values_and_their_counts_are_numpys(name: str) -> None:
    found, counts = counting.value_counts(_ARRAYS[name])
    expected, their_counts = np.unique(_ARRAYS[name], return_counts=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, their_counts)
    assert found.dtype == expected.dtype
