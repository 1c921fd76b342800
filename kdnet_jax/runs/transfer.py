"""Parameters that a network starts from: those of another one, as far as the two agree."""

import functools
import logging
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.errors import UserError
from kdnet_jax.models import networks
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import trained

_LOG = logging.getLogger(__name__)


def from_teacher(params: PyTree, student: model_lib.Model, teacher: trained.Run) -> PyTree:
    """Returns a student's first parameters with the teacher's wherever both have the same array.

    Of a kernel that differs in its input channels alone, and has as many as either network has
    sequences (the first convolution), the student takes those of its own sequences.

    Args:
        params: new parameters of the student.
        student: its network and sequences.
        teacher: its parameters, network and sequences.
    """
    started, left = _merge(params, student, teacher)
    count = len(jax.tree.leaves(params))
    _LOG.info(f"The student starts from its teacher in {count - len(left)} of {count} arrays.")
    return started


def load_start(experiments: Sequence[experiment_lib.Experiment]) -> trained.Run | None:
    """Reads the run or model whose parameters networks start from (`train.start`), if any.

    Args:
        experiments: of one run, or of students in one step, which have the same start.

    Raises:
        UserError: it cannot be read, or does not fit one of them.
    """
    if not experiments[0].train.start:
        return None
    start = trained.load_given(
        "train.start", pathlib.Path(experiments[0].train.start), pretrained=True
    )
    for experiment in experiments:
        own = model_lib.of_experiment(experiment)
        # The shapes alone.
        jax.eval_shape(
            functools.partial(from_start, student=own, start=start), trained.expected_params(own)
        )
    return start


def from_start(params: PyTree, student: model_lib.Model, start: trained.Run) -> PyTree:
    """Returns a network's first parameters: those of its start, and perhaps a head of its own.

    The head stays as it was drawn where the start's has other outputs, or was never trained.

    Args:
        params: new parameters of the network.
        student: it, and its sequences, which the start sees too (see `from_teacher`).
        start: its parameters, network and sequences.

    Raises:
        UserError: another array does not fit.
    """
    theirs = start.model
    own_head = start.pretrained or theirs.outputs != student.outputs
    started, left = _merge(params, student, start, own_head=own_head)
    kinds = [
        (networks.family(each.network), getattr(each.network, "axes", ""))
        for each in (theirs, student)
    ]
    unfit = [path for path in left if not (own_head and networks.is_head(path))]
    if unfit or kinds[0] != kinds[1] or not set(student.modalities) <= set(theirs.modalities):
        where = f" ({unfit[0]} is the first array that does not fit)" if unfit else ""
        raise UserError(
            f"train.start is {start.folder}, a {kinds[0][0]} on {', '.join(theirs.modalities)}; "
            f"this network, a {kinds[1][0]} on {', '.join(student.modalities)}, cannot start from "
            f"it{where}. Set --config.model.family, .widths and the other keys of model as they "
            "were there, with sequences among those, or leave train.start empty."
        )
    return started


def _merge(
    params: PyTree, student: model_lib.Model, source: trained.Run, *, own_head: bool = False
) -> tuple[PyTree, list[str]]:
    """Returns the parameters with those of the source that fit, and the paths of all others."""
    theirs = dict(jax.tree_util.tree_leaves_with_path(source.params))
    own = [
        source.model.modalities.index(name)
        for name in student.modalities
        if name in source.model.modalities
    ]
    inputs = (len(source.model.modalities), len(student.modalities))
    left: list[str] = []

    def choose(path: tuple[object, ...], mine: Array) -> Array:
        name, other = jax.tree_util.keystr(path), theirs.get(path)
        if other is not None and not (own_head and networks.is_head(name)):
            if other.shape == mine.shape:
                return other
            there = (other.ndim >= 2, *other.shape[-2:-1], *mine.shape[-2:-1])
            if there == (True, *inputs) and len(own) == inputs[1]:
                other = other[..., jnp.asarray(own), :]
                if other.shape == mine.shape:
                    return other
        left.append(name)
        return mine

    return jax.tree_util.tree_map_with_path(choose, params), left
