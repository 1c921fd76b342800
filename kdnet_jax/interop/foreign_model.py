"""Model of another tool, as its files describe it."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import PyTree

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import json_files
from kdnet_jax.models import adapted, heads
from kdnet_jax.runs import model


@dataclasses.dataclass(frozen=True, eq=False)
class ForeignModel:
    """A model of another tool, in NumPy arrays and plain values.

    Attributes:
        source: what it is, for people.
        network: its form, as the tool has it.
        members: {"params": ...} of each fold, for `network.module().apply`.
        task: what it segments.
        modalities: the task's names in the order of the model's channels.
        head: "softmax" over classes, or "regions": a sigmoid each.
        order: for each output of that head, the model's own channel.
        axes: the letters to which its array axes grow, such as "SPL" or "RAS".
        spacing: voxel size in mm that it sees, one number or three along its own axes; `None`: the
            scan's own.
        window: edges of its prediction window, along its own axes, in voxels.
        overlap: share of a window that its neighbour covers too.
        mirror: it averages over the 8 mirror images.
        known: cases that it was trained or chosen on, as far as its files say.
        about: JSON: versions, epochs, SHA-256 of files, licence, and what was assumed ("notes").
    """

    source: str
    network: adapted.RawConfig
    members: tuple[PyTree, ...]
    task: task_lib.Task
    modalities: tuple[str, ...]
    head: heads.Kind
    order: tuple[int, ...]
    axes: str
    spacing: json_files.Spacing | None
    window: tuple[int, int, int]
    overlap: float
    mirror: bool
    known: model.KnownCases
    about: typed.Json


def join(models: Sequence[ForeignModel], names: Sequence[str]) -> ForeignModel:
    """Returns models of one form as the folds of one.

    Args:
        models: each of one member or more.
        names: of each, for messages.

    Raises:
        UserError: they differ in more than their weights.
    """
    first = models[0]
    own = ("source", "members", "known", "about")
    for other, name in zip(models, names, strict=True):
        for field in dataclasses.fields(ForeignModel):
            mine, its = getattr(first, field.name), getattr(other, field.name)
            if field.name not in own and mine != its:
                raise UserError(
                    f"{names[0]} and {name} cannot be averaged as folds: {field.name} is {mine} in "
                    f"the one and {its} in the other. Give folds of one network and preparation."
                )
    known = model.KnownCases(
        tuple(sorted({case for each in models for case in each.known.ids})),
        all(each.known.complete for each in models),
    )
    return dataclasses.replace(
        first,
        source=", ".join(each.source for each in models),
        members=tuple(member for each in models for member in each.members),
        known=known,
        about=first.about
        | {"folds": {name: each.about for each, name in zip(models, names, strict=True)}},
    )
