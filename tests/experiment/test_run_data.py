"""The cases of a run: what a config says of them reaches the dataset."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import run_data
from kdnet_jax.parallel import sharding


def test_the_label_convention_reaches_the_dataset(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = _config(tiny_cohort, built)
    config.data.label_convention = "brats2020"
    data = run_data.open_data(reading.read(config))
    assert data.cases.label_convention == "brats2020"


def test_every_part_of_the_split_needs_a_case(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = _config(tiny_cohort, built)
    config.split.train, config.split.validation, config.split.test = 0.5, 0.0, 0.5
    with pytest.raises(UserError, match="leaves no case for validation"):
        run_data.open_data(reading.read(config))


def test_no_training_case_is_refused(tiny_cohort: pathlib.Path, built: pathlib.Path) -> None:
    config = _config(tiny_cohort, built)
    config.split.train, config.split.validation, config.split.test = 0.0, 0.5, 0.5
    with pytest.raises(UserError, match="leaves no case for train"):
        run_data.open_data(reading.read(config))


def test_an_unknown_place_is_named(tiny_cohort: pathlib.Path, built: pathlib.Path) -> None:
    config = _config(tiny_cohort, built)
    config.loader.cache = "gpu"
    with pytest.raises(UserError, match=r"loader\.cache is 'gpu': choose one of auto, device"):
        reading.read(config)


@pytest.mark.parametrize("place", ["auto", "device", "host", "stream"])
def test_the_place_is_said_and_changes_no_batch(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    caplog.set_level("INFO")
    config = _config(tiny_cohort, built)
    config.loader.cache = place
    config.augment.preset = "nnunet"
    values = reading.read(config)
    data, mesh = run_data.open_data(values), sharding.make_mesh()
    with run_data.open_batches(values, data, mesh, tmp_path) as batches:
        found = jax.device_get(list(itertools.islice(batches, 2)))
    assert f"loader.cache={place}: " in caplog.text
    # Rotated patches are taken from larger crops, whose middle they are before they are rotated.
    crop = augment.source_patch(values.loader.patch, values.augment)
    assert found[0]["image"].shape == (1, *crop, 4)
    assert all(edge > size for edge, size in zip(crop, values.loader.patch, strict=True))
    config.loader.cache = "stream"
    values = reading.read(config)
    with run_data.open_batches(values, data, mesh, tmp_path) as batches:
        for ours, theirs in zip(found, itertools.islice(batches, 2), strict=True):
            np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_a_patch_larger_than_every_case_is_noted(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    config = _config(tiny_cohort, built)
    config.loader.patch = (64, 16, 16)
    values = reading.read(config)
    data = run_data.open_data(values)
    run_data.open_batches(values, data, sharding.make_mesh(), tmp_path).close()
    assert "patch of 64 x 16 x 16 is larger along some axis than every" in caplog.text


def _config(cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(cohort), str(built)
    return config
