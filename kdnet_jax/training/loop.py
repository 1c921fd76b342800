"""The training loop, one function that reads from top to bottom."""

import contextlib
import dataclasses
import logging
import operator
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import processes, sharding
from kdnet_jax.training import checkpoint, profiling, step_metrics, steps, stopping
from kdnet_jax.training import progress as progress_lib
from kdnet_jax.training.options import TrainOptions
from kdnet_jax.training.saved_checkpoints import Progress

if TYPE_CHECKING:
    # It brings Grain and TensorFlow Datasets: 0.5 s of what only reads a run's options.
    from kdnet_jax.data.loading import loader as loader_lib

_LOG = logging.getLogger(__name__)

# (parameters) -> of this process's share of the validation cases: place in the list of all of them,
# and what is found in each
Validate = Callable[[PyTree], list[tuple[int, typed.JsonValue]]]
# (what is found in all validation cases, in order) -> Dice of each region, or what else is scored
Summarise = Callable[[list[typed.JsonValue]], dict[str, float]]


def mean_dice(scores: list[typed.JsonValue]) -> dict[str, float]:
    """Returns region -> mean of the cases' Dice, of region -> Dice for each case."""
    return {region: sum(each[region] for each in scores) / len(scores) for region in scores[0]}


@dataclasses.dataclass
class Learner:
    """A network that a loop trains, and what belongs to it alone.

    Attributes:
        state: after its last step.
        progress: where it was when it was last saved; at the start, where it begins.
        validate: what is found in this process's share of the validation cases.
        checkpoints: where to save.
        log: its metrics.
        summarise: what it comes to over all of them; by default each finding is region -> Dice.
        metric: what that is, in the log.
        name: in messages; "" where there is one alone.
    """

    state: steps.TrainState
    progress: Progress
    validate: Validate
    checkpoints: checkpoint.RunCheckpoints
    log: progress_lib.Log
    summarise: Summarise = mean_dice
    metric: str = "dice"
    name: str = ""

    def save(self, *, again: bool = False) -> None:
        """Saves the state in the background; `again`: in place of the checkpoint of this step."""
        # The log first: its rows must be there when the checkpoint says so.
        self.log.sync()
        save = self.checkpoints.replace if again else self.checkpoints.save
        save(self.state, dataclasses.replace(self.progress, rows=self.log.rows))

    def validated(self, stop: stopping.Request) -> int:
        """Gives the progress its score, and returns 0; or the signal that broke it off.

        All processes come to the same answer.
        """
        own = None
        with contextlib.suppress(stopping.Interrupted), stop.interruptible():
            own = self.validate(self.state.used)
        parts, signals = zip(*processes.gather([own, stop.requested]), strict=True)
        if any(part is None for part in parts):
            return max(signals)
        # In the order of the cases: the mean does not depend on who scored which.
        rows = [row for part in parts for row in part]
        scores = [found for _, found in sorted(rows, key=operator.itemgetter(0))]
        found = self.summarise(scores)
        score = sum(found.values()) / len(found)
        row = {f"{self.metric}_{name.lower()}": value for name, value in found.items()}
        row[f"{self.metric}_mean"] = score
        self.log.write(self.progress.step, "validation", row)
        best = self.progress.best_score
        better = best is None or score > best
        self.progress = dataclasses.replace(
            self.progress,
            score=score,
            best_score=score if better else best,
            stale_validations=0 if better else self.progress.stale_validations + 1,
        )
        return 0


