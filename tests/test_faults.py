"""What can befall a run from outside: nothing that was saved is lost, and one plain message."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import evaluation
from kdnet_jax.experiment import runner
from kdnet_jax.models import heads
from kdnet_jax.prediction import ensembles
from kdnet_jax.training import saved_checkpoints, stopping
from tests.helpers import commands

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_report")]


@pytest.fixture
def config(tiny_cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    return config


@pytest.fixture(scope="module")
def straight(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A run that nothing befell."""
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    folder = tmp_path_factory.mktemp("straight") / "run"
    runner.run(reading.read(config), folder)
    return folder


def _scores(folder: pathlib.Path) -> str:
    return (folder / "evaluation/cases.csv").read_text("utf-8")


# -- The disk -------------------------------------------------------------------------------------


def _mount(folder: pathlib.Path, options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True
    )


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A disk of 160 KiB of its own: too small for the first checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        _mount(folder, "size=160k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    yield folder
    # Lazily: a run that failed may hold a file open until this process ends.
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_and_the_same_command_after_making_room(
    config: config_dict.ConfigDict, disk: pathlib.Path, straight: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=r"No space left on the disk for .*run the same command"):
        runner.run(reading.read(config), disk / "run")
    _mount(disk, "remount,size=50m")
    runner.run(reading.read(config), disk / "run")
    assert _scores(disk / "run") == _scores(straight)


def _fill(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_up_after_a_save_keeps_it(
    config: config_dict.ConfigDict, disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mount(disk, "remount,size=50m")
    original = evaluation.dice_on_working_grid

    validations = []

    def fill(*arguments: Any) -> Any:
        validations.append(None)
        if len(validations) == 2:
            while not saved_checkpoints.saved_steps(disk / "run"):
                time.sleep(0.01)
            _fill(disk / "rubbish")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "dice_on_working_grid", fill)
        with pytest.raises(UserError, match="No space left"):
            runner.run(reading.read(config), disk / "run")
    assert saved_checkpoints.saved_steps(disk / "run") == [3]
    (disk / "rubbish").unlink()
    runner.run(reading.read(config), disk / "run")
    assert saved_checkpoints.saved_steps(disk / "run") == [3, 6]


def test_a_workdir_that_cannot_be_written(
    config: config_dict.ConfigDict, disk: pathlib.Path
) -> None:
    _mount(disk, "remount,ro")
    with pytest.raises(UserError, match=r"run cannot be written \(Read-only file system\)"):
        runner.run(reading.read(config), disk / "run")


# -- Other commands, signals and the clock --------------------------------------------------------


def test_a_second_command_on_one_workdir_is_refused(
    config: config_dict.ConfigDict, straight: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, folder],
        cwd=commands.ROOT,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by another command: process {holder.pid} on"):
            runner.run(reading.read(config), folder)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        holder.kill()
    # A killed command holds nothing.
    runner.run(reading.read(config), folder)
    assert _scores(folder) == _scores(straight)


_HOLD = """
import pathlib, sys, time
from kdnet_jax.runs import workdir
with workdir.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_refused_run_leaves_no_folder(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path
) -> None:
    config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        runner.run(reading.read(config), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def _signal_at_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int
) -> list[None]:
    """Sends this process a signal at the beginning of a call; returns a list as long as calls."""
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_breaks_a_validation_off_and_saves(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    with monkeypatch.context() as patch:
        # The second case of the first validation.
        _signal_at_call(patch, heads.Head, "decide", 2, number)
        with pytest.raises(stopping.Stopped, match="at step 3"):
            runner.run(reading.read(config), tmp_path)
    assert saved_checkpoints.read_progress(tmp_path, 3).score is None
    runner.run(reading.read(config), tmp_path)
    assert _scores(tmp_path) == _scores(straight)
    assert saved_checkpoints.read_progress(tmp_path, 3).score is not None


def test_an_interrupted_evaluation_goes_on(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch, stopping.AtOnce():
        # Two cases of validation and one of test are done.
        _signal_at_call(patch, ensembles.Ensemble, "segment", 4, signal.SIGTERM)
        with pytest.raises(stopping.Stopped):
            runner.run(reading.read(config), tmp_path)
    assert not (tmp_path / "evaluation").exists()
    calls = _signal_at_call(monkeypatch, ensembles.Ensemble, "segment", -1, 0)
    runner.run(reading.read(config), tmp_path)
    assert len(calls) == 1
    assert _scores(tmp_path) == _scores(straight)
    for path in (straight / "predictions").iterdir():
        assert (tmp_path / "predictions" / path.name).read_bytes() == path.read_bytes()


def test_an_evaluation_interrupted_at_its_last_moment(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch, stopping.AtOnce():
        # The masks are in their place, the scores are not.
        _signal_at_call(patch, evaluation, "_replace_folder", 2, signal.SIGTERM)
        with pytest.raises(stopping.Stopped):
            runner.run(reading.read(config), tmp_path)
    runner.run(reading.read(config), tmp_path)
    assert _scores(tmp_path) == _scores(straight)
    names = [path.name for path in (straight / "predictions").iterdir()]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(names)
    assert not (tmp_path / ".evaluation.part").exists()


def test_a_clock_that_is_set_back(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, now_ns = time.time, time.time_ns
    day = 24 * 3600
    with monkeypatch.context() as patch:
        _signal_at_call(patch, ensembles.Ensemble, "segment", 1, signal.SIGTERM)
        with stopping.AtOnce(), pytest.raises(stopping.Stopped):
            runner.run(reading.read(config), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    monkeypatch.setattr(time, "time", lambda: now() - day)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() - day * 10**9)
    # From step 3, with saves that are older than it by a day.
    runner.run(reading.read(config), tmp_path)
    assert saved_checkpoints.saved_steps(tmp_path) == [3, 6]
    assert _scores(tmp_path) == _scores(straight)
