"""Checkpoints as they lie on disk: read, compared with what was saved, chosen. Trains nothing.

A checkpoint holds two trees, `params` and `optimizer` (step and optimizer state), and a JSON
document (`Progress`). The parameters are separate so that a teacher or a prediction reads nothing
else, and a student's checkpoint never holds its teacher. With a moving average, `params` is the
average, and `optimizer` holds the parameters that training continues from.

A save appears whole (`checkpoint.py`), but what is on disk may be damaged later: the document holds
a checksum of each tree, and what is read is compared with it.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from kdnet_jax.core import checksums, memory, typed
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import processes
from kdnet_jax.training import steps

_LOG = logging.getLogger(__name__)

FOLDER = "checkpoints"
PARAMS, OPTIMIZER = "params", "optimizer"
# By name.
Trees = dict[str, PyTree]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run needs, besides its state, to resume as if it had never stopped.

    Attributes:
        step: steps done.
        loader: position of the data loader.
        score: validation score at this step; `None` between validations.
        best_score: the best so far; `None` before the first validation.
        stale_validations: validations since the best.
        seconds: time trained so far.
        identity: what the run must still be when it resumes: its config, random root, split, data
            and teacher, each as a hash.
        teacher_path: where a student's teacher lay when the run began; it may move.
        rows: rows of the log so far.
        unlogged: metrics of the steps since the last row of the log.
        skipped_in_a_row: steps before this one whose update was skipped, without one between.
        checksums: of each tree (`checksums.checksum`).
        shapes: of the parameters, by their path in the tree.
    """

    step: int
    loader: typed.Json
    score: float | None
    best_score: float | None
    stale_validations: int
    seconds: float
    identity: dict[str, str]
    teacher_path: str = ""
    rows: int = 0
    unlogged: list[dict[str, float]] = dataclasses.field(default_factory=list)
    skipped_in_a_row: int = 0
    checksums: dict[str, int] = dataclasses.field(default_factory=dict)
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class Damaged(Exception):  # noqa: N818 - says what is wrong with a folder, not with the program
    """A checkpoint that cannot be read, or does not hold what was saved."""


def saved_steps(run: pathlib.Path) -> list[int]:
    """Returns the steps of all folders in a run's `checkpoints/`, complete or not."""
    folder = run / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def read_progress(run: pathlib.Path, step: int) -> Progress:
    """Reads the document of a checkpoint.

    Raises:
        Damaged: it cannot be read.
        UserError: this machine cannot read it, though it may be whole.
    """
    where = run / FOLDER / str(step)
    with _reading():
        # Not by Orbax: TensorStore 0.1.86 never frees what it is asked about an array's form.
        described = json.loads((where / "_CHECKPOINT_METADATA").read_text("utf-8"))
        progress = Progress(**described["custom_metadata"])
        if progress.score is not None:
            # Orbax opens no folder of checkpoints in which one of these cannot be read.
            json.loads((where / "metrics" / "metrics").read_text("utf-8"))
        return progress


def read_trees(run: pathlib.Path, step: int, like: Trees, expected: dict[str, int]) -> Trees:
    """Reads trees of a checkpoint, with the types and shardings of `like`, and checks them.

    Args:
        run: the run's folder.
        step: which checkpoint.
        like: name -> tree of arrays (NumPy's are read into host memory) or shapes with shardings.
        expected: the checksums of `Progress`.

    Raises:
        Damaged: it cannot be read, or its content has changed.
        UserError: this machine cannot read it, though it may be whole.
    """
    with _reading():
        loaded = ocp.load_checkpointables(os.fspath((run / FOLDER / str(step)).absolute()), like)
    for name, tree in loaded.items():
        if checksums.checksum(tree) != expected.get(name):
            raise Damaged(f"the content of {name} has changed since it was saved")
    return loaded


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a broken checkpoint, which is anything, into one.

    Errors of the machine stay what they are: no memory, no permission.
    """
    try:
        with _by_itself():
            yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if memory.is_exhausted(error):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise Damaged(reason[:200]) from error


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Lets Orbax read or write in this process alone: the others may be doing something else."""
    alone = ocp.Context()
    alone.multiprocessing.primary_host = processes.index()
    alone.multiprocessing.active_processes = {processes.index()}
    with alone:
        yield