def resume(
    checkpoints: checkpoint.RunCheckpoints,
    state: steps.TrainState,
    identity: dict[str, str],
    teacher_path: str = "",
) -> tuple[steps.TrainState, Progress]:
    """Returns the state and progress of the newest whole checkpoint, or those of the start.

    Args:
        checkpoints: of the run.
        state: the state before the first step.
        identity: what the run is; it must not change when it resumes.
        teacher_path: where a student's teacher lies, for the record.

    Raises:
        UserError: the checkpoint is of another identity, or all are damaged.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        return state, Progress(0, {}, None, None, 0, 0.0, identity, teacher_path, rows=0)
    state, progress = restored
    _check_identity(progress.identity, identity, checkpoints.folder)
    return state, progress


def next_group(reached: Sequence[Progress], options: TrainOptions) -> tuple[list[int], int]:
    """Returns which of several runs train next, by their places, and until which step.

    Those that lag behind catch up first: a kill may have come between two saves. A run that is
    finished or has stopped early takes no part; once all are, nothing is left to do in what is
    returned.
    """
    left = [i for i, each in enumerate(reached) if not is_finished(each, options)]
    left = left or list(range(len(reached)))
    steps_done = sorted({reached[i].step for i in left})
    until = steps_done[1] if len(steps_done) > 1 else options.steps
    return [i for i in left if reached[i].step == steps_done[0]], until


def is_finished(progress: Progress, options: TrainOptions) -> bool:
    """Says whether nothing is left to train or to validate."""
    ended = progress.step == options.steps or _out_of_patience(progress, options)
    return ended and not _is_unscored(progress, options)


def train(
    step_fn: Callable[..., tuple[tuple[steps.TrainState, ...], tuple[steps.Metrics, ...]]],
    learners: Sequence[Learner],
    batches: "loader_lib.PatchIterator",
    *,
    teacher_params: PyTree = (),
    root: jax.Array,
    mesh: Mesh,
    options: TrainOptions,
    description: str,
    profiler: profiling.Profiler | None = None,
    until: int | None = None,
) -> None:
    """Trains until the last step, an early stop or a signal; the learners hold what it comes to.

    Steps are dispatched ahead of the device, `step_metrics.STEPS_AHEAD` at most, and their metrics
    stay there until they are logged. What is logged and computed does not depend on when it is
    saved.

    Args:
        step_fn: `steps.joint_step` on the mesh; donates the states.
        learners: what is trained, all after as many steps; they are saved at the end.
        batches: batches on the mesh, at the learners' position.
        teacher_params: of a student's teacher, on the mesh; () without one.
        root: the root key of all that is drawn inside the step.
        mesh: where state and batches lie.
        options: budget and intervals.
        description: what the progress bar says.
        profiler: notified of each step.
        until: a step before the last one to end at.

    Raises:
        UserError: for a NaN or a full disk.
        stopping.Stopped: after a signal, when everything is saved.
    """
    step, end = learners[0].progress.step, until or options.steps
    root = sharding.replicate_key(root, mesh)
    before, started = [each.progress.seconds for each in learners], time.monotonic()
    windows = [
        step_metrics.Window(each.log, each.progress, batches, options.nonfinite, each.name)
        for each in learners
    ]
    agreement = processes.Agreement(mesh, step_metrics.STEPS_AHEAD)

    with (
        stopping.Request() as stop,
        progress_lib.Progress(
            options.steps, step, description, quiet=not processes.is_first()
        ) as bar,
    ):
        stopped = 0
        for each in learners:
            if not stopped and _is_unscored(each.progress, options):
                # A signal came at a step that was due: it was saved at once, and is validated now.
                stopped = each.validated(stop)
                if not stopped:
                    each.save(again=True)
        if step < end and not stopped:
            batches.start()

        def note() -> None:
            for each, window, seconds in zip(learners, windows, before, strict=True):
                each.progress = dataclasses.replace(
                    each.progress,
                    step=step,
                    loader=batches.get_state(),
                    score=None,
                    seconds=seconds + time.monotonic() - started,
                    unlogged=window.rows,
                    skipped_in_a_row=window.skipped_in_a_row,
                )

        last_save = time.monotonic()
        while not (
            stopped
            or step == end
            or any(_out_of_patience(each.progress, options) for each in learners)
        ):
            # -- One step --------------------------------------------------------------------
            try:
                # Whatever a step needs lies on the mesh: an implicit transfer would be a mistake.
                with jax.transfer_guard("disallow"):
                    with bar.waiting():
                        batch = next(batches)
                    states, metrics = step_fn(
                        tuple(each.state for each in learners), teacher_params, batch, root
                    )
            except UserError:
                # An unreadable case. The other processes do not know of it, so nothing is saved.
                if step > learners[0].progress.step and processes.count() == 1:
                    for window in windows:
                        window.fetch(bar)
                    note()
                    for each in learners:
                        each.save()
                raise
            # Freed now, not while the next one is waited for.
            del batch
            step += 1
            for each, window, state, found in zip(learners, windows, states, metrics, strict=True):
                each.state = state
                window.add(step, found)
            bar.update()
            if profiler and (summary := profiler.after_step(metrics, bar.waited)):
                bar.write(summary)

            # -- Log, validate, save ---------------------------------------------------------
            due = _is_due(step, options)
            minutes = (time.monotonic() - last_save) / 60
            stopped, saving = agreement.agree(stop.requested, minutes >= options.save_minutes)
            saving = saving or stopped or due or step == end
            saving = saving or _is_multiple(step, options.save_steps)
            logged = due or step % options.log_every == 0
            for window in windows:
                if saving or logged:
                    # Before any save: a NaN must never reach a checkpoint.
                    window.fetch(bar)
                if logged:
                    window.write(step, bar)
            if not saving:
                continue
            note()
            with bar.paused():
                for each in learners:
                    if due and not stopped:
                        stopped = each.validated(stop)
                    each.save()
            last_save = time.monotonic()
            agreement.forget()
        for each in learners:
            each.checkpoints.wait()
        # One that came too late for the loop, or for the others' answer.
        stopped = max(processes.gather(int(stopped or stop.requested)))
    if stopped := stopped or stop.requested:
        raise stopping.Stopped(stopped, learners[0].progress.step)
    if profiler and (summary := profiler.close()):
        _LOG.info(summary)


def _is_due(step: int, options: TrainOptions) -> bool:
    return step % options.validate_every == 0 or step == options.steps


def _is_unscored(progress: Progress, options: TrainOptions) -> bool:
    """Says whether a validation is due that a signal has prevented."""
    return progress.step > 0 and _is_due(progress.step, options) and progress.score is None


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _out_of_patience(progress: Progress, options: TrainOptions) -> bool:
    return 0 < options.early_stop <= progress.stale_validations


def _check_identity(saved: dict[str, str], current: dict[str, str], folder: pathlib.Path) -> None:
    # Older runs lack some parts of the identity. The config is compared key by key
    # (`workdir.check`): another version may have keys that change nothing.
    for key in sorted(saved.keys() & current.keys() - {"config"}):
        if saved[key] != current[key]:
            raise UserError(
                f"{folder} was trained with {key} {saved[key]}, and now it is "
                f"{current[key]}. Restore the earlier {key}, or give a new --workdir."
            )
