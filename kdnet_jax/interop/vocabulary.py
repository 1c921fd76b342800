"""The words of other tools' files: sequences and labels by name, regions by value too."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from kdnet_jax import conventions
from kdnet_jax.data import label_recognition
from kdnet_jax.data import names as scan_names
from kdnet_jax.errors import UserError

Head = Literal["softmax", "regions"]

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


def modalities(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Returns this project's names of a model's channels, in the model's order.

    Args:
        names: as the model's files have them, such as "T1w", "t1gd" or "T2-FLAIR".
        where: the file and key, for messages.

    Raises:
        UserError: one is not known, or there twice.
    """
    found = tuple(_sequence(name) for name in names)
    unknown = [name for name, ours in zip(names, found, strict=True) if ours is None]
    if unknown or not names or len(set(found)) < len(found):
        raise UserError(
            f"{where} is {_shown(names)}: expected each of the model's sequences once, of "
            f"{', '.join(conventions.MODALITIES)} or a usual name of theirs (T1w, T1Gd, T2-FLAIR)"
            f"{f'; {_shown(unknown)} is none' * bool(unknown)}. Name them in a copy of the file."
        )
    return tuple(name for name in found if name)


def _sequence(name: object) -> str | None:
    word = re.sub(r"weighted|[^a-z0-9]", "", str(name).lower())
    for each in (word, re.sub(r"^(t[12])w", r"\1", word)):
        ours = scan_names.SEQUENCES.get(each) or _MORE_SEQUENCES.get(each)
        if ours in conventions.MODALITIES:
            return ours
    return None


def outputs(names: Sequence[str], where: str) -> tuple[Head, tuple[int, ...]]:
    """Returns what a model's outputs are, and for each of ours the model's channel.

    Args:
        names: of the model's output channels, in its order.
        where: the file and key, for messages.

    Raises:
        UserError: they are neither the regions nor the classes.
    """
    found = [label_recognition.tissue(str(name)) for name in names]
    heads: dict[Head, tuple[str, ...]] = {
        "regions": conventions.REGIONS,
        "softmax": conventions.CLASSES,
    }
    for head, ours in heads.items():
        if sorted(found) == sorted(ours):
            return head, tuple(found.index(name) for name in ours)
    raise UserError(
        f"{where} is {_shown(names)}: expected the regions enhancing tumor, tumor core, whole "
        "tumor, or the classes background, NCR (necrosis, non-enhancing), ED (edema), ET "
        "(enhancing), each once. Another set of labels cannot teach here."
    )


def label_table(labels: Mapping[str, Any], where: str) -> tuple[Head, tuple[int, ...]]:
    """Returns what the "labels" of nnU-Net's dataset.json make of its outputs; see `outputs`.

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


def _values(value: Any) -> set[int]:
    """Returns the values of a label or region; none of them where they are no whole numbers."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    return set(found) if all(type(each) is int for each in found) else set()


def _shown(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names)) or "empty"
