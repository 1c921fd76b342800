"""The three configs: what they share, what sets them apart, and that every preset is valid."""

import importlib
import pathlib

import pytest

from configs import baseline, common, methods, student, teacher
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.errors import UserError
from kdnet_jax.losses import objective

FILES = {"teacher": teacher, "baseline": baseline, "student": student}


@pytest.mark.parametrize("preset", common.PRESETS)
@pytest.mark.parametrize("role", FILES)
def test_every_preset_is_valid(role: str, preset: str) -> None:
    config = FILES[role].get_config(preset)
    values = reading.read(config)
    assert (config.role, config.preset) == (role, preset)
    assert values.modalities == (("t1", "t1ce", "t2", "flair") if role == "teacher" else ("t1ce",))
    assert (values.distillation is not None) == (role == "student")


@pytest.mark.parametrize("preset", common.PRESETS)
def test_student_and_baseline_differ_in_the_teacher_alone(preset: str) -> None:
    ours, theirs = student.get_config(preset), baseline.get_config(preset)
    keys = {key for key, _, _ in flat_keys.differences(ours.to_dict(), theirs.to_dict())}
    assert {key.split(".")[0] for key in keys} == {"role", "distillation", "teacher"}


@pytest.mark.parametrize("preset", common.PRESETS)
def test_the_teacher_a_student_trains_is_that_of_its_config(preset: str) -> None:
    trained = reading.read(student.get_config(preset)).teacher.to_train
    assert trained == reading.read(teacher.get_config(preset))


@pytest.mark.parametrize(
    "name", [path.stem for path in pathlib.Path(methods.__path__[0]).glob("[a-z]*.py")]
)
def test_a_method_differs_from_the_student_in_its_keys_alone(name: str) -> None:
    method = importlib.import_module(f"configs.methods.{name}")
    ours = method.get_config("smoke")
    experiment = reading.read(ours)
    assert experiment.role == "student"
    differ = flat_keys.differences(ours.to_dict(), student.get_config("smoke").to_dict())
    assert {key for key, _, _ in differ} <= {*method.METHOD, "train.steps"}
    unlabelled = name == "teacher_labels"
    loss = objective.of_options(
        experiment.head, experiment.loss, experiment.distillation, unlabelled=unlabelled
    )
    assert any(weight for role, weight in loss.weights.items() if role != "gt")


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("patient", {"loader.batch": 1}, "has no other to be mixed with"),
        ("standardized", {"model.head": "regions"}, "model.head is regions"),
        ("kdnet", {"distillation.standardize_logits": True}, "kd_form=dice_bce does not use"),
    ],
)
def test_a_method_without_what_it_needs_is_refused(
    name: str, keys: dict[str, object], words: str
) -> None:
    config = importlib.import_module(f"configs.methods.{name}").get_config("smoke")
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=words):
        reading.read(config)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"'phantm' is no preset of a config; did you mean 'phantom'\?"
    ):
        student.get_config("phantm")
