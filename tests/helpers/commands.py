"""Runs the project's commands as a user does, and keeps what they said."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from tests.helpers import forks

ROOT = forks.ROOT


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a command ended, what it said, and where it wrote."""

    code: int
    out: str
    err: str
    folder: pathlib.Path


def run(
    module: str,
    *words: object,
    env: Mapping[str, str] | None = None,
    cwd: pathlib.Path = ROOT,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m kdnet_jax.<module> WORDS` of the checkout, there or in another folder."""
    return python("-m", f"kdnet_jax.{module}", *words, env=env, cwd=cwd, timeout=timeout)


def python(
    *words: object,
    env: Mapping[str, str] | None = None,
    cwd: pathlib.Path = ROOT,
    timeout: float = 300,
    packages: pathlib.Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` (`-m MODULE ...`, `-c CODE ...` or `FILE ...`) in a forked process."""
    texts = list(map(str, words))
    env = os.environ if env is None else env
    ended = forks.python(texts, cwd=cwd, env=env, limit_s=timeout, packages=packages)
    if ended.timed_out:
        raise subprocess.TimeoutExpired(texts, timeout, ended.out, ended.err)
    return subprocess.CompletedProcess(texts, ended.code, ended.out, ended.err)


def run_anew(
    module: str, *words: object, env: Mapping[str, str] | None = None, cwd: pathlib.Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """As `run`, in a process that imports everything itself; each command has a test of this."""
    return subprocess.run(
        [sys.executable, "-m", f"kdnet_jax.{module}", *map(str, words)],
        cwd=cwd,
        env=forks.with_packages(os.environ if env is None else env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def losses(log: str) -> list[tuple[int, float]]:
    """Returns the steps and losses of a training's `metrics.jsonl`."""
    rows = [json.loads(line) for line in log.splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]
