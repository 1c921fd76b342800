"""Label conventions: the values in label maps of each BraTS release, and of any other task."""

import itertools
from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from jaxtyping import Bool, Num, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import counting
from kdnet_jax.errors import UserError, check_choice

_NCR, _ED, _ET, _CAVITY = 1, 2, 3, 4
_CHALLENGE_WITH_4: Final = {0: 0, 1: _NCR, 2: _ED, 4: _ET}

# The stored values are the task's own numbers: the one convention of tasks other than the glioma.
TASK: Final = "task"

# Value in the file -> class. BraTS wrote ET as 4 until 2021 and as 3 from 2023 on; the 2024 glioma
# release uses 4 for the resection cavity. The Decathlon's 1 is edema and its 2 the core.
# What a resection cavity may count as in training and scores.
CAVITY_CHOICES: Final = ("background", "NCR")
LABEL_CONVENTIONS: Final[dict[str, dict[int, int]]] = {
    "brats2018": _CHALLENGE_WITH_4,
    "brats2019": _CHALLENGE_WITH_4,
    "brats2020": _CHALLENGE_WITH_4,
    "brats2021": _CHALLENGE_WITH_4,
    "brats2023": {0: 0, 1: _NCR, 2: _ED, 3: _ET},
    "brats2024": {0: 0, 1: _NCR, 2: _ED, 3: _ET, 4: _CAVITY},
    "decathlon": {0: 0, 1: _ED, 2: _NCR, 3: _ET},
    "kdnet": {0: 0, 1: _NCR, 2: _ED, 3: _ET},
}


def conventions_of(task: task_lib.Task) -> Mapping[str, Mapping[int, int]]:
    """Returns the label conventions of a task: name -> value in the file -> stored value.

    The glioma has those of BraTS; of any other task the values in the files are its own numbers
    (classes, what is unscored, the ignore label).
    """
    if is_brats(task):
        return LABEL_CONVENTIONS
    numbers = [*range(len(task.classes) + len(task.unscored))]
    if task.ignore is not None:
        numbers.append(task.ignore)
    return {TASK: {number: number for number in numbers}}


def is_brats(task: task_lib.Task) -> bool:
    """Whether a task's cases are read by the layouts, names and label values of BraTS."""
    return task == task_lib.GLIOMA


def own_convention(task: task_lib.Task) -> str:
    """Returns the convention whose values are the task's own numbers."""
    return "kdnet" if is_brats(task) else TASK


def usual_of_masks(task: task_lib.Task) -> str:
    """Returns the convention of masks that are written for a task, where the user chose none."""
    return "brats2021" if is_brats(task) else own_convention(task)


def of_masks(given: str | None, task: task_lib.Task, key: str) -> str:
    """Returns the convention of masks that are written for a task.

    Args:
        given: what the user chose; `None`: brats2021 for the glioma, else the task's own numbers.
        task: what is segmented.
        key: the flag or argument, for messages.

    Raises:
        UserError: there is no such convention for the task.
    """
    if given is None:
        return usual_of_masks(task)
    check_choice(key, given, conventions_of(task))
    return given


