"""Overlap of two masks, on the whole grid that they are given on."""

import numpy as np
from jaxtyping import Bool

Mask = Bool[np.ndarray, "*grid"]


def dice(reference: Mask, prediction: Mask) -> float:
    """Returns 2|R∩P| / (|R| + |P|); 1 if both masks are empty, 0 if only one is (BraTS)."""
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return float(2 * np.count_nonzero(reference & prediction) / total) if total else 1.0


def sensitivity(reference: Mask, prediction: Mask) -> float:
    """Returns |R∩P| / |R|: the share of the reference that was found; NaN if R is empty."""
    size = np.count_nonzero(reference)
    return float(np.count_nonzero(reference & prediction) / size) if size else float("nan")


def specificity(reference: Mask, prediction: Mask, outside: int = 0) -> float:
    """Returns |¬R∩¬P| / |¬R|; NaN if the reference fills the grid.

    It grows with the background around the brain, so it compares on equal grids only.

    Args:
      reference: Mask of the reference.
      prediction: Mask on the same grid.
      outside: Voxels of the grid that were cut off because both masks are empty there.
    """
    negative = np.count_nonzero(~reference) + outside
    both = np.count_nonzero(~(reference | prediction)) + outside
    return float(both / negative) if negative else float("nan")
