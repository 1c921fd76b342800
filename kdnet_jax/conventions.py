"""The words of the project: modalities, classes, regions, and their fixed order."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Integer

from kdnet_jax.errors import UserError, nearest

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


def read_modalities(text: str, key: str) -> tuple[str, ...]:
    """Returns the sequences of a comma-separated text, in the project's order.

    Raises:
        UserError: for an empty text, an unknown or a doubled sequence.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in MODALITIES:
            raise UserError(
                f"{key} holds {name!r}{nearest(name, MODALITIES)} (the sequences are "
                f"{', '.join(MODALITIES)})."
            )
    if not names or len(set(names)) < len(names):
        raise UserError(f"{key} is {text!r}: name each sequence once, separated by commas.")
    return tuple(name for name in MODALITIES if name in names)
