"""Several students in one step: each as if trained alone, also where the run was interrupted."""

import json
import os
import pathlib
import shutil
import signal
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.config import reading, students
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import compilation, runner
from kdnet_jax.prediction import inference
from kdnet_jax.runs import trained
from kdnet_jax.training import saved_checkpoints, stopping
from tests.helpers import commands, fork_server

pytestmark = pytest.mark.once

FOLDERS = ("student-t1ce", "student-t1+flair")


def _asked(cohort: pathlib.Path, built: pathlib.Path, channels: str) -> config_dict.ConfigDict:
    config = common.base_config("student", "smoke")
    config.data.data_dir, config.data.root = str(cohort), str(built)
    config.model.modalities = channels
    return config


def _run(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    runner.run_together(students.read(config, workdir), workdir)


@pytest.fixture(scope="module")
def together(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    smoke_student: commands.Finished,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[config_dict.ConfigDict, pathlib.Path]:
    """Two students of the teacher of `smoke_student`, whose training was stopped after a step."""
    folder = tmp_path_factory.mktemp("together") / "run"
    config = _asked(tiny_cohort, built, "t1ce;flair,t1")
    config.teacher.checkpoint = str(smoke_student.folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdnet_jax.reports.run_report.write", fork_server.empty_report)
        original = compilation.compile_step

        def compile_step(*args: Any) -> Any:
            step, sentence = original(*args)

            def stopped(*values: Any) -> Any:
                os.kill(os.getpid(), signal.SIGTERM)
                return step(*values)

            return stopped, sentence

        with patch.context() as stopping_patch:
            stopping_patch.setattr(compilation, "compile_step", compile_step)
            with pytest.raises(stopping.Stopped):
                _run(config, folder)
        assert [saved_checkpoints.saved_steps(folder / each) for each in FOLDERS] == [[1], [1]]
        _run(config, folder)
    return config, folder


def _assert_alike(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """The two networks answer alike, and have learned alike.

    Their parameters are equal but for the biases before a norm, whose gradient is rounding: Adam
    makes a full step of it.
    """
    found, expected = (trained.load_run(folder) for folder in (ours, theirs))
    assert found.step == expected.step
    expected_at = dict(jax.tree_util.tree_leaves_with_path(expected.params))
    for path, values in jax.tree_util.tree_leaves_with_path(found.params):
        if not jax.tree_util.keystr(path).endswith("['Conv_0']['bias']"):
            np.testing.assert_allclose(values, expected_at[path], rtol=1e-3, atol=1e-5)
    network = found.model.network.module()
    predict = inference.make_predict(network.apply, found.model.head, mirror=False)
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16, len(found.model.modalities)))
    answers = [predict(run.params, image.astype(np.float32)) for run in (found, expected)]
    np.testing.assert_allclose(*answers, atol=2e-4)
    np.testing.assert_allclose(_losses(ours), _losses(theirs), rtol=1e-4)


def _losses(run: pathlib.Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_each_is_as_if_trained_alone(
    together: tuple[config_dict.ConfigDict, pathlib.Path],
    smoke_student: commands.Finished,
    tmp_path: pathlib.Path,
    without_report: None,
) -> None:
    config, folder = together
    _assert_alike(folder / FOLDERS[0], smoke_student.folder)
    alone = config.copy_and_resolve_references()
    alone.model.modalities = "t1,flair"
    runner.run(reading.read(alone), tmp_path)
    _assert_alike(folder / FOLDERS[1], tmp_path)
    for name in FOLDERS:
        summary = json.loads((folder / name / "evaluation" / "summary.json").read_text("utf-8"))
        assert summary["steps"] == 6
        rows = (folder / name / "metrics.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(row)["step"] for row in rows] == [2, 3, 3, 4, 6, 6]


def test_one_that_lags_behind_catches_up(
    together: tuple[config_dict.ConfigDict, pathlib.Path],
    tmp_path: pathlib.Path,
    without_report: None,
) -> None:
    config, folder = together
    shutil.copytree(folder, tmp_path / "run")
    # As if the second had been added when the first was at step 3: it gets there alone.
    first, second = (tmp_path / "run" / each for each in FOLDERS)
    shutil.rmtree(first / "checkpoints" / "6")
    shutil.rmtree(second)
    _run(config, tmp_path / "run")
    for each in (first, second):
        assert saved_checkpoints.saved_steps(each) == [3, 6]
        _assert_alike(each, folder / each.name)
        rows = (each / "metrics.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(row)["step"] for row in rows] == [2, 3, 3, 4, 6, 6]


def test_a_teacher_that_does_not_see_what_a_student_sees(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _asked(tiny_cohort, built, "t1ce;flair")
    config.teacher.modalities = "t1,t1ce"
    with pytest.raises(UserError, match="the student sees flair, the teacher"):
        _run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
