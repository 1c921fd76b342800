"""Students of one run: the experiments of a config that names one network, or several students."""

import dataclasses
import pathlib
import urllib.parse
from typing import Final

from ml_collections import config_dict

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

# Where a run keeps a teacher that it has to train.
TEACHER: Final = "teacher"

_KEY: Final = "model.modalities"


def read(
    config: config_dict.ConfigDict, workdir: pathlib.Path
) -> dict[pathlib.Path, experiment_lib.Experiment]:
    """Returns the folder and the experiment of each network that a config asks for.

    One lies in `workdir`. Several students, with semicolons between their channels, lie in folders
    within it that are called by their channels, such as `student-t1+t1ce`.

    Raises:
        UserError: for the first invalid value.
    """
    document = config.to_dict()
    flat = flat_keys.flatten(document)
    channels = flat.get(_KEY)
    if flat.get("role") != "student" or not isinstance(channels, str) or ";" not in channels:
        return {workdir: reading.of_document(document)}
    if not all(part.strip(" ,") for part in channels.split(";")):
        raise UserError(
            f"{_KEY} is {channels!r}: name the channels of each student, with ; between students."
        )
    runs = {}
    for part in channels.split(";"):
        student = _student({**flat, _KEY: part}, workdir)
        names = [urllib.parse.quote(name, safe="") for name in student.modalities]
        folder = workdir / f"student-{'+'.join(names)}"
        if folder in runs:
            raise UserError(
                f"{_KEY} is {channels!r}: the student on {', '.join(student.modalities)} is named "
                "twice. Name each once."
            )
        runs[folder] = student
    return runs


def _student(flat: typed.Json, workdir: pathlib.Path) -> experiment_lib.Experiment:
    """Returns one of several students; its config names the teacher that is trained for all."""
    student = reading.of_document(flat_keys.nest(flat))
    assert student.teacher
    if student.teacher.to_train is None:
        return student
    changes = {
        "teacher.checkpoint": str(workdir / TEACHER),
        "augment.modality_dropout": 0.0,  # it is the teacher's
    }
    taught = reading.of_document(flat_keys.nest({**flat, **changes}))
    assert taught.teacher
    teacher = dataclasses.replace(taught.teacher, to_train=student.teacher.to_train)
    return dataclasses.replace(taught, teacher=teacher)
