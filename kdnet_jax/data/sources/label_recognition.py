"""Recognition of what the values of a folder of masks mean."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, typed
from kdnet_jax.data.sources import labels, layouts
from kdnet_jax.errors import UserError, first_few

AUTO: Final = "auto"
# One name for each meaning, in the order in which they are named and taken.
_MEANINGS: Final = ("brats2021", "brats2023", "brats2024", "decathlon")
# nnU-Net keeps it beside predictions and labelsTr, and two folders above a fold's validation.
_DATASET_JSON: Final = "dataset.json"
_LEVELS_ABOVE: Final = {"labelstr": 1, "labelsts": 1, "validation": 2}
# The first pattern that is found names the tissue: "non-enhancing" is asked for before "enhancing",
# and edema before both: BraTS calls it "surrounding non-enhancing FLAIR hyperintensity" since 2023.
_TISSUES: Final = (
    ("background", r"background|^bg$"),
    ("cavity", r"cavity|resection|^rc\b"),
    ("ED", r"edema|^ed\b|snfh|peritumou?ral|hyperintens"),
    ("NCR", r"\b(non|not|un).*enhanc|necro|^ncr|^net"),
    ("ET", r"enhanc|^et\b"),
    ("TC", r"core|^tc\b"),
    ("WT", r"whole|^wt\b"),
)
_CLASS_OF: Final = {name: number for number, name in enumerate(task_lib.GLIOMA.classes)} | {
    "cavity": len(task_lib.GLIOMA.classes)
}


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A key of `labels.LABEL_CONVENTIONS`, and why it was taken."""

    convention: str
    why: str


def recognise(
    asked: str,
    flag: str,
    folder: pathlib.Path,
    held: Mapping[pathlib.Path, Collection[int]],
    release: str | None,
) -> Recognised:
    """Returns the label convention of a folder of masks.

    What was asked for counts first, then what lies beside the masks (a run's summary, nnU-Net's
    or the Decathlon's dataset.json), then the release of their names, then their values alone.

    Args:
        asked: a convention, or `AUTO`.
        flag: the option that settles it, for messages.
        folder: where the masks lie.
        held: the values in each mask of the folder.
        release: that of the masks' own names, where they have the layout of one.

    Raises:
        UserError: nothing fits, more than one meaning does, or what lies beside cannot be read.
    """
    values = frozenset().union(*held.values())
    if asked != AUTO:
        found = Recognised(asked, f"as {flag} says")
    else:
        found = _beside(folder, flag)
        if found is None and release in labels.LABEL_CONVENTIONS:
            found = Recognised(release, f"the names are those of {release}")
        if found is None:
            found = _from_values(folder, held, values, flag)
    odd = [path.name for path in held if not _fits(found.convention, held[path])]
    if odd:
        raise UserError(
            f"{folder}: {found.convention} was taken ({found.why}), which knows the values "
            f"{_shown(labels.LABEL_CONVENTIONS[found.convention])}, but the masks hold "
            f"{_shown(values)}: {first_few(odd)}. All values would fit "
            f"{' or '.join(_fitting(values)) or 'no known convention'} ({flag})"
        )
    return found


# ------------------------------------------------------------------------- by the values alone


def _unknown_values(
    folder: pathlib.Path, masks: Mapping[pathlib.Path, Collection[int]], values: Collection[int]
) -> str:
    """Says which masks hold values of no convention, or that only all of them together do."""
    odd = {path: held for path, held in masks.items() if not _fitting(held)}
    known = ", ".join(labels.LABEL_CONVENTIONS)
    if not odd:
        return f"{folder}: the masks hold {_shown(values)}, together those of none of {known}"
    path, held = next(iter(odd.items()))
    more = f". So do {len(odd) - 1} more" if len(odd) > 1 else ""
    return f"{path}: holds {_shown(held)}, which is none of {known}{more}"


def _from_values(
    folder: pathlib.Path,
    masks: Mapping[pathlib.Path, Collection[int]],
    values: Collection[int],
    flag: str,
) -> Recognised:
    fitting = _fitting(values)
    # Conventions that give these values the same classes are one meaning.
    meanings: dict[tuple[int, ...], str] = {}
    for name in fitting:
        meanings.setdefault(_meaning(name, values), name)
    held = f"the masks hold {_shown(values)}"
    if len(meanings) == 1:
        why = "which mean the same in all that know them" if fitting[1:] else "which no other knows"
        return Recognised(fitting[0], f"{held}, {why}")
    if fitting == ["brats2021", "brats2024"] and not _named_2023(masks):
        return Recognised("brats2021", f"{held}: 4 and no 3, as BraTS wrote them until 2021")
    if not fitting:
        raise UserError(_unknown_values(folder, masks, values))
    why = f"{folder}: {held}, so their convention is ambiguous"
    choices = "; ".join(f"{flag}={name} if {_described(name)}" for name in meanings.values())
    raise UserError(f"{why}. Set {choices}")


