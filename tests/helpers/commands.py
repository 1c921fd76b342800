"""Runs the project's commands as a user does, and keeps what they said."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]


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
    env = dict(os.environ if env is None else env)
    path = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", f"kdnet_jax.{module}", *map(str, words)],
        cwd=cwd,
        env=env | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
