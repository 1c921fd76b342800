"""The cases of a run: what a config says of them reaches the dataset."""

import pathlib

import pytest

from configs import common
from kdnet_jax import run_data, settings
from kdnet_jax.errors import UserError


def test_the_label_convention_reaches_the_dataset(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.data.label_convention = "brats2020"
    data = run_data.open_data(config, settings.read_settings(config))
    assert data.cases.label_convention == "brats2020"


def test_every_part_of_the_split_needs_a_case(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.split.train, config.split.validation, config.split.test = 0.5, 0.0, 0.5
    with pytest.raises(UserError, match="leaves no case for validation"):
        run_data.open_data(config, settings.read_settings(config))
