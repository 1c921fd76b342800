"""What the tests of the report share."""

from collections.abc import Callable

import pytest

from kdnet_jax.metrics import cases


@pytest.fixture(scope="session")
def make_score() -> Callable[..., cases.RegionScore]:
    """A row of `cases.csv`, of which a test gives what it is about."""
    plain = {
        "case": "a",
        "region": "ET",
        "dice": 0.5,
        "hd95_mm": 4.0,
        "nsd": 0.8,
        "sensitivity": 0.5,
        "specificity": 0.9,
        "volume_ref_mm3": 2500.0,
        "volume_pred_mm3": 3500.0,
        "ref_empty": False,
        "pred_empty": False,
        "nsd_2mm": 0.9,
        "lesion_dice": 0.25,
        "lesion_hd95_mm": 20.0,
        "lesions_ref": 2,
        "lesions_pred": 4,
        "lesions_missed": 1,
        "lesions_false": 3,
    }
    return lambda **given: cases.RegionScore(**(plain | given))
