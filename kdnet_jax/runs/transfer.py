"""Parameters that a network starts from: those of another one, as far as the two agree."""

import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

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
    theirs = dict(jax.tree_util.tree_leaves_with_path(teacher.params))
    own = [
        teacher.model.modalities.index(name)
        for name in student.modalities
        if name in teacher.model.modalities
    ]
    inputs = (len(teacher.model.modalities), len(student.modalities))
    taken: list[str] = []

    def choose(path: tuple[object, ...], mine: Array) -> Array:
        other = theirs.get(path)
        if other is None:
            return mine
        if other.shape != mine.shape:
            there = (other.ndim >= 2, *other.shape[-2:-1], *mine.shape[-2:-1])
            if there != (True, *inputs) or len(own) != inputs[1]:
                return mine
            other = other[..., jnp.asarray(own), :]
            if other.shape != mine.shape:
                return mine
        taken.append(jax.tree_util.keystr(path))
        return other

    started = jax.tree_util.tree_map_with_path(choose, params)
    count = len(jax.tree.leaves(params))
    _LOG.info(f"The student starts from its teacher in {len(taken)} of {count} arrays.")
    return started
