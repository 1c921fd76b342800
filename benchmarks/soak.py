"""Trains and evaluates one small student after another in one process, and watches what grows.

    python -m benchmarks.soak --minutes=120 --json=soak.json --figure=docs/images/soak.png

Each round is a whole run of configs/student.py:smoke in a new folder (teacher, student, validation,
checkpoints, evaluation, report), as `configs/study.py` runs its parts. After each round the memory
that the process holds, its open files and its threads are noted. Linux only.
"""

import gc
import json
import pathlib
import shutil
import tempfile
import time
from typing import Any

import numpy as np
import psutil
from absl import flags

from benchmarks import measuring
from kdnet_jax import cli
from kdnet_jax.core import files

_MINUTES = flags.DEFINE_float("minutes", 120.0, "How long", lower_bound=0.1)
_STEPS = flags.DEFINE_integer("steps", 40, "Training steps of each network", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Where the figures go", required=True)
_FIGURE = flags.DEFINE_string("figure", None, "Where the curves go, a .png")
# Rounds until caches, pools and the C library's arenas have their size.
_SETTLED_AFTER = 0.2


def main(argv: list[str]) -> None:
    """Repeats runs until the time is over; writes the figures after each."""
    cli.refuse_arguments(argv)
    measuring.check_machine(1)
    from kdnet_jax.core import provenance

    cli.enable_compilation_cache()
    started = time.monotonic()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="kdnet_soak_") as folder:
        while (minutes := (time.monotonic() - started) / 60) < _MINUTES.value or len(rows) < 2:
            _round(pathlib.Path(folder))
            rows.append({"minutes": minutes} | _held())
            record = {"rows": rows, "growth": growth(rows), "provenance": provenance.collect()}
            files.write_text(_JSON.value, json.dumps(record, indent=1) + "\n")
            print(f"round {len(rows)}: {rows[-1]}", flush=True)
    print(json.dumps(record["growth"], indent=1))
    if _FIGURE.value:
        draw(rows, pathlib.Path(_FIGURE.value))


def _round(folder: pathlib.Path) -> None:
    import jax

    from configs import student
    from kdnet_jax.config import reading
    from kdnet_jax.experiment import runner

    config = student.get_config("smoke")
    config.data.root = str(folder / "datasets")
    for budget in (config.train, config.teacher):
        budget.steps = _STEPS.value
    config.train.validate_every = max(_STEPS.value // 4, 1)
    workdir = folder / "run"
    runner.run(reading.read(config), workdir)
    shutil.rmtree(workdir)
    jax.clear_caches()  # as a study does between its parts
    gc.collect()


def _held() -> dict[str, float]:
    own = psutil.Process()
    return {
        "memory_mib": measuring.memory_gib("VmRSS") * 1024,
        "open_files": own.num_fds(),
        "threads": own.num_threads(),
    }


def growth(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Returns first and last value of each figure once settled, and its slope per hour.

    Args:
        rows: of each round: minutes, and the figures.
    """
    settled = rows[min(int(len(rows) * _SETTLED_AFTER), len(rows) - 2) :]
    hours = np.array([row["minutes"] for row in settled]) / 60
    found: dict[str, Any] = {"rounds": len(rows), "settled_rounds": len(settled)}
    for name in ("memory_mib", "open_files", "threads"):
        values = np.array([row[name] for row in settled])
        found[name] = {
            "first": float(values[0]),
            "last": float(values[-1]),
            "per_hour": float(np.polyfit(hours, values, 1)[0]),
        }
    return found


def draw(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draws memory, open files and threads over the minutes."""
    from matplotlib import figure as figure_lib

    minutes = [row["minutes"] for row in rows]
    figure = figure_lib.Figure(figsize=(7, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(minutes, [row["memory_mib"] for row in rows], color="#0072B2")
    top.set(ylabel="memory held, MiB", ylim=(0, None))
    top.set_title(f"{len(rows)} runs one after another in one process")
    bottom.plot(minutes, [row["open_files"] for row in rows], color="#0072B2", label="open files")
    bottom.plot(
        minutes, [row["threads"] for row in rows], color="#D55E00", ls="--", label="threads"
    )
    bottom.set(ylabel="count", ylim=(0, None), xlabel="minutes")
    bottom.legend(frameon=False, loc="lower right")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    cli.run(main)
