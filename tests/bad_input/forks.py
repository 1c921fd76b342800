"""Runs many command lines, each in a process of its own, without paying each one's imports.

One process imports what the commands import, and forks for every command line; the child runs the
command's module as `python -m` does. JAX's backend is not touched before the fork.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
# What the commands import where they need it.
_IMPORTED = (
    "cohort_segmentation",
    "comparison",
    "data.building",
    "data_survey",
    "exporting.hand_over",
    "mask_evaluation",
    "prediction_jobs",
    "prediction_outputs",
    "reporting.augmentation_sheet",
    "reporting.comparison_figures",
    "reporting.comparison_text",
    "segmenting",
    "studies",
)
TIMED_OUT = 124


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line: `python -m kdnet_jax.<command> <words>`, and the folder that it runs in."""

    command: str
    words: tuple[str, ...]
    cwd: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended, what it said, and the most memory that it held, in MiB."""

    code: int
    out: str
    err: str
    peak_mib: float


def run(
    lines: Sequence[Line],
    said: pathlib.Path,
    *,
    limit_s: float = 60,
    at_once: int = 2,
    env: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Runs the command lines, `at_once` at a time; `said` is an empty folder for what they say."""
    asked = [{"command": line.command, "words": line.words, "cwd": str(line.cwd)} for line in lines]
    request = json.dumps(
        {"lines": asked, "said": str(said), "limit_s": limit_s, "at_once": at_once}
    )
    done = subprocess.run(
        [sys.executable, __file__],
        input=request,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {}),
        check=True,
    )
    return [
        Ended(code, (said / f"{i}.out").read_text(), (said / f"{i}.err").read_text(), peak)
        for i, (code, peak) in enumerate(json.loads(done.stdout.splitlines()[-1]))
    ]


# --- In the process that forks ---------------------------------------------------------------


def _serve(request: Mapping[str, Any]) -> None:
    for name in _IMPORTED:
        importlib.import_module(f"kdnet_jax.{name}")
    # JAX warns of forks; its threads start with its backend, which only the children start.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    running: dict[int, tuple[int, float]] = {}
    ended: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(request["lines"]))
    while waiting or running:
        while waiting and len(running) < request["at_once"]:
            number, line = waiting.pop(0)
            base = pathlib.Path(request["said"]) / str(number)
            running[_start(line, base)] = (number, time.monotonic())
        for pid, (number, started) in list(running.items()):
            if time.monotonic() - started > request["limit_s"]:
                os.kill(pid, 9)
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                del running[pid]
                code = os.waitstatus_to_exitcode(status)
                ended[number] = (TIMED_OUT if code == -9 else code, usage.ru_maxrss / 1024)
        time.sleep(0.005)
    print(json.dumps([ended[number] for number in sorted(ended)]))


def _start(line: Mapping[str, Any], base: pathlib.Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{base}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    code = 1
    try:
        os.chdir(line["cwd"])
        code = _run_module(f"kdnet_jax.{line['command']}", line["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_module(name: str, words: Sequence[str]) -> int:
    sys.argv = [name, *words]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter would show it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(json.load(sys.stdin))
