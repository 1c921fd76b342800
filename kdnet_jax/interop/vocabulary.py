"""The words of other tools' files: a glioma's sequences and labels, and the names of any task."""

import re
from collections.abc import Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.sources import label_recognition
from kdnet_jax.data.sources import names as scan_names
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads

# For each output of a head, the model's own channel.
Outputs = tuple[heads.Kind, tuple[int, ...]]

_KINDS: Final[tuple[heads.Kind, ...]] = ("regions", "softmax")
# What `scan_names.SEQUENCES` does not know, once "weighted" and all but letters are taken away.
_MORE_SEQUENCES: Final = {
    "t1native": "t1",
    "t1pre": "t1",
    "t1precontrast": "t1",
    "t1contrast": "t1ce",
    "t1contrastenhanced": "t1ce",
    "t1enhanced": "t1ce",
    "t1postcontrast": "t1ce",
    "t1withcontrast": "t1ce",
    "t1gadolinium": "t1ce",
    "t1km": "t1ce",
    "cet1": "t1ce",
    "t2flair": "flair",
}


# ------------------------------------------------------------------------------ of any task


def channels_of(task: task_lib.Task, names: Sequence[object], where: str) -> tuple[str, ...]:
    """Returns a model's channels, in the model's order, by the task's names.

    Args:
        task: what is segmented.
        names: of the model's channels, in its order.
        where: the file and key, for messages.

    Raises:
        UserError: a name is no channel of the task, or a duplicate.
    """
    found = tuple(str(name).strip().lower() for name in names)
    if not found or len(set(found)) < len(found) or not set(found) <= set(task.modalities):
        raise UserError(
            f"{where} is {_shown(names)}: expected each of the model's channels once, of the "
            f"task's {', '.join(task.modalities)}."
        )
    return found


def outputs_of(task: task_lib.Task, names: Sequence[object], where: str) -> Outputs:
    """Returns what a model's outputs are, and for each of the head's the model's channel.

    Args:
        task: what is segmented.
        names: of the model's output channels, in its order.
        where: the file and key, for messages.

    Raises:
        UserError: they are neither the task's regions nor its classes.
    """
    if found := _find_outputs(task, names):
        return found
    raise UserError(
        f"{where} is {_shown(names)}: expected the task's regions {', '.join(task.region_names)}, "
        f"or its classes {', '.join(task.classes)}, each once."
    )


def _find_outputs(task: task_lib.Task, names: Sequence[object]) -> Outputs | None:
    for kind in _KINDS:
        ours = heads.Head(task, kind).outputs
        if sorted(map(str, names)) == sorted(ours):
            return kind, tuple(list(names).index(name) for name in ours)
    return None


# ---------------------------------------------------------------------------- of the glioma


def is_glioma(channels: Sequence[object], outputs: Sequence[object]) -> bool:
    """Returns whether names are those of a glioma's sequences, and of its classes or regions."""
    found = [_sequence(name) for name in channels]
    distinct = None not in found and len(set(found)) == len(found) > 0
    return distinct and _find_outputs(task_lib.GLIOMA, _tissues(outputs)) is not None


def modalities(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Returns the glioma's names of a model's channels, in the model's order.

    Args:
        names: as the model's files have them, such as "T1w", "t1gd" or "T2-FLAIR".
        where: the file and key, for messages.

    Raises:
        UserError: one is unknown or duplicate.
    """
    found = tuple(_sequence(name) for name in names)
    unknown = [name for name, ours in zip(names, found, strict=True) if ours is None]
    if unknown or not names or len(set(found)) < len(found):
        raise UserError(
            f"{where} is {_shown(names)}: expected each of the model's sequences once, of "
            f"{', '.join(task_lib.GLIOMA.modalities)} or a usual name of theirs (T1w, T1Gd, "
            f"T2-FLAIR){f'; {_shown(unknown)} is none' * bool(unknown)}. Name them in a copy of "
            "the file."
        )
    return tuple(name for name in found if name)


def _sequence(name: object) -> str | None:
    word = re.sub(r"weighted|[^a-z0-9]", "", str(name).lower())
    for each in (word, re.sub(r"^(t[12])w", r"\1", word)):
        ours = scan_names.SEQUENCES.get(each) or _MORE_SEQUENCES.get(each)
        if ours in task_lib.GLIOMA.modalities:
            return ours
    return None


def outputs(names: Sequence[str], where: str) -> Outputs:
    """Returns what a glioma model's outputs are; see `outputs_of`.

    Raises:
        UserError: they are neither the regions nor the classes.
    """
    if found := _find_outputs(task_lib.GLIOMA, _tissues(names)):
        return found
    raise UserError(
        f"{where} is {_shown(names)}: expected the regions enhancing tumor, tumor core, whole "
        "tumor, or the classes background, NCR (necrosis, non-enhancing), ED (edema), ET "
        "(enhancing), each once. Another set of labels cannot teach here."
    )


def _tissues(names: Sequence[object]) -> list[str]:
    return [label_recognition.tissue(str(name)) for name in names]


def label_table(labels: typed.JsonView, where: str) -> Outputs:
    """Returns what the "labels" of nnU-Net's dataset.json make of a glioma model's outputs.

    Regions (lists of values) become outputs in the order of the file, without the background;
    plain labels in the order of their values (nnU-Net's `LabelManager`). The regions' values must
    be nested as their names say: {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing
    tumor": [3]} as nnU-Net's converter of BraTS writes them, or with other numbers.

    Args:
        labels: name -> value, or the values of a region.
        where: the file and key, for messages.

    Raises:
        UserError: they are not understood, or their names contradict their values.
    """
    values = {name: _values(value) for name, value in labels.items() if name != "ignore"}
    if not values or not all(values.values()):
        raise UserError(f"{where} is {dict(labels)}: expected names with whole numbers.")
    if all(len(each) == 1 for each in values.values()):
        ordered = sorted(values, key=lambda name: min(values[name]))
        if [min(values[name]) for name in ordered] != list(range(len(ordered))):
            raise UserError(f"{where} is {dict(labels)}: expected the values 0, 1, 2, 3.")
        return outputs(ordered, where)
    regions = {name: each for name, each in values.items() if each != {0}}
    head, order = outputs(list(regions), where)
    enhancing, core, whole = ([*regions.values()][index] for index in order[:3])
    nested = enhancing < core < whole and whole == set().union(*regions.values())
    if head != "regions" or not nested or (len(enhancing), len(whole)) != (1, 3):
        raise UserError(
            f"{where} is {dict(labels)}: the values contradict the names; expected one for the "
            "enhancing tumor, one more for the tumor core, one more for the whole tumor."
        )
    return head, order


def _values(value: object) -> set[int]:
    """Returns the values of a label or region; none of them where they are no whole numbers."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [each for each in found if type(each) is int]
    return set(numbers) if len(numbers) == len(found) else set()


def _shown(names: Sequence[object]) -> str:
    return ", ".join(map(repr, names)) or "empty"