def load_params(
    run: pathlib.Path, like: PyTree, which: Literal["best", "latest"] = "best"
) -> tuple[PyTree, int]:
    """Reads only the parameters of a run's best (or newest) checkpoint.

    Where that one is damaged, the next best that is whole is read, with a warning.

    Args:
        run: the run's folder.
        like: a tree of arrays or shapes with the expected structure.
        which: "best" by validation score, or "latest"; a run without a validation has only that.

    Returns:
        The parameters, on this process's first device, and the step they come from.

    Raises:
        UserError: if there is no whole checkpoint, or it holds another network.
    """
    if not (run / FOLDER).is_dir():
        raise UserError(
            f"{run} holds no checkpoint (no folder {FOLDER!r} in it). Give the folder of a run "
            "that python -m kdnet_jax.main has written."
        )
    steps_there = saved_steps(run)
    if not steps_there:
        raise UserError(
            f"{run / FOLDER} holds no finished checkpoint. Train the run further first."
        )
    faults: dict[int, str] = {}
    documents: dict[int, Progress] = {}
    for step in steps_there:
        try:
            documents[step] = read_progress(run, step)
        except Damaged as error:
            faults[step] = str(error)
    scores = {step: each.score for step, each in documents.items()}
    wanted = sorted(scores, reverse=True) if which == "latest" else by_preference(scores)
    for step in wanted:
        try:
            params = _checked_params(run, step, like, documents[step])
        except Damaged as error:
            faults[step] = str(error)
            continue
        if faults:
            warn(f"{listed(run, faults)}. The one of step {step} is used instead.")
        return params, step
    raise none_left(run, faults)


def by_preference(scores: Mapping[int, float | None]) -> list[int]:
    """Returns steps, the best first, those without a score last; the newer first among equals."""
    ranks = {step: -np.inf if score is None else score for step, score in scores.items()}
    return sorted(ranks, key=lambda step: (ranks[step], step), reverse=True)


def _checked_params(run: pathlib.Path, step: int, like: PyTree, document: Progress) -> PyTree:
    where = run / FOLDER / str(step)
    # What a student's terms train beside it is read, so that it is checked too, and left out.
    projector = document.shapes.get(f"['{steps.PROJECTOR}']['kernel']")
    if projector:
        kernel = np.empty(projector, np.float32)
        like = {**like, steps.PROJECTOR: {"kernel": kernel}}
    if document.shapes != shapes(like):
        raise UserError(
            f"{where} holds another network than {run / 'config.json'} describes. "
            "One of the two was changed or copied from another run; restore the original."
        )
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    loaded = read_trees(run, step, {PARAMS: like}, document.checksums)[PARAMS]
    if projector:
        del loaded[steps.PROJECTOR]
    return jax.device_put(loaded, jax.local_devices()[0])


def save_params(path: pathlib.Path, params: PyTree) -> None:
    """Writes parameters alone as an Orbax checkpoint, into a folder that does not exist yet."""
    with _by_itself():
        ocp.save(os.fspath(path.absolute()), params)


def read_params(path: pathlib.Path, like: PyTree) -> PyTree:
    """Reads what `save_params` wrote, onto this process's first device.

    Raises:
        UserError: it cannot be read, or holds other arrays than `like`.
    """
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    try:
        with _reading():
            there = shapes(ocp.metadata(os.fspath(path.absolute())).metadata)
            loaded = ocp.load(os.fspath(path.absolute()), like) if there == shapes(like) else None
    except Damaged as error:
        raise UserError(f"{path} cannot be read ({error}). Restore it from a copy.") from error
    if loaded is None:
        raise UserError(
            f"{path} holds the parameters of another network than the file beside it describes. "
            "One of the two was changed; restore the original."
        )
    return jax.device_put(loaded, jax.local_devices()[0])


def none_left(run: pathlib.Path, faults: dict[int, str]) -> UserError:
    """Returns the error for a run whose checkpoints are all damaged; `faults` by step."""
    return UserError(
        f"{listed(run, faults)}. No other is there. Nothing was changed; restore the folder from "
        "a copy, or train again in a new --workdir."
    )


def listed(run: pathlib.Path, faults: dict[int, str]) -> str:
    """Returns the damaged checkpoints and what is wrong with each, in words."""
    named = "; ".join(f"{run / FOLDER / str(step)} ({faults[step]})" for step in sorted(faults))
    return f"damaged checkpoint{'s' if len(faults) > 1 else ''}: {named}"


def warn(text: str) -> None:
    """Prints a warning."""
    _LOG.warning(f"WARNING: {text}")


def shapes(tree: PyTree) -> dict[str, list[int]]:
    """Returns the shapes of a tree's arrays by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path): list(leaf.shape) for path, leaf in leaves}
