"""The augment section of a config: presets, and keys that overrule them."""

import dataclasses
import pathlib

import pytest

from configs import common
from kdnet_jax.augment import augment
from kdnet_jax.config import flat_keys, keys, reading


@pytest.mark.parametrize(
    ("preset", "expected"), [("phantom", "plain"), ("smoke", "plain"), ("brats", "nnunet")]
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_config_s_preset(role: str, preset: str, expected: str) -> None:
    values = reading.read(common.base_config(role, preset))
    assert values.augment == augment.PRESETS[expected]


def test_keys_overrule_the_preset_and_survive_the_file(tmp_path: pathlib.Path) -> None:
    config = common.base_config("student", "phantom")
    config.augment.preset = "nnunet"
    config.augment.rotation = (-15.0, 15.0)
    # The value of the plain preset counts where it is asked for.
    config.augment.scale = 0.1
    expected = augment.choose("nnunet", rotation=(-15.0, 15.0), scale=0.1)
    experiment = reading.read(config)
    assert experiment.augment == expected
    (tmp_path / "config.json").write_text(experiment.to_json(), encoding="utf-8")
    restored = reading.read_run(tmp_path)
    assert restored.augment == expected
    assert not flat_keys.differences(experiment.document, restored.document)
    assert experiment.teacher.to_train.augment == expected


def test_a_difference_names_what_is_drawn() -> None:
    ours, theirs = (common.base_config("student", "phantom") for _ in range(2))
    theirs.augment.preset = "nnunet"
    changed = {key for key, _, _ in flat_keys.differences(ours.to_dict(), theirs.to_dict())}
    before, after = (dataclasses.asdict(augment.PRESETS[name]) for name in ("plain", "nnunet"))
    assert changed == {f"augment.{key}" for key in before if before[key] != after[key]}


def test_what_is_compared_of_a_config_are_its_keys() -> None:
    explicit = flat_keys.explicit(common.base_config("student", "phantom").to_dict())
    assert set(explicit) == set(keys.of_role("student")) - {"augment.preset"}
