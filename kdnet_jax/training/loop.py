"""The training loop, one function that reads from top to bottom."""

import contextlib
import dataclasses
import logging
import operator
import pathlib
import time
from collections.abc import Callable
from typing import Literal

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from kdnet_jax.core import typed
from kdnet_jax.data.loading import loader as loader_lib
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.training import checkpoint, profiling, step_metrics, steps, stopping
from kdnet_jax.training import progress as progress_lib
from kdnet_jax.training.saved_checkpoints import Progress

_LOG = logging.getLogger(__name__)

# (parameters) -> of this process's share of the validation cases: place in the list of all of them,
# and what is found in each
Validate = Callable[[PyTree], list[tuple[int, typed.JsonValue]]]
# (what is found in all validation cases, in order) -> Dice of each region
Summarise = Callable[[list[typed.JsonValue]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long to train, and how often to look.

    Attributes:
        steps: steps in all.
        log_every: steps between rows of `metrics.jsonl`.
        validate_every: steps between validations; each is followed by a checkpoint.
        save_minutes: minutes between checkpoints, besides those.
        save_steps: steps between checkpoints, besides those; 0 none.
        early_stop: stop after so many validations without a better one; 0 never.
        accumulate: parts that each batch is worked through in, one after another.
        nonfinite: what a batch with a NaN or infinite loss or gradient does: "stop" the run, or
            "skip" its update, with a warning.
        average: decay of the moving average of the weights, which is then what is validated, kept
            and used; 0 for none.
    """

    steps: int
    log_every: int
    validate_every: int
    save_minutes: float
    early_stop: int
    accumulate: int = 1
    save_steps: int = 0
    nonfinite: Literal["stop", "skip"] = "stop"
    average: float = 0.0


def resume(
    checkpoints: checkpoint.RunCheckpoints,
    state: steps.TrainState,
    batches: loader_lib.PatchIterator,
    identity: dict[str, str],
    teacher_path: str = "",
) -> tuple[steps.TrainState, Progress]:
    """Returns the state and progress of the newest whole checkpoint, or those of the start.

    The batches are set to the position that belongs to it.

    Args:
        checkpoints: of the run.
        state: the state before the first step.
        batches: the run's batches.
        identity: what the run is; it must not change when it resumes.
        teacher_path: where a student's teacher lies, for the record.

    Raises:
        UserError: the checkpoint is of another identity, or all are damaged.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        start = Progress(0, batches.get_state(), None, None, 0, 0.0, identity, teacher_path, rows=0)
        return state, start
    state, progress = restored
    _check_identity(progress.identity, identity, checkpoints.folder)
    batches.set_state(progress.loader)
    return state, progress


def mean_dice(scores: list[typed.JsonValue]) -> dict[str, float]:
    """Returns region -> mean of the cases' Dice, of region -> Dice for each case."""
    return {region: sum(each[region] for each in scores) / len(scores) for region in scores[0]}


def train(
    step_fn: Callable[..., tuple[steps.TrainState, steps.Metrics]],
    state: steps.TrainState,
    progress: Progress,
    batches: loader_lib.PatchIterator,
    *,
    teacher_params: PyTree = (),
    root: jax.Array,
    mesh: Mesh,
    validate: Validate,
    summarise: Summarise = mean_dice,
    checkpoints: checkpoint.RunCheckpoints,
    options: TrainOptions,
    log: progress_lib.Log,
    description: str,
    profiler: profiling.Profiler | None = None,
) -> Progress:
    """Trains from `progress` until the last step, an early stop or a signal.

    Steps are dispatched ahead of the device, `step_metrics.STEPS_AHEAD` at most, and their metrics
    stay there until they are logged. What is logged and computed does not depend on when it is
    saved.

    Args:
        step_fn: `steps.train_step` on the mesh; donates the state.
        state: the state at `progress`, see `resume`.
        progress: where the run is.
        batches: batches on the mesh, at their position.
        teacher_params: of a student's teacher, on the mesh; () without one.
        root: the root key of all that is drawn inside the step.
        mesh: where state and batches lie.
        validate: what is found in this process's share of the validation cases.
        summarise: what it comes to over all of them; by default each finding is region -> Dice.
        checkpoints: where to save.
        options: budget and intervals.
        log: the run's metrics.
        description: what the progress bar says.
        profiler: notified of each step.

    Returns:
        The progress at the end.

    Raises:
        UserError: for a NaN or a full disk.
        stopping.Stopped: after a signal, when everything is saved.
    """
    root = sharding.replicate_key(root, mesh)
    started = time.monotonic() - progress.seconds
    window = step_metrics.Window(log, progress, batches, options.nonfinite)
    agreement = processes.Agreement(mesh, step_metrics.STEPS_AHEAD)

    with (
        stopping.Request() as stop,
        progress_lib.Progress(
            options.steps, progress.step, description, quiet=not processes.is_first()
        ) as bar,
    ):
        stopped = 0
        if progress.step and _is_due(progress.step, options) and progress.score is None:
            # A signal came at a step that was due: it was saved at once, and is validated now.
            progress, stopped = _validated(progress, state.used, validate, summarise, stop, log)
            if not stopped:
                _save(checkpoints.replace, state, progress, log)
        step = progress.step
        if step < options.steps and not stopped:
            batches.start()

        def now() -> Progress:
            return dataclasses.replace(
                progress,
                step=step,
                loader=batches.get_state(),
                score=None,
                seconds=time.monotonic() - started,
                unlogged=window.rows,
                skipped_in_a_row=window.skipped_in_a_row,
            )

        last_save = time.monotonic()
        while not (stopped or step == options.steps or _out_of_patience(progress, options)):
            # -- One step --------------------------------------------------------------------
            try:
                # Whatever a step needs lies on the mesh: an implicit transfer would be a mistake.
                with jax.transfer_guard("disallow"):
                    with bar.waiting():
                        batch = next(batches)
                    state, metrics = step_fn(state, teacher_params, batch, root)
            except UserError:
                # An unreadable case. The other processes do not know of it, so nothing is saved.
                if step > progress.step and processes.count() == 1:
                    window.fetch(bar)
                    _save(checkpoints.save, state, now(), log)
                raise
            # Freed now, not while the next one is waited for.
            del batch
            step += 1
            window.add(step, metrics)
            bar.update()
            if profiler and (summary := profiler.after_step(metrics, bar.waited)):
                bar.write(summary)

            # -- Log, validate, save ---------------------------------------------------------
            due = _is_due(step, options)
            minutes = (time.monotonic() - last_save) / 60
            stopped, saving = agreement.agree(stop.requested, minutes >= options.save_minutes)
            saving = saving or stopped or due or _is_multiple(step, options.save_steps)
            logging = due or step % options.log_every == 0
            if saving or logging:
                # Before any save: a NaN must never reach a checkpoint.
                window.fetch(bar)
            if logging:
                window.write(step, bar)
            if not saving:
                continue
            progress = now()
            with bar.paused():
                if due and not stopped:
                    progress, stopped = _validated(
                        progress, state.used, validate, summarise, stop, log
                    )
                _save(checkpoints.save, state, progress, log)
            last_save = time.monotonic()
            agreement.forget()
        checkpoints.wait()
        # One that came too late for the loop, or for the others' answer.
        stopped = max(processes.gather(int(stopped or stop.requested)))
    if stopped := stopped or stop.requested:
        raise stopping.Stopped(stopped, progress.step)
    if profiler and (summary := profiler.close()):
        _LOG.info(summary)
    return progress


def _is_due(step: int, options: TrainOptions) -> bool:
    return step % options.validate_every == 0 or step == options.steps


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _out_of_patience(progress: Progress, options: TrainOptions) -> bool:
    return 0 < options.early_stop <= progress.stale_validations


def _save(
    save: Callable[[steps.TrainState, Progress], None],
    state: steps.TrainState,
    progress: Progress,
    log: progress_lib.Log,
) -> None:
    # The log first: its rows must be there when the checkpoint says so.
    log.sync()
    save(state, dataclasses.replace(progress, rows=log.rows))


def _validated(
    progress: Progress,
    params: PyTree,
    validate: Validate,
    summarise: Summarise,
    stop: stopping.Request,
    log: progress_lib.Log,
) -> tuple[Progress, int]:
    """Returns the progress with its score, and 0; or as it was, and the signal that broke it off.

    All processes come to the same answer.
    """
    own = None
    with contextlib.suppress(stopping.Interrupted), stop.interruptible():
        own = validate(params)
    parts, signals = zip(*processes.gather([own, stop.requested]), strict=True)
    if any(part is None for part in parts):
        return progress, max(signals)
    # In the order of the cases: the mean does not depend on who scored which.
    rows = [row for part in parts for row in part]
    scores = [found for _, found in sorted(rows, key=operator.itemgetter(0))]
    dice = summarise(scores)
    score = sum(dice.values()) / len(dice)
    row = {f"dice_{region.lower()}": value for region, value in dice.items()}
    log.write(progress.step, "validation", row | {"dice_mean": score})
    better = progress.best_score is None or score > progress.best_score
    progress = dataclasses.replace(
        progress,
        score=score,
        best_score=score if better else progress.best_score,
        stale_validations=0 if better else progress.stale_validations + 1,
    )
    return progress, 0


def _check_identity(saved: dict[str, str], current: dict[str, str], folder: pathlib.Path) -> None:
    # Older runs lack some parts of the identity. The config is compared key by key
    # (`workdir.check`): another version may have keys that change nothing.
    for key in sorted(saved.keys() & current.keys() - {"config"}):
        if saved[key] != current[key]:
            raise UserError(
                f"{folder} was trained with {key} {saved[key]}, and now it is "
                f"{current[key]}. Restore the earlier {key}, or give a new --workdir."
            )
