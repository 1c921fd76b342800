"""Checkpoints: what is kept, what comes back, and what a user reads when it cannot."""

import dataclasses
import os
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdnet_jax.core import checksums
from kdnet_jax.errors import UserError
from kdnet_jax.training import checkpoint, saved_checkpoints, steps
from tests.helpers import commands


def _state(value: float, step: int = 0) -> steps.TrainState:
    params = {"conv": {"w": jnp.full((2, 3), value), "b": jnp.arange(3.0)}}
    state = steps.init_state(params, optax.adam(1e-3))
    return state._replace(step=jnp.asarray(step, jnp.int32))


def _progress(step: int, score: float | None = None) -> saved_checkpoints.Progress:
    return saved_checkpoints.Progress(
        step, {"position": step}, score, score, 0, 1.5, {"split": "abc"}
    )


def _save(folder: pathlib.Path, *entries: tuple[int, float | None]) -> None:
    with checkpoint.RunCheckpoints(folder) as checkpoints:
        checkpoints.restore(_state(0.0))
        for step, score in entries:
            checkpoints.save(_state(float(step), step), _progress(step, score))
            checkpoints.wait()


def _kept(folder: pathlib.Path) -> set[str]:
    return {str(step) for step in saved_checkpoints.saved_steps(folder)}


def _assert_same(left: object, right: object) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_projector_is_kept_for_training_and_left_out_of_the_network(
    tmp_path: pathlib.Path,
) -> None:
    network = {"params": {"w": jnp.arange(3.0)}}
    params = {**network, steps.PROJECTOR: {"kernel": jnp.eye(2, 3)}}
    state = steps.init_state(params, optax.sgd(0.1))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, _progress(1, 0.5))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert restored is not None
    _assert_same(restored[0].params, params)
    _assert_same(saved_checkpoints.load_params(tmp_path, network)[0], network)


def test_restores_every_bit_and_the_progress(tmp_path: pathlib.Path) -> None:
    key = jax.random.key(1)
    state = jax.tree.map(
        lambda x: jax.random.normal(key, x.shape) if x.dtype == jnp.float32 else x, _state(0.0, 7)
    )
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, _progress(7, 0.5))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore(_state(9.0))
    _assert_same(restored, state)
    noted = {"checksums": progress.checksums, "shapes": progress.shapes}
    assert progress == dataclasses.replace(_progress(7, 0.5), **noted)
    assert progress.shapes == {"['conv']['b']": [3], "['conv']['w']": [2, 3]}
    assert progress.checksums["params"] == checksums.checksum(state.params)


def test_the_average_is_what_others_read_and_comes_back_beside_the_weights(
    tmp_path: pathlib.Path,
) -> None:
    average = jax.tree.map(lambda x: x + 0.25, _state(1.0).params)
    state = _state(1.0, 7)._replace(average=average)
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, _progress(7, 0.5))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(_state(0.0)._replace(average=average))
    _assert_same(restored, state)
    _assert_same(saved_checkpoints.load_params(tmp_path, average)[0], average)


def test_nothing_to_restore(tmp_path: pathlib.Path) -> None:
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0.0)) is None


def test_a_save_ends_later_and_holds_what_was_saved(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last act of a save, the renaming of its folder, waits until the steps after it are done.
    done, rename = threading.Event(), os.rename

    def late(*paths: Any, **options: Any) -> None:
        assert done.wait(60)
        rename(*paths, **options)

    monkeypatch.setattr(os, "rename", late)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = steps.init_state({"w": jnp.zeros((256, 4096))}, optax.adam(1e-3))
    state = step(step(state))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, _progress(2))
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
        assert not (tmp_path / saved_checkpoints.FOLDER / "2").exists()
        done.set()
        checkpoints.wait()
        restored, _ = checkpoints.restore(state)
    for leaf in jax.tree.leaves(restored):
        np.testing.assert_array_equal(leaf, np.full_like(leaf, 2))


def test_keeps_the_newest_two_and_the_best_and_reads_the_best(tmp_path: pathlib.Path) -> None:
    _save(tmp_path, (1, 0.3), (2, 0.8), (3, 0.4), (4, 0.1), (5, None))
    assert _kept(tmp_path) == {"2", "4", "5"}
    params, step = saved_checkpoints.load_params(tmp_path, _state(0.0).params)
    assert step == 2
    assert float(params["conv"]["w"][0, 0]) == 2.0
    assert saved_checkpoints.load_params(tmp_path, _state(0.0).params, "latest")[1] == 5


