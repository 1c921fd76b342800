"""Configs to values and JSON and back, and damaged files."""

import pathlib
import re

import pytest

from configs import common
from kdnet_jax import settings
from kdnet_jax.errors import UserError
from kdnet_jax.models import networks


@pytest.mark.parametrize("role", settings.ROLES)
def test_json_and_back(tmp_path: pathlib.Path, role: str) -> None:
    config = common.base_config(role, "smoke")
    (tmp_path / "config.json").write_text(settings.to_json(config), "utf-8")
    restored = settings.read_config(tmp_path)
    assert not settings.differences(config, restored)
    assert settings.read_settings(restored) == settings.read_settings(config)


def test_another_family_takes_what_it_can_and_refuses_the_rest() -> None:
    config = common.base_config("baseline", "smoke")
    config.model.update(family="plain_conv_unet", blocks=3, convolutions="planes")
    network = settings.read_settings(config).network
    assert networks.family(network) == "plain_conv_unet"
    assert network.network.blocks == (3, 3)
    assert network.convolutions == "planes"
    config.model.down = "strided"
    with pytest.raises(UserError, match=re.escape("Set --config.model.down=max_pool")):
        settings.read_settings(config)


def test_differences_name_dotted_keys() -> None:
    ours, theirs = (common.base_config("baseline", "smoke") for _ in range(2))
    theirs.train.steps = 7
    assert settings.differences(ours, theirs) == [("train.steps", ours.train.steps, 7)]


def test_channels_are_positions_among_the_data_s_sequences() -> None:
    config = common.base_config("baseline", "smoke")
    config.data.modalities, config.model.modalities = "t1ce,t2,flair", "t1ce,flair"
    assert settings.read_settings(config).channels == (0, 2)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.convolutions", "yes", "model.convolutions is 'yes': choose one of auto, native"),
        ("data.resection_cavity", "tumour", "choose one of background, NCR"),
        ("split.seed", -1, "split.seed is -1: give a whole number from 0"),
        ("seed", -2, "seed is -2: give a whole number from 0"),
        ("inference.overlap", 1.0, "inference.overlap is 1.0"),
        ("model.modalities", "t1cee", "did you mean 't1ce'"),
        ("model.deep_supervision", True, "model.widths has 2 levels: below four there is none"),
    ],
)
def test_a_value_that_cannot_be_is_named(key: str, value: object, words: str) -> None:
    config = common.base_config("baseline", "smoke")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(words)):
        settings.read_settings(config)


def test_a_folder_that_is_no_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"is no run of kdnet_jax"):
        settings.read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]"])
def test_a_damaged_config(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        settings.read_config(tmp_path)
