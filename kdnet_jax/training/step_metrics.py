"""Metrics of the steps between two rows of the log: fetched together, checked, averaged."""

import math
from typing import TYPE_CHECKING

import jax

from kdnet_jax.errors import UserError
from kdnet_jax.training import progress as progress_lib
from kdnet_jax.training import steps
from kdnet_jax.training.saved_checkpoints import Progress

if TYPE_CHECKING:
    # It brings Grain and TensorFlow Datasets, as in loop.py.
    from kdnet_jax.data.loading import loader

# Steps that may be dispatched before an earlier one has ended: enough to keep the device busy.
STEPS_AHEAD = 2
# Broken batches in a row that `nonfinite="skip"` lets pass.
MOST_SKIPPED = 10


class Window:
    """The metrics of the steps since the last row of the log.

    Attributes:
        rows: those that were fetched; an empty one is a step whose update was skipped.
        skipped_in_a_row: the last steps whose update was skipped, without one between.
    """

    def __init__(
        self,
        log: progress_lib.Log,
        progress: Progress,
        batches: "loader.PatchIterator",
        nonfinite: str,
        name: str = "",
    ) -> None:
        self.rows: list[dict[str, float]] = list(progress.unlogged)
        self._log, self._batches, self._nonfinite = log, batches, nonfinite
        self._name = f"{name}, " if name else ""
        self._pending: list[tuple[int, steps.Metrics]] = []
        self.skipped_in_a_row = progress.skipped_in_a_row

    def add(self, step: int, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step as they are, on the device."""
        self._pending.append((step, metrics))
        if len(self._pending) > STEPS_AHEAD:
            # No transfer; without it, a fast loop would queue steps and batches without end.
            jax.block_until_ready(self._pending[-1 - STEPS_AHEAD][1])

    def fetch(self, bar: progress_lib.Progress) -> None:
        """Fetches what is on the device, and checks it.

        Raises:
            UserError: a step's numbers are not finite, and such steps are not to be skipped.
        """
        fetched = jax.device_get(self._pending)
        self._pending.clear()
        for step, metrics in fetched:
            row = {name: float(value) for name, value in metrics.items()}
            broken = [name for name, value in row.items() if not math.isfinite(value)]
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if broken else 0
            if broken:
                self._report_nonfinite(step, broken, bar)
            self.rows.append({} if broken else row)

    def _report_nonfinite(self, step: int, broken: list[str], bar: progress_lib.Progress) -> None:
        where = (
            f"{self._name}step {step}: {', '.join(broken)} is not finite (patches of "
            f"{', '.join(self._batches.cases_of(step - 1))})"
        )
        if self._nonfinite == "stop":
            raise UserError(
                f"{where}. Nothing of it was saved. Lower --config.optimizer.learning_rate or "
                "--config.optimizer.clip, and train again in a new --workdir; or continue without "
                "the updates of such batches by --config.train.nonfinite=skip."
            )
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise UserError(
                f"{where}, as in the {MOST_SKIPPED - 1} steps before: the training has diverged. "
                "Lower --config.optimizer.learning_rate or "
                "--config.optimizer.clip, and train again in a new --workdir."
            )
        bar.write(f"WARNING: {where}: its update is left out (train.nonfinite=skip)")

    def write(self, step: int, bar: progress_lib.Progress) -> None:
        """Writes the mean of the rows to the log, and forgets them."""
        taken = [row for row in self.rows if row]
        means = {name: sum(row[name] for row in taken) / len(taken) for name in (taken or [{}])[0]}
        if len(taken) < len(self.rows):
            means["skipped_steps"] = len(self.rows) - len(taken)
        self._log.write(step, "train", means | bar.speed())
        if taken:
            bar.show_loss(taken[-1]["loss"])
        self.rows = []