def to_classes(
    values: Num[np.ndarray, "*grid"],
    convention: str,
    path: object = "the label map",
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> UInt8[np.ndarray, "*grid"]:
    """Returns the classes that the values of a label map stand for.

    Args:
        values: as stored, of any integer or floating type.
        convention: a key of `conventions_of(task)`.
        path: names the file in messages.
        task: what was segmented. Values that it leaves unscored, and its ignore label, stay.

    Raises:
        UserError: a value is no whole number or is outside the convention; unknown convention.
    """
    table = _table(convention, task)
    found, counts = counting.value_counts(values)
    unknown = ~np.isin(found, list(table))
    if unknown.any():
        raise UserError(_refusal(found, counts, unknown, convention, path, task))
    lookup = np.zeros(max(table) + 1, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[values.astype(np.uint8)]


def check_convention(
    key: str,
    convention: str,
    *,
    auto: Collection[str] = (),
    task: task_lib.Task = task_lib.DEFAULT,
) -> None:
    """Refuses what is neither a known convention nor a list of channels (`channel_names`).

    Args:
        key: the flag, for messages.
        convention: its value.
        auto: what else is allowed.
        task: what was segmented.

    Raises:
        UserError: it is neither.
    """
    if "," not in convention:
        check_choice(key, convention, (*auto, *conventions_of(task)))
        return
    names = channel_names(convention, task)
    foreground, regions = task.classes[1:], task.region_names
    if len(set(names)) < len(names) or {*names} - {task.classes[0]} not in (
        {*foreground},
        {*regions},
    ):
        choices = [", ".join(each) for each in dict.fromkeys((regions, foreground))]
        raise UserError(
            f"{key} is {convention!r}: name each channel of the masks once, in their order: "
            f"{'; or '.join(choices)}, with or without {task.classes[0]}, such as "
            f"{','.join(regions)}"
        )


def channel_names(convention: str, task: task_lib.Task) -> tuple[str, ...]:
    """Returns the channels that a convention such as "TC,WT,ET" lists; none for a known one."""
    known = {name.lower(): name for name in (*task.classes, *task.region_names)}
    parts = convention.split(",") if "," in convention else []
    return tuple(known.get(part.strip().lower(), part) for part in parts)


def _painted(names: Collection[str], task: task_lib.Task) -> dict[str, tuple[frozenset[int], int]]:
    """Returns channel -> the classes that it covers and the one that it gets, in painting order."""
    regions = {each.name: each for each in (task.regions[place] for place in task.painting)}
    if {*regions} <= {*names}:
        return {each.name: (frozenset(each.members), each.paint) for each in regions.values()}
    return {name: (frozenset({i}), i) for i, name in enumerate(task.classes) if i}


def classes_of(
    values: Num[np.ndarray, "x y z *c"],
    convention: str,
    path: object,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> UInt8[np.ndarray, "x y z"]:
    """Returns the classes of a label map, or of a mask with a channel for each region or class.

    Args:
        values: as stored.
        convention: a key of `conventions_of(task)`, or the channels' names (`channel_names`).
            Regions are painted in the task's order.
        path: names the file in messages.
        task: what was segmented.

    Raises:
        UserError: as `to_classes`, or the channels are others than those named: a region lies
            outside of one that contains it, or classes overlap.
    """
    names = channel_names(convention, task)
    if not names:
        return to_classes(values, convention, path, task=task)
    held, _ = counting.value_counts(values)
    if values.shape[3:] != (len(names),) or not np.isin(held, (0, 1)).all():
        raise UserError(
            f"{path}: is no mask of the {len(names)} channels {convention} with 0 and 1 in each; "
            "probabilities must be thresholded first"
        )
    painted = _painted(names, task)
    # "x y z c" -> a mask "x y z" for each channel that is painted.
    masks = {name: values[..., names.index(name)] == 1 for name in painted}
    for outer, name in itertools.combinations(painted, 2):
        (around, _), (members, _) = painted[outer], painted[name]
        nested = members < around
        if not nested and members & around:
            continue  # Regions that share classes may overlap.
        odd = np.count_nonzero(
            masks[name] & ~masks[outer] if nested else masks[name] & masks[outer]
        )
        if odd:
            where = f"outside of {outer}" if nested else f"in {outer} too"
            raise UserError(
                f"{path}: {odd} voxels of {name} lie {where}, if its channels are {convention}. Is "
                "their order right?"
            )
    classes = np.zeros(values.shape[:3], np.uint8)
    for name, mask in masks.items():
        classes[mask] = painted[name][1]
    return classes


def from_classes(
    classes: Num[np.ndarray, "*grid"],
    convention: str,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> UInt8[np.ndarray, "*grid"]:
    """Returns the label values of `convention` for classes, and what a task leaves unscored.

    What the convention has no value for, such as a resection cavity, becomes background.
    """
    table = _table(convention, task)
    lookup = np.zeros(1 + max(max(table.values()), *_unscored(task), 0), np.uint8)
    for value, label_class in table.items():
        lookup[label_class] = value
    return lookup[classes]


def value_names(convention: str, task: task_lib.Task) -> dict[int, str]:
    """Returns the name of each label value that `from_classes` writes but the background's."""
    classes = np.arange(1, len(task.classes))
    values = from_classes(classes, convention, task=task).tolist()
    return dict(zip(values, task.classes[1:], strict=True))


def map_cavity(
    classes: UInt8[np.ndarray, "*grid"],
    choice: str = "background",
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> UInt8[np.ndarray, "*grid"]:
    """Replaces what a task leaves unscored, such as a resection cavity, by a class.

    "background" is the default because BraTS counts the cavity to none of ET, TC and WT. Labels of
    a task without unscored values are returned as they are.

    Raises:
        UserError: `choice` is none of `CAVITY_CHOICES`, or of the task's classes.
    """
    if not task.unscored:
        return classes
    check_choice("data.resection_cavity", choice, cavity_choices(task))
    target = np.uint8(task.classes.index(choice))
    lookup = np.arange(256, dtype=np.uint8)
    lookup[list(_unscored(task))] = target
    return lookup[classes]


def cavity_choices(task: task_lib.Task) -> tuple[str, ...]:
    """Returns the classes that unscored values may count as."""
    return CAVITY_CHOICES if is_brats(task) else task.classes


def _unscored(task: task_lib.Task) -> range:
    return range(len(task.classes), len(task.classes) + len(task.unscored))


def _table(convention: str, task: task_lib.Task) -> Mapping[int, int]:
    known = conventions_of(task)
    check_choice("data.label_convention", convention, known)
    return known[convention]


def _refusal(
    found: Num[np.ndarray, " n"],
    counts: Num[np.ndarray, " n"],
    unknown: Bool[np.ndarray, " n"],
    convention: str,
    path: object,
    task: task_lib.Task,
) -> str:
    """Says which values do not belong, and which conventions all values would belong to."""
    pairs = list(zip(found[unknown].tolist(), counts[unknown].tolist(), strict=True))
    listed = ", ".join(f"{value:g} ({count} voxels)" for value, count in pairs[:5])
    more = f" and {len(pairs) - 5} other values" if len(pairs) > 5 else ""
    if not is_brats(task):
        return (
            f"{path}: holds the label {listed}{more}; the task {task.name} knows only the values "
            f'{_described(task)}. Name every value in "labels" of its dataset.json, or correct '
            "the file (if it was resampled, with nearest-neighbour interpolation)"
        )
    fitting = [
        name for name, table in LABEL_CONVENTIONS.items() if np.isin(found, list(table)).all()
    ]
    advice = (
        f"All values of the file would fit {' or '.join(fitting)}: is the release named right?"
        if fitting
        else "Is this a segmentation, and was it resampled with nearest-neighbour interpolation?"
    )
    allowed = ", ".join(str(value) for value in LABEL_CONVENTIONS[convention])
    return (
        f"{path}: holds the label {listed}{more}; {convention} knows only the values {allowed}. "
        f"{advice}"
    )


def _described(task: task_lib.Task) -> str:
    names = [*task.classes, *task.unscored] + ["ignore"] * (task.ignore is not None)
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))
