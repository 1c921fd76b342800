"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

# Small CPU tests: one set of XLA threads per worker is enough, and no accelerator is claimed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def sample_dir() -> pathlib.Path:
    """Ten real BraTS 2021 cases: $KDNET_SAMPLE_DIR, or ../shared/brats2021_sample."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "brats2021_sample"
    folder = pathlib.Path(os.environ.get("KDNET_SAMPLE_DIR", default))
    if not folder.is_dir():
        pytest.skip(f"no sample cases at {folder}; set KDNET_SAMPLE_DIR to a BraTS 2021 folder")
    return folder
