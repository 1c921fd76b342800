"""A run that is killed again and again ends as one that was never stopped."""

import contextlib
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import kills
from tests.helpers import forks

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def record(folder: pathlib.Path, report_free_env: dict[str, str]) -> dict[str, Any]:
    def start(words: Sequence[str]) -> contextlib.AbstractContextManager[forks.Running]:
        env = forks.with_packages(report_free_env)
        return forks.started(words, cwd=forks.ROOT, env=env, limit_s=300)

    # Half of the steps of the 40 kills.
    fewer = kills.SETTINGS | {"train.steps": 100, "teacher.steps": 100}
    return kills.run(folder, kills=6, seed=1, settings=fewer, start=start)


def test_kills_leave_no_trace(record: dict[str, Any]) -> None:
    assert record["differences"] == []
    assert record["kills_in_all"] == 6
    moments = {kills.FIRST_SAVE, kills.SAVE, kills.STEP, kills.VALIDATION, kills.EVALUATION}
    assert moments <= record["kills"].keys()


@pytest.mark.usefixtures("record")
def test_a_difference_is_seen(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    straight, other = folder / "straight", tmp_path / "other"
    shutil.copytree(straight, other)
    log = other / "teacher/metrics.jsonl"
    assert '"time_' in log.read_text("utf-8")
    log.write_text(log.read_text("utf-8").replace('"time_', '"time_another_'), "utf-8")
    assert kills.differences(straight, other) == []
    log.write_text(log.read_text("utf-8") * 2, "utf-8")
    next((other / "predictions").iterdir()).write_bytes(b"2")
    shutil.rmtree(max((other / "checkpoints").glob("[0-9]*"), key=lambda step: int(step.name)))
    # The newest parameters may be the best ones too.
    assert set(kills.differences(straight, other)) - {"student: best parameters"} == {
        "student: latest parameters",
        "student: predictions",
        "teacher: metrics.jsonl",
    }
