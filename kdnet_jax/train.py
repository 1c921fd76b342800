"""The training loop: one function that reads from top to bottom."""

import dataclasses
import math
import signal
import time
import types
from collections.abc import Callable
from typing import Any, Self

import jax
from jax.sharding import Mesh

from kdnet_jax import checkpoint, profiling, sharding, steps
from kdnet_jax.data import loader as loader_lib
from kdnet_jax.errors import UserError
from kdnet_jax.reporting import progress as progress_lib

# (parameters) -> Dice of each region, mean over the validation cases
Validate = Callable[[Any], dict[str, float]]

# Steps that may be dispatched before an earlier one has ended: enough to keep the device busy.
STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long to train, and how often to look.

    Attributes:
        steps: steps in all.
        log_every: steps between rows of `metrics.jsonl`.
        validate_every: steps between validations; each is followed by a checkpoint.
        save_minutes: minutes between checkpoints, besides those.
        early_stop: stop after so many validations without a better one; 0 never.
        accumulate: parts that each batch is worked through in, one after another.
    """

    steps: int
    log_every: int
    validate_every: int
    save_minutes: float
    early_stop: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Raises UserError for a count below 1."""
        for key in ("steps", "log_every", "validate_every", "accumulate"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key} is {getattr(self, key)}: give at least 1.")
        if self.save_minutes <= 0 or self.early_stop < 0:
            raise UserError("train.save_minutes must be above 0 and train.early_stop at least 0.")


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run was asked to stop, and has saved.

    Attributes:
        step: steps done.
        signal: the signal that asked.
    """

    def __init__(self, step: int, number: int) -> None:
        self.step, self.signal = step, number
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}")


def train(
    step_fn: Callable[..., tuple[steps.TrainState, steps.Metrics]],
    state: steps.TrainState,
    batches: loader_lib.PatchIterator,
    *,
    root: jax.Array,
    mesh: Mesh,
    validate: Validate,
    checkpoints: checkpoint.RunCheckpoints,
    options: TrainOptions,
    identity: dict[str, str],
    log: progress_lib.MetricsLog,
    description: str,
    teacher_path: str = "",
    profiler: profiling.Profiler | None = None,
) -> checkpoint.Progress:
    """Trains until the last step, an early stop or a signal; resumes where the run stopped.

    Steps are dispatched ahead of the device, `STEPS_AHEAD` at most, and their metrics stay there
    until they are logged.

    Args:
        step_fn: (state, batch on the mesh, root key) to (state, metrics); donates the state.
        state: the state before the first step; replaced by the newest checkpoint's, if any.
        batches: batches on the mesh.
        root: the root key of all that is drawn inside the step.
        mesh: where state and batches lie.
        validate: Dice of each region on the validation cases.
        checkpoints: where to save, and to resume from.
        options: budget and intervals.
        identity: what the run is; it must not change when it resumes.
        log: the run's metrics.
        description: what the progress bar says.
        teacher_path: where a student's teacher lies, for the record.
        profiler: is told of each step.

    Returns:
        The progress at the end.

    Raises:
        UserError: for a NaN, a full disk, or a checkpoint of another identity.
        Stopped: after a signal, when everything is saved.
    """
    # -- Resume ------------------------------------------------------------------------------
    progress = checkpoint.Progress(
        0, batches.get_state(), None, None, 0, 0.0, identity, teacher_path
    )
    if checkpoints.latest_step() is not None:
        state, progress = checkpoints.restore(state)
        _check_identity(progress.identity, identity, checkpoints.folder)
        batches.set_state(progress.loader)
        if _is_due(progress.step, options) and progress.score is None:
            # A signal came at a step that was due: it was saved at once, and is validated now.
            progress = _validated(progress, validate(state.params), log)
            checkpoints.save(state, progress, overwrite=True)
    root = jax.device_put(root, sharding.replicated(mesh))
    started = time.monotonic() - progress.seconds
    if progress.step < options.steps:
        batches.start()
    last_save = time.monotonic()
    pending: list[tuple[int, steps.Metrics]] = []

    with (
        progress_lib.Progress(options.steps, progress.step, description) as bar,
        _StopRequest() as stop,
    ):
        step = progress.step
        while step < options.steps and not _out_of_patience(progress, options):
            # -- One step --------------------------------------------------------------------
            # Whatever a step needs lies on the mesh: an implicit transfer would be a mistake.
            with jax.transfer_guard("disallow"):
                with bar.waiting():
                    batch = next(batches)
                state, metrics = step_fn(state, batch, root)
            # Freed now, not while the next one is waited for.
            del batch
            step += 1
            pending.append((step, metrics))
            if len(pending) > STEPS_AHEAD:
                # No transfer; without it, a fast loop would queue steps and batches without end.
                jax.block_until_ready(pending[-1 - STEPS_AHEAD][1])
            bar.update()
            if profiler and (told := profiler.after_step(metrics, bar.waited)):
                bar.write(told)

            # -- Log, validate, save ---------------------------------------------------------
            validating = _is_due(step, options)
            minutes = (time.monotonic() - last_save) / 60
            saving = validating or stop.requested or minutes >= options.save_minutes
            if saving or step % options.log_every == 0:
                # Before any save: a NaN must never reach a checkpoint.
                _log_steps(log, pending, bar)
            if not saving:
                continue
            progress = dataclasses.replace(
                progress,
                step=step,
                loader=batches.get_state(),
                score=None,
                seconds=time.monotonic() - started,
            )
            with bar.paused():
                if validating and not stop.requested:
                    progress = _validated(progress, validate(state.params), log)
                checkpoints.save(state, progress)
            last_save = time.monotonic()
            if stop.requested:
                checkpoints.wait()
                raise Stopped(step, stop.requested)
    checkpoints.wait()
    if profiler and (told := profiler.close()):
        print(told)
    return progress


def _is_due(step: int, options: TrainOptions) -> bool:
    return step % options.validate_every == 0 or step == options.steps


def _out_of_patience(progress: checkpoint.Progress, options: TrainOptions) -> bool:
    return 0 < options.early_stop <= progress.stale_validations


def _validated(
    progress: checkpoint.Progress, dice: dict[str, float], log: progress_lib.MetricsLog
) -> checkpoint.Progress:
    score = sum(dice.values()) / len(dice)
    row = {f"dice_{region.lower()}": value for region, value in dice.items()}
    log.write(progress.step, "validation", row | {"dice_mean": score})
    better = progress.best_score is None or score > progress.best_score
    return dataclasses.replace(
        progress,
        score=score,
        best_score=score if better else progress.best_score,
        stale_validations=0 if better else progress.stale_validations + 1,
    )


def _log_steps(
    log: progress_lib.MetricsLog,
    pending: list[tuple[int, steps.Metrics]],
    bar: progress_lib.Progress,
) -> None:
    """Fetches the metrics since the last call, checks every step, writes their mean; empties it."""
    fetched = jax.device_get(pending)
    pending.clear()
    for step, metrics in fetched:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"step {step}: {', '.join(broken)} is not finite. Nothing of it was saved. Lower "
                "--config.optimizer.learning_rate or --config.optimizer.clip, and train again in a "
                "new --workdir."
            )
    means = {
        name: sum(float(metrics[name]) for _, metrics in fetched) / len(fetched)
        for name in fetched[0][1]
    }
    log.write(fetched[-1][0], "train", means | bar.speed())
    bar.show_loss(float(fetched[-1][1]["loss"]))


def _check_identity(saved: dict[str, str], current: dict[str, str], folder: Any) -> None:
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise UserError(
                f"{folder} was trained with {key} {saved.get(key)}, and now it is "
                f"{current.get(key)}. Restore the former {key}, or give a new --workdir."
            )


class _StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish that the loop reads after each step.

    A second signal of the kind acts as usual, for a loop that hangs.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = number
        signal.signal(number, self._previous[number])
