"""A run that is killed again and again ends as one that was never stopped."""

import pathlib
import shutil
from typing import Any

import pytest

from benchmarks import kills


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def record(folder: pathlib.Path) -> dict[str, Any]:
    return kills.run(folder, kills=6, seed=1)


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
    assert kills.differences(straight, other) == [
        "student: latest parameters",
        "student: predictions",
        "teacher: metrics.jsonl",
    ]
