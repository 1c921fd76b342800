"""Whole runs on two real processes: the same training and scores as one process, and one stop.

Each process has one CPU device; one process with two of them is what they are compared with.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.config import reading
from kdnet_jax.metrics import cases
from kdnet_jax.models import networks
from kdnet_jax.training import saved_checkpoints
from tests.helpers import commands, companies, fork_server

STEPS = 8
# Adam divides a gradient by its size, and that of a bias before a norm is rounding alone: such a
# parameter moves a full step whichever way the sums round, and has no effect on the network.
SETTINGS = {
    "loader.batch": 2,
    "train.steps": STEPS,
    "train.validate_every": 4,
    "optimizer.name": "sgd",
}


def _words(cohort: pathlib.Path, built: pathlib.Path, folder: pathlib.Path) -> list[str]:
    return [
        *("kdnet_jax.main", "--config=configs/baseline.py:smoke", f"--workdir={folder}"),
        *(f"--config.data.data_dir={cohort}", f"--config.data.root={built}"),
        *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
    ]


def _of_two(words: list[str]) -> list[list[str]]:
    start = [f"--coordinator=127.0.0.1:{companies.free_port()}", "--processes=2"]
    return [[*words, *start, f"--process={number}"] for number in range(2)]


NO_REPORT = {fork_server.WITHOUT_REPORT: "1"}
ONE_PROCESS = {"JAX_NUM_CPU_DEVICES": "2"} | NO_REPORT


@pytest.fixture(scope="module")
def alone(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A run of one process with two devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    (done,) = companies.run([_words(tiny_cohort, built, folder)], [ONE_PROCESS])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def together(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The same run, of two processes that each hold a half of the optimizer's state."""
    folder = tmp_path_factory.mktemp("together") / "run"
    words = [*_words(tiny_cohort, built, folder), "--config.mesh.state=sharded"]
    ended = companies.run(_of_two(words), [NO_REPORT] * 2, timeout=200)
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    # Gloo prints from C++.
    assert all(line.startswith("[Gloo]") for line in ended[1].stdout.splitlines())
    return folder


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in rows]


def _params(folder: pathlib.Path) -> list[np.ndarray]:
    values = reading.read_run(folder)
    like = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    return [np.asarray(x) for x in jax.tree.leaves(saved_checkpoints.load_params(folder, like)[0])]


def _assert_same_training(folder: pathlib.Path, other: pathlib.Path) -> None:
    for ours, theirs in zip(_rows(folder), _rows(other), strict=True):
        assert ours == {
            key: value if key == "split" else pytest.approx(value, rel=1e-4, abs=1e-5)
            for key, value in theirs.items()
        }
    for ours, theirs in zip(_params(folder), _params(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_two_processes_train_as_one(alone: pathlib.Path, together: pathlib.Path) -> None:
    _assert_same_training(together, alone)
    assert [row["step"] for row in _rows(together)] == [2, 4, 4, 6, 8, 8]


def test_two_processes_score_every_case_once(alone: pathlib.Path, together: pathlib.Path) -> None:
    ours, theirs = (
        cases.read_cases_csv(folder / "evaluation/cases.csv", regions=task_lib.GLIOMA.region_names)
        for folder in (together, alone)
    )
    assert [(row.case, row.region) for row in ours] == [(row.case, row.region) for row in theirs]
    assert [row.dice for row in ours] == pytest.approx([row.dice for row in theirs], abs=0.02)
    masks = [sorted(path.name for path in (f / "predictions").iterdir()) for f in (together, alone)]
    assert masks[0] == masks[1]
    assert not list(together.glob(".*.part"))


@pytest.mark.once
def test_a_signal_to_one_process_stops_both_and_one_goes_on(
    tiny_cohort: pathlib.Path, built: pathlib.Path, alone: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    words = _words(tiny_cohort, built, folder)
    path = os.pathsep.join([str(commands.ROOT), os.environ.get("PYTHONPATH", "")])
    # Too many steps to end before the signal; a budget is no part of what a step computes.
    longer = [*words, "--config.train.steps=100000", "--config.train.validate_every=100000"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *line],
            cwd=commands.ROOT,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in _of_two(longer)
    ]
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").is_file() or len(_rows(folder)) < 3:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in running)
            time.sleep(0.05)
        running[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [143, 143], said
    (step,) = saved_checkpoints.saved_steps(folder)
    assert f"stopped by SIGTERM at step {step}" in said[0]
    assert saved_checkpoints.read_progress(folder, step).loader["batches"] == step


@pytest.mark.once
def test_one_process_goes_on_where_two_stopped(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    alone: pathlib.Path,
    together: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    """From the checkpoint of two processes in the middle, with a whole state on each device."""
    folder = tmp_path / "run"
    shutil.copytree(together, folder)
    shutil.rmtree(folder / "evaluation")
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    words = _words(tiny_cohort, built, folder)
    (done,) = companies.run([words], [ONE_PROCESS])
    assert done.returncode == 0, done.stderr
    assert f"resuming from step 4 of {STEPS}" in done.stdout
    _assert_same_training(folder, alone)
