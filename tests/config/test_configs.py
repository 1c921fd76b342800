"""The three configs: what they share, what sets them apart, and that every preset is valid."""

import pytest

from configs import baseline, common, student, teacher
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.errors import UserError

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


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"phantm is no preset; did you mean 'phantom'\?"):
        student.get_config("phantm")
