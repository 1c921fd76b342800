"""The loop: it learns, stops, resumes bit for bit, and refuses to save a NaN."""

import contextlib
import json
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.core import checksums
from kdnet_jax.data.loading import loader
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import evaluation
from kdnet_jax.experiment import compilation, run_data, runner, training
from kdnet_jax.losses import objective
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import predictors
from kdnet_jax.runs import model, trained
from kdnet_jax.training import (
    checkpoint,
    loop,
    progress,
    saved_checkpoints,
    steps,
    stopping,
)
from tests.helpers import stores, tiny_cases

pytestmark = pytest.mark.usefixtures("without_report")

REGIONS = ("dice_et", "dice_tc", "dice_wt")


# --- It learns -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> prepare.PreparedCase:
    """A case of 16 voxels an axis, with a tumour of some hundred."""
    folder = tmp_path_factory.mktemp("case")
    tiny_cases.write_cohort(folder, 1, edge=16, radius=5.5)
    return prepare.prepare_case(cases.find_cases(folder).cases[0], spacing=4.0)[0]


def _centre(case: prepare.PreparedCase) -> dict[str, jax.Array]:
    """The whole case as a batch of one, cut or padded to 16 voxels an axis."""
    batch = {"image": case.image.astype("float32"), "label": case.label}
    for key, value in batch.items():
        value = value[:16, :16, :16]
        widths = [(0, 16 - size) for size in value.shape[:3]] + [(0, 0)] * (value.ndim - 3)
        batch[key] = jnp.pad(value, widths)[None]
    return batch


def _memorise(case: prepare.PreparedCase, role: str, teacher: Any = ()) -> tuple[Any, float]:
    """Trains one network on one case alone; returns its parameters and its worst Dice."""
    config = common.base_config(role, "smoke")
    config.model.widths = (8, 16)
    config.inference.patch = (16, 16, 16)  # as in training: its size is seen by the norms
    if role == "student":
        config.teacher.widths = config.model.widths
    values = reading.read(config)
    mesh = sharding.make_mesh()
    optimizer = optax.adam(1e-2)
    params = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    state, batch, root = steps.init_state(params, optimizer), _centre(case), jax.random.key(1)
    taught_by = model.of_experiment(values.teacher.to_train) if teacher else None
    step = steps.jit_step(
        mesh,
        student=trained.as_network(model.of_experiment(values), values.data.modalities),
        teacher=trained.as_network(taught_by, values.data.modalities) if taught_by else None,
        loss=objective.of_options(values.head, values.loss, values.distillation),
        optimizer=optimizer,
        plan=steps.Plan(augment.AugmentOptions("", 0.0, 0.0, 0.0)),
    )
    for _ in range(120):
        state, _ = step(state, teacher, batch, root)
    predictor = predictors.predictor([model.of_experiment(values)])
    ((_, dice),) = evaluation.dice_on_working_grid(
        predictor, state.params, [(0, case)], "background"
    )
    return state.params, min(dice.values())


@pytest.mark.once
def test_teacher_and_its_student_learn_one_case_by_heart(tiny_case: prepare.PreparedCase) -> None:
    teacher, teacher_dice = _memorise(tiny_case, "teacher")
    assert teacher_dice > 0.95
    before = checksums.content_hash(teacher)
    _, student_dice = _memorise(tiny_case, "student", teacher)
    assert student_dice > 0.95
    assert checksums.content_hash(teacher) == before


# --- It stops and resumes ------------------------------------------------------------------------


@pytest.fixture
def config(tiny_cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.augment.noise = 0.1
    return config


def _run(config: config_dict.ConfigDict, folder: pathlib.Path) -> None:
    runner.run(reading.read(config), folder)


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in rows]


def _params(folder: pathlib.Path, which: str = "best") -> Any:
    values = reading.read_run(folder)
    like = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    return saved_checkpoints.load_params(folder, like, which)[0]


def _hash(folder: pathlib.Path, which: str) -> str:
    return checksums.content_hash(_params(folder, which))