def test_without_a_validation_the_newest_is_the_best(tmp_path: pathlib.Path) -> None:
    _save(tmp_path, (1, None), (2, None))
    assert saved_checkpoints.load_params(tmp_path, _state(0.0).params)[1] == 2


def test_shapes_alone_are_enough_to_read_parameters(tmp_path: pathlib.Path) -> None:
    _save(tmp_path, (1, 0.3))
    like = jax.eval_shape(lambda: _state(0.0).params)
    _assert_same(saved_checkpoints.load_params(tmp_path, like)[0], _state(1.0).params)


@pytest.mark.parametrize(
    "other",
    [
        {"conv": {"w": jnp.zeros((2, 4)), "b": jnp.zeros(3)}},
        {"conv": {"w": jnp.zeros((2, 3))}},
        {"dense": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}},
    ],
    ids=["shape", "missing leaf", "name"],
)
def test_another_network_is_refused(tmp_path: pathlib.Path, other: dict) -> None:
    _save(tmp_path, (1, 0.3))
    with pytest.raises(UserError, match="holds another network"):
        saved_checkpoints.load_params(tmp_path, other)


def test_folders_without_a_checkpoint_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        saved_checkpoints.load_params(tmp_path, _state(0.0).params)
    (tmp_path / saved_checkpoints.FOLDER).mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        saved_checkpoints.load_params(tmp_path, _state(0.0).params)


def test_a_checkpoint_is_replaced(tmp_path: pathlib.Path) -> None:
    _save(tmp_path, (1, 0.3), (2, None))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        state, progress = checkpoints.restore(_state(0.0))
        checkpoints.replace(state, dataclasses.replace(progress, score=0.5))
        checkpoints.save(_state(3.0, 3), _progress(3))
    assert saved_checkpoints.read_progress(tmp_path, 2).score == 0.5
    assert _kept(tmp_path) == {"2", "3"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


def test_a_replacement_that_is_interrupted_keeps_the_former(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*unused: Any) -> None:
        raise KeyboardInterrupt

    _save(tmp_path, (2, None))
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        state, progress = checkpoints.restore(_state(0.0))
        monkeypatch.setattr(checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.replace(state, dataclasses.replace(progress, score=0.5))
    assert _kept(tmp_path) == set()
    with checkpoint.RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0.0))[1] == progress
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


def test_a_deletion_that_is_interrupted_leaves_no_half_of_a_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_halfway(folder: pathlib.Path, **options: Any) -> None:
        if (folder / "_CHECKPOINT_METADATA").exists():
            (folder / "_CHECKPOINT_METADATA").unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    remove = shutil.rmtree

    _save(tmp_path, (1, 0.3), (2, 0.8), (3, 0.4))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            _save(tmp_path, (4, None), (5, None))
    assert _kept(tmp_path) == {"2", "4", "5"}
    _save(tmp_path, (6, None))
    assert _kept(tmp_path) == {"2", "5", "6"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}
    assert "damaged" not in caplog.text


_ROUNDS = """
import pathlib, threading
import psutil
from kdnet_jax.training import saved_checkpoints
from tests.training import test_checkpoint

def save_and_load(name, *steps):
    test_checkpoint._save(pathlib.Path(name), *steps)
    saved_checkpoints.load_params(pathlib.Path(name), test_checkpoint._state(0.0).params)

# What is opened once and stays: a save's, and the pipe of a restore.
save_and_load("first", (1, 0.1))
before = psutil.Process().num_fds()
for number in range(3):
    save_and_load(str(number), (1, 0.1), (2, 0.2), (3, None))
assert psutil.Process().num_fds() == before, (psutil.Process().num_fds(), before)
# Orbax's threads; those of asyncio's pools end when they are collected.
assert not [thread for thread in threading.enumerate() if "_run_loop" in thread.name]
"""


def test_saves_leave_no_thread_and_no_open_file(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    # In a process of its own: in this one, what other tests left may open or close files meanwhile.
    done = commands.python("-c", _ROUNDS, cwd=tmp_path, env=command_env)
    assert done.returncode == 0, done.stderr
