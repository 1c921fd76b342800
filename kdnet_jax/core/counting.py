"""Counting the values of label maps."""

import numpy as np
from jaxtyping import Int, Num

_AT_ONCE = 1 << 20


def value_counts(
    values: Num[np.ndarray, "*grid"],
) -> tuple[Num[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns the values of an array in ascending order, and how often each is there.

    It is `np.unique(values, return_counts=True)`, without sorting where all are whole numbers from
    0 to 255, as in almost every label map: a tenth of the time.
    """
    with np.errstate(invalid="ignore"):  # of what is no such number, which is then seen
        small = values.astype(np.uint8, copy=False)
    if not np.array_equal(small, values):
        return np.unique(values, return_counts=True)
    counts, flat = np.zeros(256, np.int64), small.ravel("K")
    for start in range(0, flat.size, _AT_ONCE):  # bincount takes 8 bytes a voxel
        counts += np.bincount(flat[start : start + _AT_ONCE], minlength=256)
    found = np.flatnonzero(counts)
    return found.astype(values.dtype), counts[found]
