"""A run that is killed again and again ends as one that was never stopped."""

import json
import pathlib

from benchmarks import kills


def test_twenty_kills_leave_no_trace(tmp_path: pathlib.Path) -> None:
    record = kills.run(tmp_path, kills=20, seed=1)
    assert record["differences"] == []
    assert record["kills_in_all"] == 20
    moments = {kills.FIRST_SAVE, kills.SAVE, kills.STEP, kills.VALIDATION, kills.EVALUATION}
    assert moments <= record["kills"].keys()


def test_a_difference_is_seen(tmp_path: pathlib.Path) -> None:
    straight, other = (_finished(tmp_path / name) for name in ("straight", "other"))
    assert kills.differences(straight, other) == []
    log = other / "teacher/metrics.jsonl"
    log.write_text(log.read_text("utf-8").replace('"time_x": 1', '"time_x": 2'), "utf-8")
    assert kills.differences(straight, other) == []
    log.write_text(log.read_text("utf-8") * 2, "utf-8")
    (other / "predictions/a.nii.gz").write_bytes(b"2")
    assert kills.differences(straight, other) == [
        "student: predictions",
        "teacher: metrics.jsonl",
    ]


def _finished(run: pathlib.Path) -> pathlib.Path:
    """Writes what is compared of a finished run."""
    for folder in (run, run / "teacher"):
        for name in ("evaluation/postprocessed", "predictions"):
            (folder / name).mkdir(parents=True)
        for name in ("evaluation/cases.csv", "evaluation/postprocessed/cases.csv", "split.json"):
            (folder / name).write_text("a", "utf-8")
        (folder / "predictions/a.nii.gz").write_bytes(b"1")
        row = {"step": 1, "split": "train", "loss": 0.5, "time_x": 1}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    return run
