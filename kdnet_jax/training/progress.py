"""Progress of a training: the bar, `metrics.jsonl` and TensorBoard events."""

import collections
import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, SupportsFloat, TextIO

import tqdm

from kdnet_jax.core import console, files, typed
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

METRICS_FILE: Final = "metrics.jsonl"
# The rate is that of the last steps: the first step compiles and would spoil a mean over all.
_WINDOW_STEPS: Final = 50
# Batch systems keep standard error as a file: there a line every ten seconds is enough.
_LINE_SECONDS: Final = 10.0
_TERMINAL_FORMAT: Final = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """A bar with step rate, loss, time left and the share of time spent waiting for data.

    On a terminal it is a tqdm bar; elsewhere a plain line at most every ten seconds.

        with Progress(total, start, "train") as progress:
            for step in range(start, total):
                with progress.waiting():
                    batch = next(batches)
                ...
                progress.update()
                if step % 10 == 9:
                    progress.show_loss(float(loss))

    Args:
      total: Steps of the whole training.
      initial: Steps done by an earlier, resumed run.
      description: The word before the bar.
      file: Where it writes, standard error if None.
      quiet: Write nothing; so it is without `file` where no messages are shown (console.py).
      clock: Seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "train",
        *,
        file: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._file, self._clock = file or sys.stderr, clock
        self._quiet = quiet or (file is None and not console.is_shown())
        self._total, self._step, self._description = total, initial, description
        self._loss: float | None = None
        self._waited = self._paused = 0.0
        self._marks = collections.deque([(clock(), initial, 0.0)], maxlen=_WINDOW_STEPS + 1)
        self._first_mark: tuple[float, int] | None = None
        self._last_line = -math.inf
        self._bar = None
        if self._file.isatty() and not self._quiet:
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=description,
                file=self._file,
                bar_format=_TERMINAL_FORMAT,
                dynamic_ncols=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time within (validation, saving) out of the step rate, not of the time left."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def show_loss(self, loss: float) -> None:
        """Shows this loss from now on, until the next one."""
        self._loss = loss

    def update(self, steps: int = 1) -> None:
        """Counts steps as done."""
        self._step += steps
        now = self._clock()
        self._marks.append((now - self._paused, self._step, self._waited))
        self._first_mark = self._first_mark or (now, self._step)
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(now), refresh=False)
            self._bar.update(steps)
        elif now - self._last_line >= _LINE_SECONDS or self._step >= self._total:
            self._last_line = now
            self.write(f"{self._description}: {self._step}/{self._total}, {self._state(now)}")

    def speed(self) -> dict[str, float]:
        """Returns steps per second and the share of time (0..1) spent waiting for data, lately.

        The keys are those of a row of `metrics.jsonl`. Both are NaN before the first step.
        """
        (start, first, waited), (end, last, waited_since) = self._marks[0], self._marks[-1]
        seconds = end - start
        rate = (last - first) / seconds if seconds > 0 else math.nan
        share = (waited_since - waited) / seconds if seconds > 0 else math.nan
        return {"time_steps_per_second": rate, "time_waiting_share": share}

    @property
    def waited(self) -> float:
        """Seconds spent waiting for data in all."""
        return self._waited

    def write(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        elif not self._quiet:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _state(self, now: float) -> str:
        speed = self.speed()
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        return (
            f"{loss}{speed['time_steps_per_second']:.2f} steps/s, {self._time_left(now)} left, "
            f"waiting for data {speed['time_waiting_share']:.0%}"
        )

    def _time_left(self, now: float) -> str:
        first_time, first_step = self._first_mark or (now, self._step)
        if self._step == first_step:
            return "?"
        seconds = (now - first_time) / (self._step - first_step) * (self._total - self._step)
        return tqdm.tqdm.format_interval(seconds)


# --- The log -----------------------------------------------------------------------------------


class MetricsLog:
    """Appends rows to `metrics.jsonl` and the same numbers to TensorBoard events.

    Args:
      folder: The run's folder; it is created.
      resume_step: The step that the run resumes from, 0 for one that starts anew: later rows are
        dropped, so that none is duplicated.
      keep: Rows that belong to the run so far.

    Attributes:
      rows: Rows so far.

    Raises:
      UserError: There are rows already, and they cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int, keep: int) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        self.rows = _drop_later_rows(path, resume_step, keep) if path.exists() else 0
        if self.rows < keep:
            _LOG.warning(
                f"WARNING: {path} held {keep} rows at step {resume_step}, and now {self.rows}: the "
                "others were lost, and are missing from the curves"
            )
        self._file = path.open("a", encoding="utf-8")
        # It imports PyTorch where there is one: seconds that only a training has to pay.
        import tensorboardX

        # TensorBoard itself hides the events of earlier files from the purge step on.
        self._events = tensorboardX.SummaryWriter(os.fspath(folder), purge_step=resume_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def write(
        self, step: int, split: Literal["train", "validation"], values: Mapping[str, SupportsFloat]
    ) -> None:
        """Appends a row; NaN and infinity become null, in TensorBoard they are left out."""
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        row = {"step": int(step), "split": split, **{name: finite.get(name) for name in numbers}}
        self._file.write(_line(row))
        self._file.flush()
        self.rows += 1
        for name, value in finite.items():
            self._events.add_scalar(f"{split}/{name}", value, int(step))

    def sync(self) -> None:
        """Waits until the rows are on disk, not only with the system."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes out what is pending and closes both files."""
        self._file.close()
        self._events.close()


class Unwritten:
    """Stands for the `MetricsLog` in a process that is not the one that writes."""

    rows = 0

    def __enter__(self) -> "Unwritten":
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def write(self, step: int, split: str, values: Mapping[str, SupportsFloat]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""


# Of the process that writes, and of the others.
Log = MetricsLog | Unwritten


def read_metrics(path: str | os.PathLike) -> list[typed.Json]:
    """Reads the rows of `metrics.jsonl`; null becomes NaN.

    A last line that a killed run left unfinished is skipped.

    Raises:
      UserError: There is no such file, or a line is not a row.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the log of a training") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}). Restore it, or remove it.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        rows.append(_parse(path, number, line))
    return rows


def _parse(path: pathlib.Path, number: int, line: str) -> typed.Json:
    try:
        row = json.loads(line)
        _ = row["step"], row["split"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, line {number}: {line.strip()[:60]!r} is not a row with step and split; "
            "remove that line"
        ) from error
    return {name: math.nan if value is None else value for name, value in row.items()}


def _line(row: typed.JsonView) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _drop_later_rows(path: pathlib.Path, step: int, keep: int) -> int:
    """Rewrites the log without what came after; returns the number of rows that are left."""
    rows = [row for row in read_metrics(path) if row["step"] <= step][:keep]
    lines = (_line({k: None if v != v else v for k, v in row.items()}) for row in rows)
    files.write_text(path, "".join(lines))
    return len(rows)
