"""Checkpoints of a run: latest and best, with the loader's position. The only user of Orbax.

A checkpoint holds two trees, `params` and `optimizer` (step and optimizer state), and a JSON
document (`Progress`). The parameters stand alone so that a teacher or a prediction reads nothing
else, and a student's checkpoint never holds its teacher.
"""

import dataclasses
import errno
import hashlib
import pathlib
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from kdnet_jax import steps
from kdnet_jax.errors import UserError

FOLDER = "checkpoints"
_policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run must know, besides its state, to go on as if it had never stopped.

    Attributes:
        step: steps done.
        loader: position of the data loader.
        score: validation score at this step; `None` between validations.
        best_score: the best so far; `None` before the first validation.
        stale_validations: validations since the best.
        seconds: time trained so far.
        identity: what the run must still be when it resumes: hashes of split, data and teacher.
        teacher_path: where a student's teacher lay when the run began; it may move.
    """

    step: int
    loader: dict[str, Any]
    score: float | None
    best_score: float | None
    stale_validations: int
    seconds: float
    identity: dict[str, str]
    teacher_path: str = ""


class RunCheckpoints:
    """The checkpoints of one run's folder; a context manager that waits for open saves."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder / FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self.folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            # BestN alone would delete the newest checkpoint (google/orbax#526).
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(1),
                    _policies.BestN(
                        get_metric_fn=lambda metrics: metrics["score"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._checkpointer.close()

    def save(self, state: steps.TrainState, progress: Progress, *, overwrite: bool = False) -> None:
        """Saves in the background; only with `overwrite` may `Progress.step` be there already.

        Raises:
            UserError: if the disk is full.
        """
        try:
            self._checkpointer.save_checkpointables_async(
                progress.step,
                {
                    "params": state.params,
                    "optimizer": {"step": state.step, "opt_state": state.opt_state},
                },
                force=True,
                overwrite=overwrite,
                metrics=None if progress.score is None else {"score": progress.score},
                custom_metadata=dataclasses.asdict(progress),
            )
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def wait(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._checkpointer.wait()
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def latest_step(self) -> int | None:
        """Returns the newest saved step, `None` if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def restore(self, like: steps.TrainState) -> tuple[steps.TrainState, Progress]:
        """Restores the newest checkpoint, with the shapes and shardings of `like`."""
        step = self.latest_step()
        loaded = self._checkpointer.load_checkpointables(
            step,
            {
                "params": _abstract(like.params),
                "optimizer": _abstract({"step": like.step, "opt_state": like.opt_state}),
            },
        )
        progress = Progress(**self._checkpointer.checkpointables_metadata(step).custom_metadata)
        optimizer = loaded["optimizer"]
        state = steps.TrainState(optimizer["step"], loaded["params"], optimizer["opt_state"])
        return state, progress


def load_params(
    run: pathlib.Path, like: Any, which: Literal["best", "latest"] = "best"
) -> tuple[Any, int]:
    """Reads only the parameters of a run's best (or newest) checkpoint.

    Args:
        run: the run's folder.
        like: a tree of arrays or shapes with the expected structure.
        which: "best" by validation score, or "latest"; a run without a validation has only that.

    Returns:
        The parameters and the step they come from.

    Raises:
        UserError: if there is no checkpoint, or it holds another network.
    """
    folder = run / FOLDER
    if not folder.is_dir():
        raise UserError(
            f"{run} holds no checkpoint (no folder {FOLDER!r} in it). Give the folder of a run "
            "that python -m kdnet_jax.main has written."
        )
    with ocp.training.Checkpointer(folder.absolute()) as checkpointer:
        saved = checkpointer.checkpoints
        if not saved:
            raise UserError(f"{folder} holds no finished checkpoint. Train the run further first.")
        scored = [entry for entry in saved if entry.metrics]
        best = max(scored, key=lambda entry: entry.metrics["score"]) if scored else saved[-1]
        step = best.step if which == "best" else saved[-1].step
        metadata = checkpointer.checkpointables_metadata(step).metadata["params"]
        if _shapes(metadata) != _shapes(like):
            raise UserError(
                f"{folder / str(step)} holds another network than {run / 'config.json'} describes. "
                "One of the two was changed or copied from another run; restore the original."
            )
        loaded = checkpointer.load_checkpointables(step, {"params": _abstract(like)})
    return loaded["params"], step


def content_hash(params: Any) -> str:
    """Returns a SHA-256 over names, shapes, types and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def disk_error(error: OSError, where: pathlib.Path) -> Exception:
    """Returns a UserError for a full disk or a place that cannot be, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"No space left on the disk for {where}. Free some and run again.")
    # The last two: a file stands where a folder is needed.
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{where} cannot be written ({error.strerror}). Give another --workdir.")
    return error


def _abstract(tree: Any) -> Any:
    # A tree of mere shapes (eval_shape) is restored to the first device.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here
        ),
        tree,
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
