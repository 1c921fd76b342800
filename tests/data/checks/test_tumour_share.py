"""A "tumour" as large as the brain."""

import numpy as np
import pytest

from kdnet_jax.data.checks import tumour_share
from kdnet_jax.errors import UserError


def _label(voxels: int) -> np.ndarray:
    classes = np.zeros(1000, np.uint8)
    classes[:voxels] = 1
    return classes.reshape(10, 10, 10)


def test_half_of_the_brain_is_the_limit() -> None:
    tumour_share.check(_label(400), 0.8, 0.001, "seg.nii.gz")
    with pytest.raises(UserError, match=r"seg\.nii\.gz: the tumour fills 50% of the brain"):
        tumour_share.check(_label(401), 0.8, 0.001, "seg.nii.gz")


def test_of_a_head_the_brain_is_at_most_a_large_one() -> None:
    # 4000 ml of head, and 800 ml or 700 ml of "tumour".
    with pytest.raises(UserError, match="800 of 1500 ml"):
        tumour_share.check(_label(200), 4000.0, 4.0, "seg.nii.gz")
    tumour_share.check(_label(175), 4000.0, 4.0, "seg.nii.gz")
