"""Tasks as files: nnU-Net's `dataset.json` (version 2), read into a `task.Task` and written.

What nnU-Net's format has no place for is under the key "kdnet", which other tools ignore:

    "normalisation"  channel -> one of `task.NORMALISATIONS`; by default by nnU-Net's reserved names
    "aliases"        channel -> list of other names of its files in folders of one's own
    "statistics"     channel -> [low, high, mean, deviation] of a "ct" channel
    "classes"        names of the classes by number, background first
    "regions"        the order of the regions in reports and outputs; by default that of "labels",
                     in which they are painted
    "fallback"       region -> the class that replaces it where it is too small to be true
    "unscored"       names of the stored values above the classes and below the ignore label
    "student"        the channel that a student sees by default
    "noun"           what the regions are parts of, in messages and reports
    "descriptions"   region -> what it is, for reports
    "title"          what is segmented, in a sentence: "It segments a glioma ..."
    "channel_noun"   what a channel is, such as "MRI sequence"
    "crops_zeros"    true: scans with their skull are cut down to what is not 0, as nnU-Net does
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, typed
from kdnet_jax.errors import UserError, check_choice

FILE_ENDINGS: Final = (".nii.gz", ".nii", ".nrrd", ".mha")
# nnU-Net's reserved channel names, in lower case; every other name means a z-score.
_BY_CHANNEL_NAME: Final[dict[str, task_lib.Normalisation]] = {
    "ct": "ct",
    "nonorm": "none",
    "rescale_to_0_1": "rescale",
    "zscore": "zscore",
}
# A label map holds bytes.
_LARGEST_CLASS: Final = 250
OWN_KEY: Final = "kdnet"
_OWN_KEYS: Final = (
    *("normalisation", "aliases", "statistics", "classes", "regions", "fallback", "unscored"),
    *("student", "noun", "descriptions", "title", "channel_noun", "crops_zeros"),
)
# In a run's folder: its task with what was measured of the data, unless it is the default one.
TASK_FILE: Final = "task.json"
# Of a model that was handed over; it holds the task among others.
MODEL_FILE: Final = "model.json"
_FILES: Final = ("dataset.json", TASK_FILE, MODEL_FILE)


def read(text: str | os.PathLike[str]) -> task_lib.Task:
    """Returns the task that `--config.task` or `--task` names.

    Args:
        text: "glioma", or a `dataset.json`, or the folder that holds it, of a run or of a model.

    Raises:
        UserError: there is no such file, or it describes no task.
    """
    if str(text) == task_lib.GLIOMA_NAME:
        return task_lib.GLIOMA
    path = pathlib.Path(text)
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise UserError(
            f"task is {str(text)!r}: it is neither {task_lib.GLIOMA_NAME} nor a file; expected the "
            "path of a dataset.json of nnU-Net, or its folder, or the folder of a run or a model."
        )
    document = documents.read_object(path)
    if path.name == MODEL_FILE and "task" in document:
        return from_json(document["task"], f"{path}: 'task'")
    return parse(document, str(path))


def fingerprint(task: task_lib.Task) -> str:
    """Returns the shortened SHA-256 of all but the name, which may be that of a folder."""
    described = {key: value for key, value in describe(task).items() if key != "name"}
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_json(task: task_lib.Task) -> str | dict[str, object]:
    """Returns the task as this project's own files hold it: the glioma by name, others in full."""
    return task_lib.GLIOMA_NAME if task == task_lib.GLIOMA else describe(task)


def from_json(value: object, where: str) -> task_lib.Task:
    """Returns the task that `to_json` wrote; `where` names it in messages.

    Raises:
        UserError: it is neither "glioma" nor what `parse` reads.
    """
    if value == task_lib.GLIOMA_NAME:
        return task_lib.GLIOMA
    return parse(_object(value, where), where)


