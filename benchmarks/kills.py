"""A run that is killed again and again, and what must be equal at its end; see `kill_test`."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tqdm

from kdnet_jax.errors import UserError

SETTINGS = {
    "train.steps": 200,
    "teacher.steps": 200,
    "train.validate_every": 50,
    # Most saves lie between two rows of the log.
    "train.log_every": 7,
    "train.save_steps": 15,
    "data.phantom.cases": 10,
}
# What a kill can hit, as seen from the run's folder.
START, STEP, FIRST_SAVE, SAVE, VALIDATION, EVALUATION = (
    "start (import, data, compilation)",
    "step",
    "first save",
    "save",
    "validation",
    "evaluation and report",
)
# A moment that does not come (a run cannot have two first saves) is given up after so long.
_LONGEST_SECONDS = 120.0


class Ended(Protocol):
    """How a process ended: its exit code, and what it wrote on standard error."""

    code: int
    err: str


class Process(Protocol):
    """A command that runs."""

    def is_over(self) -> bool:
        """Whether it has ended."""

    def kill(self) -> None:
        """Sends it SIGKILL."""

    def wait(self) -> Ended:
        """Waits for its end."""


Start = Callable[[Sequence[str]], contextlib.AbstractContextManager[Process]]


@contextlib.contextmanager
def _python(words: Sequence[str]) -> Iterator[Process]:
    """`python WORDS` in a process of its own."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        command = [sys.executable, *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err) as process:

            def wait() -> Ended:
                code = process.wait()
                err.seek(0)
                return types.SimpleNamespace(code=code, err=err.read())

            yield types.SimpleNamespace(
                is_over=lambda: process.poll() is not None, kill=process.kill, wait=wait
            )


def run(
    folder: pathlib.Path,
    kills: int,
    seed: int = 0,
    settings: Mapping[str, int] = SETTINGS,
    start: Start = _python,
) -> dict[str, Any]:
    """Returns how many kills hit what, and all in which the two runs differ.

    Args:
        folder: empty; the runs' folders are made in it.
        kills: how many.
        seed: of the moments.
        settings: of the run, each below `config`.
        start: starts `python WORDS`.

    Raises:
        UserError: a run failed.
    """
    starter = _Starter(settings, folder / "datasets", start)
    straight, victim = folder / "straight", folder / "killed"
    seconds = starter.to_the_end(straight)
    draw = random.Random(seed)
    hit: collections.Counter[str] = collections.Counter()
    starts = 0
    with tqdm.tqdm(total=kills, desc="kills", unit="kill", disable=None) as bar:
        while hit.total() < kills:
            starts += 1
            # A moment that was missed is waited for again.
            wanted = _MOMENTS[hit.total() % len(_MOMENTS)] if hit else FIRST_SAVE
            phase = starter.kill(victim, wanted, draw.uniform(0, seconds))
            if phase is None:
                # It has reached its end: begin again in a new folder; the ended one is compared.
                _refuse_differences(straight, victim)
                victim = folder / f"killed-{starts}"
                continue
            hit[phase] += 1
            bar.update()
    starter.to_the_end(victim)
    return {
        "kills": dict(sorted(hit.items())),
        "kills_in_all": hit.total(),
        "seed": seed,
        "settings": dict(settings),
        "compared": sorted(fingerprint(straight)),
        "differences": differences(straight, victim),
    }


# What to wait for; None: any moment. Six kills see each.
_MOMENTS = (None, STEP, SAVE, VALIDATION, EVALUATION, None)


