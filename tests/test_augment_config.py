"""The augment section of a config: presets, keys that overrule them, and older runs."""

import dataclasses
import pathlib

import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax import settings
from kdnet_jax.data import augment


@pytest.mark.parametrize(
    ("preset", "expected"), [("phantom", "plain"), ("smoke", "plain"), ("brats", "nnunet")]
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_config_s_preset(role: str, preset: str, expected: str) -> None:
    values = settings.read_settings(common.base_config(role, preset))
    assert values.augment == augment.PRESETS[expected]


def test_keys_overrule_the_preset_and_survive_the_file(tmp_path: pathlib.Path) -> None:
    config = settings.completed(common.base_config("student", "phantom"))
    config.augment.preset = "nnunet"
    config.augment.rotation = (-15.0, 15.0)
    # The value of the plain preset counts where it is asked for.
    config.augment.scale = 0.1
    expected = augment.choose("nnunet", rotation=(-15.0, 15.0), scale=0.1)
    assert settings.read_settings(config).augment == expected
    (tmp_path / "config.json").write_text(settings.to_json(config), encoding="utf-8")
    assert settings.read_run(tmp_path)[1].augment == expected
    assert not settings.differences(config, settings.read_config(tmp_path))
    assert settings.read_settings(settings.teacher_config(config)).augment == expected


def test_a_run_of_before_the_presets_draws_what_it_drew() -> None:
    new = common.base_config("student", "phantom")
    old = config_dict.ConfigDict(new.to_dict())
    old.augment = config_dict.ConfigDict(
        {"flip_axes": "dhw", "scale": 0.1, "shift": 0.1, "noise": 0.0}
    )
    assert settings.read_settings(old).augment == augment.PRESETS["plain"]
    assert not settings.differences(old, new)


def test_a_difference_names_what_is_drawn() -> None:
    ours, theirs = (common.base_config("student", "phantom") for _ in range(2))
    theirs.augment.preset = "nnunet"
    changed = {key for key, _, _ in settings.differences(ours, theirs)}
    before, after = (dataclasses.asdict(augment.PRESETS[name]) for name in ("plain", "nnunet"))
    assert changed == {f"augment.{key}" for key in before if before[key] != after[key]}
