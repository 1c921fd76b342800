"""Provenance of a number: the versions, commit and machine that repeat it."""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
import time

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "numpy")


def collect() -> dict[str, str]:
    """Returns versions of the packages, the checkout's commit, the devices and the command."""
    import kdnet_jax

    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "kdnet_jax": kdnet_jax.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **packages,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": command(),
    }


def record_start(folder: pathlib.Path, step: int) -> None:
    """Adds a line on this start of a training to the run's `starts.jsonl`.

    A run that was resumed may have been trained by several commits or machines: each has its line.
    """
    with (folder / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "time": time.strftime("%FT%T%z")} | collect()) + "\n")


def peak_memory_gib() -> float:
    """Returns the most main memory that this process ever held, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def commit() -> str:
    """Returns the commit of the checkout that this package lies in, "unknown" outside of one."""
    folder = pathlib.Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except OSError:  # git is not installed
        return "unknown"
    return described.stdout.strip() or "unknown"


def command() -> str:
    """Returns the command line that started this program, ready to paste into a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name:
        return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])