@dataclasses.dataclass(frozen=True)
class _Starter:
    """Starts the run.

    Attributes:
        settings: of the run.
        data: its datasets.
        start: starts a command.
    """

    settings: Mapping[str, int]
    data: pathlib.Path
    start: Start

    def _started(self, workdir: pathlib.Path) -> contextlib.AbstractContextManager[Process]:
        words = ["-m", "kdnet_jax.main", "--config=configs/student.py:smoke"]
        words += [f"--workdir={workdir}", f"--config.data.root={self.data}"]
        return self.start(words + [f"--config.{key}={n}" for key, n in self.settings.items()])

    def to_the_end(self, workdir: pathlib.Path) -> float:
        """Runs the command to its end; returns the seconds."""
        started = time.monotonic()
        with self._started(workdir) as process:
            ended = process.wait()
        if ended.code:
            raise UserError(f"a run ended with exit code {ended.code}: {ended.err[-2000:]}")
        return time.monotonic() - started

    def kill(self, workdir: pathlib.Path, wanted: str | None, delay: float) -> str | None:
        """Starts the command and kills it; returns what it was doing, `None` if it ended before.

        Args:
            workdir: of the run.
            wanted: what to kill it in; `None` after `delay`.
            delay: seconds.
        """
        began, rows = time.time(), _count_rows(workdir)
        with self._started(workdir) as process:
            started = time.monotonic()
            while not process.is_over():
                seconds = time.monotonic() - started
                phase = self._phase(workdir, began, rows)
                if (seconds > delay if wanted is None else phase == wanted) or (
                    seconds > _LONGEST_SECONDS
                ):
                    process.kill()
                    process.wait()
                    return phase
                time.sleep(0.001)
            if code := process.wait().code:
                raise UserError(f"a resumed run ended with exit code {code}")
        return None

    def _phase(self, workdir: pathlib.Path, began: float, rows: dict[str, int]) -> str:
        """Returns what a run that began at this time does, by what its folder shows.

        The teacher's run comes first, so the student's folder, where it shows something, counts.
        """
        for run in (workdir, workdir / "teacher"):
            if (run / ".evaluation.part").is_dir():
                return EVALUATION
            checkpoints = run / "checkpoints"
            names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
            if any("tmp" in name and _is_new(checkpoints / name, began) for name in names):
                return SAVE if any(name.isdecimal() for name in names) else FIRST_SAVE
            lines = _lines(run)
            if len(lines) > rows[run.name]:
                last = json.loads(lines[-1])
                due = last["step"] % self.settings["train.validate_every"] == 0
                return VALIDATION if due and last["split"] == "train" else STEP
        return START


def _is_new(path: pathlib.Path, began: float) -> bool:
    try:
        return path.stat().st_mtime > began
    except FileNotFoundError:  # renamed just now
        return False


def _lines(run: pathlib.Path) -> list[str]:
    log = run / "metrics.jsonl"
    text = log.read_text("utf-8") if log.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _count_rows(workdir: pathlib.Path) -> dict[str, int]:
    return {run.name: len(_lines(run)) for run in (workdir, workdir / "teacher")}


def fingerprint(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what must be equal of a finished run: name -> value or hash."""
    found: dict[str, Any] = {}
    for name, run in (("student", workdir), ("teacher", workdir / "teacher")):
        rows = [json.loads(line) for line in _lines(run)]
        found[f"{name}: metrics.jsonl"] = [
            {key: value for key, value in row.items() if not key.startswith("time_")}
            for row in rows
        ]
        for which in ("best", "latest"):
            found[f"{name}: {which} parameters"] = _parameters(run, which)
        # The next start would repair damage and hide its cause.
        found[f"{name}: damaged checkpoints"] = (run / "damaged_checkpoints").exists()
        for path in ("evaluation/cases.csv", "evaluation/postprocessed/cases.csv", "split.json"):
            found[f"{name}: {path}"] = _hash([run / path])
        found[f"{name}: predictions"] = _hash(sorted((run / "predictions").iterdir()))
    return found


def _parameters(run: pathlib.Path, which: str) -> str:
    import jax

    from kdnet_jax.config import reading
    from kdnet_jax.core import checksums
    from kdnet_jax.models import networks
    from kdnet_jax.training import saved_checkpoints

    values = reading.read_run(run)
    like = jax.eval_shape(
        lambda: networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    )
    params, step = saved_checkpoints.load_params(run, like, which)
    return f"step {step}, {checksums.content_hash(params)}"


def _hash(paths: Sequence[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def differences(straight: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the names of all in which two finished runs differ."""
    ours, theirs = fingerprint(straight), fingerprint(other)
    return [name for name in ours if ours[name] != theirs[name]]


def _refuse_differences(straight: pathlib.Path, other: pathlib.Path) -> None:
    if found := differences(straight, other):
        raise UserError(f"after some kills, {other} differs in {', '.join(found)}")
