"""The checkpoints of a run that trains: the newest two and the best, saved in the background.

A save appears whole: Orbax writes beside and renames. `saved_checkpoints.py` says what one holds,
and tells a damaged one; two are kept besides the best so that there is one to fall back on.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
from types import TracebackType

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from kdnet_jax.core import checksums, files
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import processes
from kdnet_jax.training import saved_checkpoints, steps
from kdnet_jax.training.saved_checkpoints import Damaged, Progress

# Where a run that resumes moves damaged checkpoints; they are not read again.
DAMAGED = "damaged_checkpoints"
# Where a checkpoint lies while another of its step is written.
_REPLACED = ".replaced_checkpoint"
# Where one goes before it is deleted: Orbax deletes in place, and a kill then leaves half of one.
_DELETED = ".deleted_checkpoint"
# Saves that are kept besides the best: the newest, and one to fall back on.
NEWEST = 2


class RunCheckpoints:
    """The checkpoints of a run that trains; a context manager that waits for open saves.

    Call `restore` before the first `save`.
    """

    def __init__(self, run: pathlib.Path) -> None:
        self._run = run
        self.folder = run / saved_checkpoints.FOLDER
        self._pending: ocp.AsyncResponse[bool] | None = None
        self._scores: dict[int, float | None] = {}

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if "_checkpointer" in self.__dict__:
            self._finish(quiet=error is not None)
            self._checkpointer.close()

    # Not before the damaged ones are gone: it cannot open a folder that holds some.
    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        save = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        preserve = ocp.training.preservation_policies.PreserveAll()
        return ocp.training.Checkpointer(
            os.fspath(self.folder.absolute()),
            # Orbax's own policies are not of its own protocols.
            save_decision_policy=save,  # pyright: ignore[reportArgumentType]
            preservation_policy=preserve,  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def replace(self, state: steps.TrainState, progress: Progress) -> None:
        """Saves in place of the checkpoint of this step, before any other `save`, and waits.

        A stop in the middle leaves the former one (Orbax would delete it first).

        Raises:
            UserError: as `save`.
        """
        former = self._run / _REPLACED / str(progress.step)
        processes.first_does(lambda: self._lay_by(former))
        self.save(state, progress)
        self.wait()
        processes.first_does(lambda: shutil.rmtree(former.parent))

    def _lay_by(self, former: pathlib.Path) -> None:
        former.parent.mkdir(exist_ok=True)
        os.replace(self.folder / former.name, former)

    def _bring_back(self) -> None:
        """Puts back what an interrupted `replace` has laid by; ends an interrupted deletion."""
        aside = self._run / _REPLACED
        for former in aside.iterdir() if aside.is_dir() else ():
            if not (self.folder / former.name).exists():
                os.replace(former, self.folder / former.name)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self._run / _DELETED, ignore_errors=True)

    def save(self, state: steps.TrainState, progress: Progress) -> None:
        """Saves in the background; there is no checkpoint of `Progress.step` yet.

        Raises:
            UserError: the disk is full, or cannot be written; for this save or the one before.
        """
        self._finish()
        trees = _trees(state)
        sums = {name: checksums.checksum(tree) for name, tree in trees.items()}
        shapes = saved_checkpoints.shapes(state.used)
        progress = dataclasses.replace(progress, checksums=sums, shapes=shapes)
        with files.writing(self.folder):
            self._pending = self._checkpointer.save_checkpointables_async(
                progress.step,
                trees,
                force=True,
                metrics=None if progress.score is None else {"score": progress.score},
                custom_metadata=dataclasses.asdict(progress),
            )
        self._scores[progress.step] = progress.score

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._finish()

    def _finish(self, quiet: bool = False) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            with files.writing(self.folder):
                # Orbax keeps a thread and three open files for each save until it is asked.
                pending.result()
                self._delete_others()
        except UserError as error:
            if not quiet:
                raise
            saved_checkpoints.warn(str(error))

    def _delete_others(self) -> None:
        """Deletes all but the newest checkpoints and the best."""
        kept = [*sorted(self._scores)[-NEWEST:], saved_checkpoints.by_preference(self._scores)[0]]
        for step in set(self._scores) - set(kept):
            del self._scores[step]
            if processes.index() == 0:
                aside = self._run / _DELETED
                os.replace(self.folder / str(step), aside)
                shutil.rmtree(aside)

    def restore(self, like: steps.TrainState) -> tuple[steps.TrainState, Progress] | None:
        """Restores the newest whole checkpoint, with the shapes and shardings of `like`.

        Damaged ones after it are put aside, with a warning. `None`: there is no checkpoint.

        Raises:
            UserError: all there are are damaged; nothing is changed then.
        """
        on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _trees(like))
        processes.first_does(self._bring_back)
        # Every process reads for itself, so that none waits for another that finds a fault.
        found, trees, faults = self._read_newest(on_host)
        views = processes.gather([found and found.step, sorted(faults)])
        if any(view != views[0] for view in views):
            raise UserError(
                f"{self.folder}: the processes do not see the same checkpoints ({views}). Give a "
                "--workdir on storage that all of them share."
            )
        if found is None:
            if faults:
                raise saved_checkpoints.none_left(self._run, faults)
            return None
        if faults:
            processes.first_does(lambda: self._put_aside(faults, found.step))
        trees = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), trees, _trees(like))
        used, rest = trees[saved_checkpoints.PARAMS], trees[saved_checkpoints.OPTIMIZER]
        averaged = like.average is not None
        state = steps.TrainState(
            rest["step"],
            rest["params"] if averaged else used,
            rest["opt_state"],
            used if averaged else None,
        )
        return state, found

    def _read_newest(
        self, like: saved_checkpoints.Trees
    ) -> tuple[Progress | None, saved_checkpoints.Trees, dict[int, str]]:
        """Returns the newest checkpoint whose content is what was saved, and the faults of others.

        Notes the scores of those that can be read.

        Args:
            like: trees of NumPy arrays.
        """
        faults: dict[int, str] = {}
        found, trees = None, {}
        for step in reversed(saved_checkpoints.saved_steps(self._run)):
            try:
                document = saved_checkpoints.read_progress(self._run, step)
                if found is None:
                    trees = saved_checkpoints.read_trees(self._run, step, like, document.checksums)
                    found = document
                self._scores[step] = document.score
            except Damaged as error:
                faults[step] = str(error)
        return found, trees, faults

    def _put_aside(self, faults: dict[int, str], used: int) -> None:
        aside = self._run / DAMAGED
        aside.mkdir(exist_ok=True)
        for step in faults:
            os.replace(self.folder / str(step), _free_name(aside, str(step)))
        saved_checkpoints.warn(
            f"{saved_checkpoints.listed(self._run, faults)}. Moved to {aside}; the one of step "
            f"{used} is used."
        )


def _free_name(folder: pathlib.Path, name: str) -> pathlib.Path:
    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(path for path in (folder / each for each in names) if not path.exists())


def _trees(state: steps.TrainState) -> saved_checkpoints.Trees:
    rest = {"step": state.step, "opt_state": state.opt_state}
    if state.average is not None:
        rest["params"] = state.params
    return {saved_checkpoints.PARAMS: state.used, saved_checkpoints.OPTIMIZER: rest}
