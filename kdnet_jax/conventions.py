"""The words of the project: modalities, classes, regions, and their fixed order."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Integer

MODALITIES: Final = ("t1", "t1ce", "t2", "flair")
CLASSES: Final = ("background", "NCR", "ED", "ET")
REGIONS: Final = ("ET", "TC", "WT")

# The classes that make up each region (BraTS): TC = NCR + ET, WT = all of the tumour.
REGION_CLASSES: Final[dict[str, tuple[int, ...]]] = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}

# BraTS 2024's resection cavity. It is stored as its own value and never trained as a class.
RESECTION_CAVITY: Final = 4


def region_mask(labels: Integer[np.ndarray, "*grid"], region: str) -> Bool[np.ndarray, "*grid"]:
    """Returns the voxels of `labels` (classes 0..3) that belong to `region` ("ET", "TC", "WT")."""
    return np.isin(labels, REGION_CLASSES[region])