def _fits(convention: str, values: Collection[int]) -> bool:
    return set(values) <= set(labels.LABEL_CONVENTIONS[convention])


def _fitting(values: Collection[int]) -> list[str]:
    return [name for name in _MEANINGS if _fits(name, values)]


def _meaning(convention: str, values: Collection[int]) -> tuple[int, ...]:
    return tuple(labels.LABEL_CONVENTIONS[convention][value] for value in sorted(values))


def _named_2023(paths: Collection[pathlib.Path]) -> bool:
    """Whether masks are named as from BraTS 2023 on, where a 4 can be a resection cavity."""
    return any(layouts.NAMES["brats2023"].match(path.name) for path in paths)


def _described(convention: str) -> str:
    names = (*task_lib.GLIOMA.classes, *task_lib.GLIOMA.unscored)
    table = labels.LABEL_CONVENTIONS[convention]
    return ", ".join(f"{value} is {names[table[value]]}" for value in table if value)


def _shown(values: Collection[int]) -> str:
    return ", ".join(map(str, sorted(values)))


# ------------------------------------------------------------------------- by what lies beside


def _beside(folder: pathlib.Path, flag: str) -> Recognised | None:
    summary = folder.parent / "evaluation" / "summary.json"
    if folder.name == "predictions" and summary.is_file():
        return Recognised(_run_labels(summary, flag), f"as {summary} says")
    above = _LEVELS_ABOVE.get(folder.name.lower(), 0)
    for place in (folder, *folder.parents[:above]):
        if (path := place / _DATASET_JSON).is_file():
            return Recognised(_from_dataset_json(path, flag), f"as {path} says")
    return None


def _run_labels(path: pathlib.Path, flag: str) -> str:
    convention = documents.read_object(path).get("labels")
    if convention not in labels.LABEL_CONVENTIONS:
        raise UserError(
            f'{path}: "labels" is {convention!r}; expected a label convention. Set {flag}'
        )
    return convention


def _from_dataset_json(path: pathlib.Path, flag: str) -> str:
    content = documents.read_object(path)
    table = read_label_table(content)
    for name in _MEANINGS:
        known = labels.LABEL_CONVENTIONS[name]
        if table and all(known.get(value) == label_class for value, label_class in table.items()):
            return name
    raise UserError(
        f'{path}: its "labels" {json.dumps(content.get("labels"))} are not understood as one of '
        f"{', '.join(_MEANINGS)}. If one of them is meant, set {flag}; else convert the masks"
    )


def read_label_table(content: typed.JsonView) -> dict[int, int] | None:
    """Returns value -> class of a dataset.json, None where it is not understood.

    The Decathlon and nnU-Net 1 write {"1": "edema"}, nnU-Net 2 {"edema": 1}, and for
    region-based training {"whole tumor": [1, 2, 3]} with `regions_class_order`: regions are
    painted one over the other in the order of "labels", each with its number of that order.
    """
    given = content.get("labels")
    if not isinstance(given, dict):
        return None
    swapped = all(str(key).isdigit() for key in given)
    pairs = [(text, key) if swapped else (key, text) for key, text in given.items()]
    named = {tissue(str(name)): value for name, value in pairs}
    if "regions_class_order" in content:
        return _region_table(named, content["regions_class_order"])
    numbers = {name: str(value) for name, value in named.items()}
    understood = len(named) == len(given) and numbers.keys() <= _CLASS_OF.keys()
    if not understood or not all(number.isdigit() for number in numbers.values()):
        return None
    return {int(number): _CLASS_OF[name] for name, number in numbers.items()}


def _region_table(named: typed.JsonView, order: object) -> dict[int, int] | None:
    """Returns value -> class of nested regions; None where the two ways to read them differ."""
    regions = {name: value for name, value in named.items() if name != "background"}
    given = order if isinstance(order, list) else []
    numbers = [number for number in given if type(number) is int]
    if tuple(regions) != ("WT", "TC", "ET") or len(numbers) != 3 or len(given) != 3:
        return None
    whole, core, enhancing = (set(_as_list(value)) for value in regions.values())
    by_sets = (whole - core, core - enhancing, enhancing)
    if not core < whole or not enhancing < core or by_sets != tuple({value} for value in numbers):
        return None
    return {0: 0} | dict(
        zip(numbers, (_CLASS_OF[name] for name in ("ED", "NCR", "ET")), strict=True)
    )


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def tissue(name: str) -> str:
    """Returns the tissue that a label's name means, or the name itself where none is known."""
    text = name.strip().lower()
    return next((tissue for tissue, pattern in _TISSUES if re.search(pattern, text)), text)
