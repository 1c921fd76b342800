"""The progress bar on a terminal and in a file, and the log across a crash and a resume."""

import io
import json
import math
import pathlib
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from kdnet_jax.errors import UserError
from kdnet_jax.training import progress


class Clock:
    """Seconds that the test turns on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_steps(bar: progress.Progress, clock: Clock, steps: int, seconds: float) -> None:
    """Steps of which a quarter of the time goes into waiting."""
    for step in range(steps):
        with bar.waiting():
            clock.now += seconds / 4
        clock.now += seconds * 3 / 4
        bar.show_loss(1.0 / (step + 1))
        bar.update()


def test_a_file_gets_few_plain_lines() -> None:
    clock, file = Clock(), io.StringIO()
    with progress.Progress(100, 0, "train", file=file, clock=clock) as bar:
        run_steps(bar, clock, 100, seconds=0.5)
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    # 50 seconds: a line at once, four at ten second steps, and the last.
    assert len(lines) == 6
    assert lines[2].startswith("train: 41/100, loss 0.0244, 2.00 steps/s, 00:29 left")
    assert lines[2].endswith("waiting for data 25%")
    assert lines[-1].startswith("train: 100/100") and "00:00 left" in lines[-1]  # noqa: PT018


def test_a_terminal_gets_a_bar() -> None:
    clock, file = Clock(), Terminal()
    with progress.Progress(10, 4, "student", file=file, clock=clock) as bar:
        run_steps(bar, clock, 6, seconds=2.0)
        bar.write("validating")
    text = file.getvalue()
    assert "validating\n" in text
    assert "student: 100%" in text
    assert "10/10, loss 0.1667, 0.50 steps/s, 00:00 left, waiting for data 25%" in text


def test_resumed_steps_and_the_compiling_first_step_do_not_enter_the_time_left() -> None:
    clock, file = Clock(), io.StringIO()
    bar = progress.Progress(1000, 900, file=file, clock=clock)
    clock.now += 60  # compiling
    bar.update()
    run_steps(bar, clock, 19, seconds=1.0)
    assert "train: 911/1000" in file.getvalue()
    assert "01:29 left" in file.getvalue()


def test_speed_is_that_of_the_last_steps_without_pauses() -> None:
    clock = Clock()
    bar = progress.Progress(1000, file=io.StringIO(), clock=clock)
    assert math.isnan(bar.speed()["time_steps_per_second"])
    run_steps(bar, clock, 100, seconds=4.0)
    run_steps(bar, clock, 30, seconds=1.0)
    with bar.paused():
        clock.now += 500
    run_steps(bar, clock, 20, seconds=1.0)
    speed = bar.speed()
    assert speed["time_steps_per_second"] == pytest.approx(1.0)
    assert speed["time_waiting_share"] == pytest.approx(0.25)


def events(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """Reads (step, tag, value) of all event files of a folder, file by file."""
    found = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            found += [(event.step, "purge", 0.0)] if event.HasField("session_log") else []
            place += length + 16
    return found


def test_rows_and_events(tmp_path: pathlib.Path) -> None:
    with progress.MetricsLog(tmp_path / "run", 0, 0) as log:
        log.write(1, "train", {"loss": np.float32(0.5), "kl": math.nan, "time_step": 0.25})
        log.write(2, "validation", {"loss": math.inf, "dice_et": 0.75})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.splitlines() == [
        '{"step": 1, "split": "train", "loss": 0.5, "kl": null, "time_step": 0.25}',
        '{"step": 2, "split": "validation", "loss": null, "dice_et": 0.75}',
    ]
    rows = progress.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[1]["dice_et"] == 0.75
    assert math.isnan(rows[0]["kl"])
    assert [event for event in events(tmp_path / "run") if event[1] != "purge"] == [
        (1, "train/loss", 0.5),
        (1, "train/time_step", 0.25),
        (2, "validation/dice_et", 0.75),
    ]


def test_resume_doubles_no_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with progress.MetricsLog(tmp_path, 0, 0) as log:
        for step in range(1, 6):
            log.write(step, "train", {"loss": float(step) if step != 2 else math.nan})
    with path.open("a") as file:
        file.write('{"step": 6, "spl')  # killed while it wrote
    with progress.MetricsLog(tmp_path, resume_step=3, keep=3) as log:
        log.write(4, "train", {"loss": 40.0})
    steps = [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())]
    assert steps == [(1, 1.0), (2, None), (3, 3.0), (4, 40.0)]
    assert (4, "purge", 0.0) in events(tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_only_the_rows_that_a_checkpoint_knows_are_kept(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A validation at step 2 that was written, but not saved: it is written again.
    with progress.MetricsLog(tmp_path, 0, 0) as log:
        log.write(2, "train", {"loss": 1.0})
        log.write(2, "validation", {"dice_mean": 0.5})
        assert log.rows == 2
    with progress.MetricsLog(tmp_path, resume_step=2, keep=1) as log:
        assert log.rows == 1
        log.write(2, "validation", {"dice_mean": 0.5})
    rows = progress.read_metrics(tmp_path / progress.METRICS_FILE)
    assert [row["split"] for row in rows] == ["train", "validation"]
    assert not caplog.text
    # Rows that somebody has removed.
    with progress.MetricsLog(tmp_path, resume_step=2, keep=5) as log:
        assert log.rows == 2
    assert "held 5 rows at step 2, and now 2" in caplog.text


def test_a_run_that_starts_anew_drops_what_was_there(tmp_path: pathlib.Path) -> None:
    with progress.MetricsLog(tmp_path, 0, 0) as log:
        log.write(1, "train", {"loss": 1.0})
    progress.MetricsLog(tmp_path, 0, 0).close()
    assert progress.read_metrics(tmp_path / "metrics.jsonl") == []


def test_unreadable_logs_are_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="no such file"):
        progress.read_metrics(path)
    path.write_text('{"step": 1, "split": "train"}\nnot json\n{"step": 2, "split": "train"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: 'not json'"):
        progress.read_metrics(path)
