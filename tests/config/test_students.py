"""Several students of one config: their channels, their folders, and what is refused."""

import pathlib

import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.config import flat_keys, reading, students, study
from kdnet_jax.errors import UserError

WORKDIR = pathlib.Path("runs/x")


def _asked(role: str, channels: str, **changes: object) -> config_dict.ConfigDict:
    config = common.base_config(role, "smoke")
    config.update_from_flattened_dict({"model.modalities": channels} | changes)
    return config


def test_each_student_has_the_config_of_a_run_alone_with_the_common_teacher() -> None:
    runs = students.read(_asked("student", "t1ce; t2,flair", seed=3), WORKDIR)
    assert [str(folder) for folder in runs] == ["runs/x/student-t1ce", "runs/x/student-t2+flair"]
    for found, channels in zip(runs.values(), (("t1ce",), ("t2", "flair")), strict=True):
        alone = reading.read(_asked("student", ",".join(channels), seed=3))
        assert found.modalities == channels
        changed = flat_keys.differences(alone.document, found.document)
        assert [key for key, *_ in changed] in (
            ["teacher.checkpoint"],
            ["model.modalities", "teacher.checkpoint"],  # a space
        )
        assert found.document["teacher"]["checkpoint"] == "runs/x/teacher"
        assert found.teacher.to_train == alone.teacher.to_train


def test_one_student_is_the_run_that_it_always_was() -> None:
    config = _asked("student", "t1,t1ce")
    assert students.read(config, WORKDIR) == {WORKDIR: reading.read(config)}


def test_the_teacher_alone_drops_sequences() -> None:
    config = _asked("student", "t1;t2", **{"augment.modality_dropout": 0.3})
    for found in students.read(config, WORKDIR).values():
        assert found.augment.modality_dropout == 0.0
        assert found.teacher.to_train.augment.modality_dropout == 0.3


@pytest.mark.parametrize(
    ("role", "channels", "words"),
    [
        ("student", "t1ce;t1x", "model.modalities holds 't1x'"),
        ("student", "t1,t2;flair;t2,t1", "the student on t1, t2 is named twice"),
        ("student", "t1ce;;t2", "name the channels of each student"),
        ("student", "t1ce;", "name the channels of each student"),
        ("baseline", "t1ce;t2", "are trained by python -m kdnet_jax.main with role student"),
        ("teacher", "t1ce;t2", "are trained by python -m kdnet_jax.main with role student"),
    ],
)
def test_what_names_no_students(role: str, channels: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        students.read(_asked(role, channels), WORKDIR)


def test_a_study_has_one_student() -> None:
    with pytest.raises(UserError, match="with role student"):
        study.parts(_asked("study", "t1ce;t2"), WORKDIR)
