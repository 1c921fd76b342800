"""Checkpoints that were damaged on disk: named, put aside, and the last whole one used."""

import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.training import checkpoint, saved_checkpoints, steps


def _state(number: int) -> steps.TrainState:
    params = {"w": jax.random.normal(jax.random.key(number), (64, 33))}
    return steps.init_state(params, optax.adam(1e-3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run with the checkpoints 1 (the best) and 2."""
    run = tmp_path_factory.mktemp("whole")
    with checkpoint.RunCheckpoints(run) as checkpoints:
        for step, score in ((1, 0.9), (2, 0.5)):
            progress = saved_checkpoints.Progress(step, {}, score, 0.9, 0, 0.0, {})
            checkpoints.save(_state(step), progress)
    return run


@pytest.fixture
def run(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


def _largest(folder: pathlib.Path) -> pathlib.Path:
    return max((each for each in folder.rglob("*") if each.is_file()), key=_size)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size


def _cut(folder: pathlib.Path) -> None:
    path = _largest(folder / "params")
    path.write_bytes(path.read_bytes()[: _size(path) // 2])


def _flip(folder: pathlib.Path) -> None:
    path = _largest(folder / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def _no_description(folder: pathlib.Path) -> None:
    (folder / "_CHECKPOINT_METADATA").unlink()


def _cut_description(folder: pathlib.Path) -> None:
    path = folder / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes()[:40])


def _no_optimizer(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "optimizer")


def _empty_score(folder: pathlib.Path) -> None:
    (folder / "metrics" / "metrics").write_bytes(b"")


def _empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _a_file(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x", "utf-8")


def _another_content(folder: pathlib.Path) -> None:
    # What the file format cannot notice: whole files, of another save.
    for name in ("params", "optimizer"):
        shutil.rmtree(folder / name)
        shutil.copytree(folder.parent / "1" / name, folder / name)


DAMAGES = [
    _cut,
    _flip,
    _no_description,
    _cut_description,
    _no_optimizer,
    _empty_score,
    _empty,
    _a_file,
    _another_content,
]


def _name(damage: Callable[[pathlib.Path], None]) -> str:
    return damage.__name__.strip("_")


@pytest.mark.parametrize("damage", DAMAGES, ids=_name)
def test_a_training_goes_on_from_the_last_whole_one(
    run: pathlib.Path, caplog: pytest.LogCaptureFixture, damage: Callable[[pathlib.Path], None]
) -> None:
    damage(run / "checkpoints" / "2")
    with checkpoint.RunCheckpoints(run) as checkpoints:
        state, progress = checkpoints.restore(_state(0))
        assert progress.step == 1
        np.testing.assert_array_equal(state.params["w"], _state(1).params["w"])
        (told,) = caplog.messages
        assert told.startswith("WARNING: damaged checkpoint: ")
        assert str(run / "checkpoints" / "2") in told
        assert "step 1 is used" in told
        # Put aside, not deleted; and the step can be saved again.
        assert (run / checkpoint.DAMAGED / "2").exists()
        checkpoints.save(_state(2), saved_checkpoints.Progress(2, {}, 0.5, 0.9, 0, 0.0, {}))
    assert saved_checkpoints.saved_steps(run) == [1, 2]


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _no_description, _cut_description, _empty, _a_file], ids=_name
)
def test_a_prediction_takes_the_next_best(
    run: pathlib.Path, caplog: pytest.LogCaptureFixture, damage: Callable[[pathlib.Path], None]
) -> None:
    (run / "checkpoints" / "3").mkdir()  # another that is no checkpoint
    damage(run / "checkpoints" / "1")
    params, step = saved_checkpoints.load_params(run, _state(0).params)
    assert step == 2
    np.testing.assert_array_equal(params["w"], _state(2).params["w"])
    assert str(run / "checkpoints" / "1") in caplog.text
    # Reading changes nothing.
    assert saved_checkpoints.saved_steps(run) == [1, 2, 3]


def test_none_that_is_whole(run: pathlib.Path) -> None:
    _cut(run / "checkpoints" / "1")
    _empty(run / "checkpoints" / "2")
    with (
        checkpoint.RunCheckpoints(run) as checkpoints,
        pytest.raises(UserError, match=r"damaged checkpoints: .*1 .*2 .*Nothing was changed"),
    ):
        checkpoints.restore(_state(0))
    with pytest.raises(UserError, match="Nothing was changed"):
        saved_checkpoints.load_params(run, _state(0).params)
    assert saved_checkpoints.saved_steps(run) == [1, 2]
    assert not (run / checkpoint.DAMAGED).exists()


def test_a_second_damaged_one_of_a_step_is_kept_too(run: pathlib.Path) -> None:
    for _ in range(2):
        _cut(run / "checkpoints" / "2")
        with checkpoint.RunCheckpoints(run) as checkpoints:
            assert checkpoints.restore(_state(0))[1].step == 1
            checkpoints.save(_state(2), saved_checkpoints.Progress(2, {}, 0.5, 0.9, 0, 0.0, {}))
    assert {path.name for path in (run / checkpoint.DAMAGED).iterdir()} == {"2", "2-2"}


def test_a_disk_that_cannot_be_read_is_no_damage(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*unused: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(saved_checkpoints.ocp, "load_checkpointables", refuse)
    with checkpoint.RunCheckpoints(run) as checkpoints, pytest.raises(PermissionError):
        checkpoints.restore(_state(0))
    assert saved_checkpoints.saved_steps(run) == [1, 2]