def _signal_at(monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> None:
    """Sends this process a signal within its `call`-th train step."""
    original, calls = compilation.compile_step, []

    def compile_step(*args: Any) -> tuple[Callable[..., Any], str]:
        step, sentence = original(*args)

        def counted(*values: Any) -> Any:
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return step(*values)

        return counted, sentence

    monkeypatch.setattr(compilation, "compile_step", compile_step)


@pytest.fixture(scope="module")
def straight(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A baseline that trained without a stop."""
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.augment.noise = 0.1
    folder = tmp_path_factory.mktemp("straight") / "run"
    _run(config, folder)
    return folder


# Steps 3 and 6 are due for validation: it is repeated when the run resumes.
@pytest.mark.parametrize(
    ("call", "number"),
    [
        (3, signal.SIGTERM),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.once),
        pytest.param(4, signal.SIGTERM, marks=pytest.mark.once),
        pytest.param(6, signal.SIGTERM, marks=pytest.mark.once),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    number: int,
) -> None:
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        _signal_at(patch, call, number)
        with pytest.raises(stopping.Stopped) as stopped:
            _run(config, tmp_path)
    assert (stopped.value.step, stopped.value.signal) == (call, number)
    assert signal.getsignal(number) is handler
    assert (tmp_path / "checkpoints" / str(call)).is_dir()
    _run(config, tmp_path)
    for which in ("best", "latest"):
        assert _hash(tmp_path, which) == _hash(straight, which)
    assert _untimed(_rows(tmp_path)) == _untimed(_rows(straight))


@pytest.mark.once
@pytest.mark.parametrize(("first", "second"), [("device", "stream"), ("host", "device")])
def test_a_run_resumes_with_its_cases_elsewhere(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
) -> None:
    config.loader.cache = first
    with monkeypatch.context() as patch:
        _signal_at(patch, 4, signal.SIGTERM)
        with pytest.raises(stopping.Stopped):
            _run(config, tmp_path)
    config.loader.cache = second
    _run(config, tmp_path)
    assert _hash(tmp_path, "latest") == _hash(straight, "latest")
    assert _untimed(_rows(tmp_path)) == _untimed(_rows(straight))


class _Metric:
    """Stands for a metric on the device, and notes when it is waited for and fetched."""

    def __init__(self, step: int, events: list[str]) -> None:
        self._step, self._events = step, events

    def block_until_ready(self) -> "_Metric":
        self._events.append(f"wait {self._step}")
        return self

    def __array__(self, *unused: Any, **options: Any) -> np.ndarray:
        self._events.append(f"fetch {self._step}")
        return np.asarray(0.5, np.float32)


def test_the_loop_runs_ahead_and_fetches_only_what_it_logs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `_Metric` stands for an array, and is none.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    events: list[str] = []

    def step(states: Any, teacher_params: Any, batch: Any, root: jax.Array) -> tuple[Any, Any]:
        number = len([event for event in events if event.startswith("step")]) + 1
        events.append(f"step {number}")
        return states, ({"loss": _Metric(number, events)},)

    mesh = sharding.make_mesh()
    with (
        loader.make_loader(
            stores.make_store(2), [0, 1], mesh=mesh, patch=(4, 4, 4), batch=1, seed=0
        ) as batches,
        checkpoint.RunCheckpoints(tmp_path) as checkpoints,
        progress.MetricsLog(tmp_path, 0, 0) as log,
    ):
        state = steps.init_state({"w": jnp.zeros(2)}, optax.sgd(0.1))
        learner = loop.Learner(
            *loop.resume(checkpoints, state, {}),
            validate=lambda params: [(0, {"et": 0.5})],
            checkpoints=checkpoints,
            log=log,
        )
        loop.train(
            step,
            [learner],
            batches,
            root=jax.random.key(0),
            mesh=mesh,
            options=loop.TrainOptions(8, 4, 8, 10.0, 0),
            description="test",
        )
    # A step waits for the one two before it, and nothing is fetched between rows of the log.
    first = ["step 1", "step 2", "step 3", "wait 1", "step 4", "wait 2"]
    assert events[:6] == first
    assert events[6:10] == [f"fetch {number}" for number in (1, 2, 3, 4)]
    second = ["step 5", "step 6", "step 7", "wait 5", "step 8", "wait 6"]
    assert events[10:16] == second
    assert events[16:] == [f"fetch {number}" for number in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("places", "chosen", "until"),
    [
        # (step, score, stale validations) of runs of 9 steps, validated every 3, patience 2.
        ([(0, None, 0), (0, None, 0)], [0, 1], 9),
        ([(4, None, 0), (3, 0.5, 0), (9, 0.5, 0)], [1], 4),
        ([(6, 0.5, 2), (7, None, 0), (7, None, 1)], [1, 2], 9),
        # Not validated yet, when a signal came.
        ([(9, None, 1), (9, 0.5, 0)], [0], 9),
        ([(9, 0.5, 1), (6, 0.5, 2)], [1], 9),
    ],
)
def test_who_trains_next(
    places: list[tuple[int, float | None, int]], chosen: list[int], until: int
) -> None:
    reached = [
        saved_checkpoints.Progress(step, {}, score, None, stale, 0.0, {})
        for step, score, stale in places
    ]
    options = loop.TrainOptions(9, 1, 3, 10.0, early_stop=2)
    assert loop.next_group(reached, options) == (chosen, until)


def test_rows_of_the_log(straight: pathlib.Path) -> None:
    rows = _rows(straight)
    training = [row for row in rows if row["split"] == "train"]
    validation = [row for row in rows if row["split"] == "validation"]
    assert [row["step"] for row in training] == [2, 3, 4, 6]
    assert [row["step"] for row in validation] == [3, 6]
    for row in training:
        assert {"loss", "gradient_norm", "time_steps_per_second"} <= row.keys()
    for row in validation:
        mean = sum(row[key] for key in REGIONS) / 3
        assert row["dice_mean"] == pytest.approx(mean)


@pytest.mark.once
@pytest.mark.parametrize("stop_at", [None, 2])
def test_early_stop(
    config: config_dict.ConfigDict,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int | None,
) -> None:
    # So small a rate changes no parameter: no validation is better than the first.
    config.optimizer.learning_rate = 1e-30
    config.train.steps, config.train.validate_every, config.train.early_stop = 9, 1, 2
    if stop_at:
        with monkeypatch.context() as patch:
            _signal_at(patch, stop_at, signal.SIGTERM)
            with pytest.raises(stopping.Stopped):
                _run(config, tmp_path)
    _run(config, tmp_path)
    assert [row["step"] for row in _rows(tmp_path) if row["split"] == "validation"] == [1, 2, 3]


@pytest.mark.once
def test_other_data_does_not_resume(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
) -> None:
    values = reading.read(config)
    data = run_data.open_data(values)
    data.cases.fingerprint = "another"
    with pytest.raises(UserError, match=r"was trained with data .* and now it is another"):
        training.train({straight: values}, data, None)


def _poison(monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]) -> None:
    """Puts a NaN into the batches of these steps."""
    original = loader.PatchIterator.__next__

    def poisoned(self: loader.PatchIterator) -> Any:
        batch = original(self)
        if self.get_state()["batches"] in numbers:
            batch = batch | {"image": batch["image"].at[0, 0, 0, 0].set(jnp.nan)}
        return batch

    monkeypatch.setattr(loader.PatchIterator, "__next__", poisoned)
    monkeypatch.setattr(jax, "transfer_guard", lambda level: contextlib.nullcontext())


def test_a_nan_stops_and_is_never_saved(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, (2,))
    with pytest.raises(UserError, match=r"step 2: .*loss.* is not finite") as error:
        _run(config, tmp_path)
    assert "learning_rate" in str(error.value)
    assert not saved_checkpoints.saved_steps(tmp_path)


@pytest.mark.once
def test_a_batch_with_a_nan_names_its_cases(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, (4,))
    with pytest.raises(UserError, match=r"step 4: .* is not finite \(patches of BraTS2021_0"):
        _run(config, tmp_path)
    # That of the last validation is kept, and the run can go on from it without the batch.
    assert saved_checkpoints.saved_steps(tmp_path) == [3]
    config.train.nonfinite = "skip"
    _run(config, tmp_path)
    assert saved_checkpoints.saved_steps(tmp_path)[-1] == 6


def test_a_batch_with_a_nan_is_skipped_and_told(
    config: config_dict.ConfigDict,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    _poison(monkeypatch, (4,))
    config.train.nonfinite = "skip"
    _run(config, tmp_path)
    assert "WARNING: step 4: " in capsys.readouterr().err
    (row,) = (r for r in _rows(tmp_path) if r["split"] == "train" and r["step"] == 4)
    assert row["skipped_steps"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_params(tmp_path)))


@pytest.mark.once
def test_nothing_but_nans_is_refused_even_so(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, tuple(range(40)))
    config.train.nonfinite, config.train.steps, config.train.validate_every = "skip", 30, 30
    with pytest.raises(UserError, match=r"step 10: .* diverged"):
        _run(config, tmp_path)
    assert not saved_checkpoints.saved_steps(tmp_path)


@pytest.mark.once
@pytest.mark.parametrize("first_save", [1, 5])
def test_when_it_is_saved_changes_nothing(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    first_save: int,
) -> None:
    """Steps 1 and 5 lie between two rows of the log."""
    config.train.save_steps = first_save
    with monkeypatch.context() as patch:
        _signal_at(patch, first_save, signal.SIGTERM)
        with pytest.raises(stopping.Stopped):
            _run(config, tmp_path)
    _run(config, tmp_path)
    assert _hash(tmp_path, "latest") == _hash(straight, "latest")
    assert _untimed(_rows(tmp_path)) == _untimed(_rows(straight))


@pytest.mark.once
def test_a_case_that_cannot_be_read_loses_no_step(
    config: config_dict.ConfigDict,
    straight: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loader.PatchIterator.__next__

    def broken(self: loader.PatchIterator) -> Any:
        if self.get_state()["batches"] == 5:
            raise UserError("case 7 is gone")
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loader.PatchIterator, "__next__", broken)
        with pytest.raises(UserError, match="case 7 is gone"):
            _run(config, tmp_path)
    # The validation's, and one of the step before the case.
    assert saved_checkpoints.saved_steps(tmp_path) == [3, 5]
    _run(config, tmp_path)
    assert _hash(tmp_path, "latest") == _hash(straight, "latest")
    assert _untimed(_rows(tmp_path)) == _untimed(_rows(straight))