def describe(task: task_lib.Task) -> typed.Json:
    """Returns the task as `parse` reads it, without a number of cases."""
    painted = [task.regions[place] for place in task.painting]
    labels: dict[str, int | list[int]] = {"background": 0}
    for region in painted:
        labels[region.name] = _plain(region.members)
    if task.ignore is not None:
        labels["ignore"] = task.ignore
    document: dict[str, object] = {
        "name": task.name,
        "channel_names": {str(i): name for i, name in enumerate(task.modalities)},
        "labels": labels,
        "file_ending": task.file_ending,
    }
    if task.has_regions:
        document["regions_class_order"] = [region.paint for region in painted]
    own = {
        "normalisation": {each.name: each.normalisation for each in task.channels},
        "aliases": {each.name: list(each.aliases) for each in task.channels if each.aliases},
        "statistics": {name: list(values) for name, values in task.statistics.items()},
        "classes": list(task.classes),
        "regions": list(task.region_names),
        "fallback": {
            each.name: task.classes[each.fallback]
            for each in task.regions
            if each.fallback is not None
        },
        "unscored": list(task.unscored),
        "student": task.student,
        "noun": task.noun,
        "descriptions": {each.name: each.description for each in task.regions if each.description},
        "title": task.title,
        "channel_noun": task.channel_noun,
        "crops_zeros": task.crops_zeros,
    }
    return document | {OWN_KEY: {key: value for key, value in own.items() if value}}


def parse(document: Mapping[str, object], where: str) -> task_lib.Task:
    """Returns the task of a `dataset.json`.

    Args:
        document: its content.
        where: names it in messages.

    Raises:
        UserError: a key is missing or invalid.
    """
    own = _object(document.get(OWN_KEY, {}), f"{where}: {OWN_KEY!r}")
    for key in own:
        check_choice(f"{where}: a key of {OWN_KEY!r}", key, _OWN_KEYS)
    channels = _read_channels(document, own, where)
    ending = document.get("file_ending", ".nii.gz")
    ending = check_choice(f"{where}: 'file_ending'", ending, FILE_ENDINGS)
    values, ignore = _read_labels(document, where)
    regions = _read_regions(values, document, where)
    ordered = _ordered(regions, own, where)
    names = _class_names(regions, own, where)
    unscored = _texts(own.get("unscored", []), f"{where}: 'unscored'")
    _check_ignore(ignore, len(names) + len(unscored), where)
    student = own.get("student")
    if student is not None:
        student = check_choice(f"{where}: 'student'", student, [each.name for each in channels])
    return task_lib.Task(
        name=str(document.get("name") or pathlib.Path(where).parent.name or "task"),
        channels=channels,
        classes=names,
        regions=_described(_with_fallbacks(ordered, names, own, where), own, where),
        painting=tuple(ordered.index(region) for region in regions),
        unscored=unscored,
        ignore=ignore,
        file_ending=ending,
        student=student,
        noun=str(own.get("noun", "foreground")),
        title=str(own.get("title", "")),
        channel_noun=str(own.get("channel_noun", "channel")),
        crops_zeros=_flag(own.get("crops_zeros", False), f"{where}: 'crops_zeros'"),
    )


# ------------------------------------------------------------------- the keys of a dataset.json


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r:.80}; expected an object of names and values.")
    return value


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} is {value!r:.80}; expected true or false.")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    texts = [each for each in value if isinstance(each, str)] if isinstance(value, list) else None
    if texts is None or texts != value:
        raise UserError(f"{what} is {value!r:.80}; expected a list of names.")
    return tuple(texts)


def _integers(value: object) -> list[int]:
    """Returns a list of whole numbers as it is, and no number for anything else."""
    listed = value if isinstance(value, list) else []
    numbers = [each for each in listed if type(each) is int]
    return numbers if len(numbers) == len(listed) else []


