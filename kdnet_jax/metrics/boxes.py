"""Boxes around masks: what lies outside them costs no time."""

import numpy as np
from jaxtyping import Bool


def bounding_box(mask: Bool[np.ndarray, "d h w"], margin: int = 0) -> tuple[slice, ...]:
    """Returns the smallest box that holds the mask, one slice per axis; empty for no voxel.

    Args:
      mask: The mask.
      margin: Voxels that the box is grown by on each side, within the grid.
    """
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(mask.any(axis=others))
        if used.size:
            box.append(slice(max(int(used[0]) - margin, 0), int(used[-1]) + 1 + margin))
        else:
            box.append(slice(0, 0))
    return tuple(box)
