"""The table of keys: each is declared whole, and every preset's values are of their keys' kinds."""

import pathlib

import pytest

from configs import common
from kdnet_jax.config import flat_keys, keys, values
from kdnet_jax.errors import UserError

REFERENCE = pathlib.Path(__file__).parents[2] / "docs" / "reference.md"
# The name of the config's file gives these.
OF_THE_NAME = {"role", "preset"}


@pytest.mark.parametrize("name", keys.KEYS)
def test_a_key_is_declared_whole(name: str) -> None:
    key = keys.KEYS[name]
    assert key.kind.fits(key.default)
    assert key.help.endswith(".")
    assert name in OF_THE_NAME or f"| `{name}` | {key.kind.words} |" in REFERENCE.read_text("utf-8")


@pytest.mark.parametrize("role", [*keys.ROLES, "study"])
@pytest.mark.parametrize("preset", common.PRESETS)
def test_a_preset_has_the_keys_of_its_role_and_values_of_their_kinds(
    role: str, preset: str
) -> None:
    flat = flat_keys.flatten(common.base_config(role, preset).to_dict())
    flat_keys.check(flat)
    flat_keys.check_complete(flat, role)
    assert (flat["role"], flat["preset"]) == (role, preset)


def test_nested_keys_and_flat_ones_are_each_other_s_inverse() -> None:
    flat = {"a": 1, "b.c": 2, "b.d.e": (3,)}
    assert flat_keys.nest(flat) == {"a": 1, "b": {"c": 2, "d": {"e": (3,)}}}
    assert flat_keys.flatten(flat_keys.nest(flat)) == flat


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"loader": 5}, "loader is 5: it is a section"),
        ({"seed.x": 5}, "seed has keys of its own: give a whole number"),
        ({"loader.cache": "gpu"}, "loader.cache is 'gpu': choose one of auto, device"),
        ({"model.remat": 1}, "model.remat is 1: give true or false"),
        ({"train.steps": 0}, "train.steps is 0: give a whole number from 1"),
        ({"train.save_minutes": 0.0}, "train.save_minutes is 0.0: give a number above 0"),
        ({"optimizer.plateau_factor": 1.0}, "is 1.0: give a number above 0 to below 1"),
        ({"optimizer.clip": -1.0}, "optimizer.clip is -1.0: give a number from 0"),
        ({"augment.scale": float("nan")}, "augment.scale is nan: give a number from 0 to 1"),
        ({"augment.elastic": (0, 13)}, r"elastic is \(0, 13\): give 2 .* from 0 to 12.8"),
        ({"distillation.kd_weight": 1.5}, "distillation.kd_weight is 1.5: give a number from 0"),
        ({"distillation.kl_direction": "both"}, "is 'both': choose one of teacher_student"),
    ],
)
def test_a_value_of_another_kind_is_named(flat: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        flat_keys.check(flat)


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (values.Whole(0, 9), (0, 9), (-1, 10, 1.0, True, "1", None)),
        (values.Number(0, 1, without_low=True), (0.1, 1), (0, 1.1, float("nan"), True, "1")),
        (values.Several(values.Whole(1, 9), 0, 2), ((), (1,), [1, 2]), ((1, 2, 3), (0,), 1)),
        (values.OneOr(values.Several(values.Whole(1, 9), 2, 2)), (1, (1, 2)), ((1,), 0)),
        (values.Text(), ("", "x"), (1, None, "\0")),
        (values.Choice(("a", "b")), ("a",), ("c", 1, None, ["a"])),
        (values.Switch(), (True, False), (0, 1, "true")),
    ],
)
def test_kinds(kind: values.Kind, fitting: tuple, others: tuple) -> None:
    assert [value for value in fitting if not kind.fits(value)] == []
    assert [value for value in others if kind.fits(value)] == []