def _read_channels(
    document: Mapping[str, object], own: Mapping[str, object], where: str
) -> tuple[task_lib.Channel, ...]:
    # "modality" is what the Medical Segmentation Decathlon calls it.
    listed = _object(
        document.get("channel_names", document.get("modality")), f"{where}: 'channel_names'"
    )
    if sorted(listed) != sorted(map(str, range(len(listed)))) or not listed:
        raise UserError(
            f"{where}: 'channel_names' has the keys {', '.join(listed) or '(none)'}; expected 0, "
            "1, ... each once."
        )
    names = [str(listed[str(i)]).strip().lower() for i in range(len(listed))]
    if len(set(names)) < len(names) or not all(names) or any("," in name for name in names):
        raise UserError(
            f"{where}: 'channel_names' are {', '.join(names)}; expected a name of its own for each "
            "channel, without commas."
        )
    parts = {
        key: _by_channel(own, key, names, where)
        for key in ("normalisation", "aliases", "statistics")
    }
    return tuple(
        task_lib.Channel(
            name=name,
            aliases=tuple(
                alias.lower()
                for alias in _texts(
                    parts["aliases"].get(name, []), f"{where}: the aliases of {name}"
                )
            ),
            normalisation=_normalisation(name, parts["normalisation"], where),
            statistics=_statistics(name, parts["statistics"], where),
        )
        for name in names
    )


def _by_channel(
    own: Mapping[str, object], key: str, names: Sequence[str], where: str
) -> dict[str, object]:
    values = _object(own.get(key, {}), f"{where}: {key!r}")
    lower = {str(name).lower(): value for name, value in values.items()}
    for name in lower:
        check_choice(f"{where}: a channel of {key!r}", name, names)
    return lower


def _normalisation(name: str, chosen: Mapping[str, object], where: str) -> task_lib.Normalisation:
    found = chosen.get(name, _BY_CHANNEL_NAME.get(name, "zscore"))
    return check_choice(f"{where}: the normalisation of {name}", found, task_lib.NORMALISATIONS)


def _statistics(
    name: str, given: Mapping[str, object], where: str
) -> tuple[float, float, float, float] | None:
    if name not in given:
        return None
    value = given[name]
    listed = value if isinstance(value, list) else []
    numbers = [float(each) for each in listed if type(each) is int or type(each) is float]
    if len(numbers) != 4 or len(listed) != 4 or not (numbers[0] < numbers[1] and numbers[3] > 0):
        raise UserError(
            f"{where}: the statistics of {name} are {value!r:.80}; expected low, high, mean and "
            "deviation, low below high and the deviation above 0."
        )
    low, high, mean, deviation = numbers
    return low, high, mean, deviation


