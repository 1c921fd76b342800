"""Check for a "tumour" as large as the brain: a mask of the brain in the label's place."""

import os
from typing import Final

import numpy as np
from jaxtyping import UInt8

from kdnet_jax.errors import UserError

# The largest whole tumour of 35 BraTS cases (2021; Africa) takes 18 % of its brain.
MAX_SHARE: Final = 0.5
# With the skull on, all of the head is foreground; the brain in it is no larger than this.
_LARGE_BRAIN_ML: Final = 1500.0


def check(
    classes: UInt8[np.ndarray, "x y z"],
    foreground_ml: float,
    voxel_ml: float,
    path: str | os.PathLike[str],
) -> None:
    """Refuses a label that fills most of the brain.

    Args:
        classes: of the label, 0 outside of the tumour.
        foreground_ml: what of the scan is not background, ml.
        voxel_ml: the volume of the label's voxels, ml.
        path: of the label, for the message.

    Raises:
        UserError: more than half of the brain is tumour.
    """
    tumour_ml = np.count_nonzero(classes) * voxel_ml
    brain_ml = min(foreground_ml, _LARGE_BRAIN_ML)
    if tumour_ml > MAX_SHARE * brain_ml:
        raise UserError(
            f"{path}: the tumour fills {tumour_ml / brain_ml:.0%} of the brain ({tumour_ml:.0f} of "
            f"{brain_ml:.0f} ml); expected at most {MAX_SHARE:.0%}. It seems to be a mask of the "
            "brain or of its tissues: put the tumour's segmentation in its place"
        )
