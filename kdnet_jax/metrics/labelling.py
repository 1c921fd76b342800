"""Labelling of the connected components of a mask."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Int32
from scipy import ndimage

from kdnet_jax.metrics import boxes

_NEIGHBOURS_26: Final = np.ones((3, 3, 3), bool)


def label(mask: Bool[np.ndarray, "x y z"], *, corners: bool) -> Int32[np.ndarray, "x y z"]:
    """Returns the number of each voxel's component from 1 on, 0 outside of the mask.

    Args:
        mask: the voxels.
        corners: whether voxels that share an edge or a corner touch (26 neighbours), or only those
            that share a face (6).
    """
    found = np.zeros(mask.shape, np.int32)
    box = boxes.bounding_box(mask)
    ndimage.label(mask[box], _NEIGHBOURS_26 if corners else None, found[box])
    return found