def _read_labels(
    document: Mapping[str, object], where: str
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Returns name -> values of what is segmented, and the value of the ignore label."""
    labels = _object(document.get("labels"), f"{where}: 'labels'")
    # The Decathlon writes {"0": "background", "1": ...}.
    if labels and all(key.isdigit() for key in labels):
        labels = {str(name): int(number) for number, name in labels.items()}
    values: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        numbers = _integers(value if isinstance(value, list) else [value])
        if not numbers or not all(0 <= number <= _LARGEST_CLASS for number in numbers):
            raise UserError(
                f"{where}: the label {name!r} is {value!r:.80}; expected a whole number from 0 to "
                f"{_LARGEST_CLASS}, or a list of such for a region."
            )
        values[str(name)] = tuple(sorted(set(numbers)))
    if values.pop("background", None) != (0,):
        raise UserError(f"{where}: 'labels' has no 'background' with the value 0.")
    ignore = values.pop("ignore", None)
    if not values:
        raise UserError(f"{where}: 'labels' names nothing but the background.")
    if "mean" in (name.lower() for name in values):
        raise UserError(
            f"{where}: a label is called 'mean', which is what the mean over the regions is called "
            "in tables; expected another name."
        )
    if ignore is not None and len(ignore) != 1:
        raise UserError(f"{where}: the label 'ignore' is {list(ignore)}; expected one number.")
    return values, None if ignore is None else ignore[0]


def _read_regions(
    values: Mapping[str, tuple[int, ...]], document: Mapping[str, object], where: str
) -> tuple[task_lib.Region, ...]:
    given = document.get("regions_class_order")
    if given is None:
        joint = [name for name, members in values.items() if len(members) > 1]
        if joint:
            raise UserError(
                f"{where}: {joint[0]!r} is a region of several values, but there is no "
                "'regions_class_order'; expected one value for each region, in their order."
            )
    order = [members[0] for members in values.values()] if given is None else _integers(given)
    known = {member for members in values.values() for member in members}
    if len(order) != len(values) or not set(order) <= known:
        raise UserError(
            f"{where}: 'regions_class_order' is {given!r:.80}; expected one of the labels' values "
            f"for each of {', '.join(values)}, in this order."
        )
    if 0 in known:
        raise UserError(f"{where}: a region holds the value 0, which is the background.")
    if known != set(range(1, len(known) + 1)):
        raise UserError(
            f"{where}: 'labels' have the values {', '.join(map(str, sorted(known)))}; expected "
            "1, 2, 3, ... without a gap."
        )
    # Regions of one class each may come in any order; classes go by their number.
    regions = [
        task_lib.Region(name=name, members=members, paint=paint)
        for (name, members), paint in zip(values.items(), order, strict=True)
    ]
    if given is None and len({region.members for region in regions}) < len(regions):
        raise UserError(f"{where}: two labels have the same value.")
    return tuple(sorted(regions, key=lambda each: each.members) if given is None else regions)


def _class_names(
    regions: Sequence[task_lib.Region], own: Mapping[str, object], where: str
) -> tuple[str, ...]:
    count = 1 + max(member for region in regions for member in region.members)
    if "classes" in own:
        names = _texts(own["classes"], f"{where}: 'classes'")
        if len(names) != count or len(set(names)) < count:
            raise UserError(
                f"{where}: 'classes' is {names!r:.120}; expected {count} different names, the "
                "background's first."
            )
        return names
    # A class is named by the region that it is alone in, else by its number.
    alone = {region.members[0]: region.name for region in regions if len(region.members) == 1}
    return ("background", *(alone.get(number, f"class {number}") for number in range(1, count)))


def _ordered(
    regions: Sequence[task_lib.Region], own: Mapping[str, object], where: str
) -> tuple[task_lib.Region, ...]:
    by_name = {region.name: region for region in regions}
    order = own.get("regions", list(by_name))
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(by_name):
        raise UserError(
            f"{where}: 'regions' is {order!r:.120}; expected each of {', '.join(by_name)} once."
        )
    return tuple(by_name[name] for name in order)


def _with_fallbacks(
    regions: Sequence[task_lib.Region],
    classes: Sequence[str],
    own: Mapping[str, object],
    where: str,
) -> tuple[task_lib.Region, ...]:
    given = _object(own.get("fallback", {}), f"{where}: 'fallback'")
    targets: dict[str, int] = {}
    for name, target in given.items():
        check_choice(f"{where}: a region of 'fallback'", name, [each.name for each in regions])
        check_choice(f"{where}: the fallback of {name}", target, classes)
        targets[name] = classes.index(str(target))
    return tuple(dataclasses.replace(each, fallback=targets.get(each.name)) for each in regions)


def _described(
    regions: Sequence[task_lib.Region], own: Mapping[str, object], where: str
) -> tuple[task_lib.Region, ...]:
    given = _object(own.get("descriptions", {}), f"{where}: 'descriptions'")
    for name in given:
        check_choice(f"{where}: a region of 'descriptions'", name, [each.name for each in regions])
    return tuple(
        dataclasses.replace(each, description=str(given.get(each.name, ""))) for each in regions
    )


def _check_ignore(ignore: int | None, expected: int, where: str) -> None:
    if ignore is not None and ignore != expected:
        raise UserError(
            f"{where}: the label 'ignore' is {ignore}; expected the number after the last one, "
            f"{expected}."
        )


def _plain(members: tuple[int, ...]) -> int | list[int]:
    return members[0] if len(members) == 1 else list(members)
