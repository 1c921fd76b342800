"""The segmentation task: channels, classes and regions, and how they are read and painted.

A task is described by a `dataset.json` of nnU-Net (version 2), as it is. What nnU-Net's format has
no place for stands under the key "kdnet", which other tools ignore:

    "normalisation"  channel -> one of `NORMALISATIONS`; by default by nnU-Net's reserved names
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
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Integer

from kdnet_jax import documents
from kdnet_jax.errors import UserError, check_choice, nearest

Normalisation = Literal["zscore_nonzero", "zscore", "ct", "rescale", "none"]
NORMALISATIONS: Final = get_args(Normalisation)
FILE_ENDINGS: Final = (".nii.gz", ".nii", ".nrrd", ".mha")
# nnU-Net's reserved channel names, in lower case; every other name means a z-score.
_BY_CHANNEL_NAME: Final[dict[str, Normalisation]] = {
    "ct": "ct",
    "nonorm": "none",
    "rescale_to_0_1": "rescale",
    "zscore": "zscore",
}
# A label map holds bytes.
_LARGEST_CLASS: Final = 250
_OWN_KEY: Final = "kdnet"
_OWN_KEYS: Final = (
    *("normalisation", "aliases", "statistics", "classes", "regions", "fallback", "unscored"),
    *("student", "noun", "descriptions", "title", "channel_noun"),
)
_GLIOMA_FILE: Final = pathlib.Path(__file__).parent / "tasks" / "glioma.json"
GLIOMA_NAME: Final = "glioma"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """An input channel: an MRI sequence, a CT, ...

    Attributes:
        name: as in `channel_names`, in lower case.
        aliases: other names that its files may have.
        normalisation: "zscore_nonzero": (x - mean) / deviation over what is not background, which
            becomes 0; "zscore": the same over all voxels; "ct": cut at the 0.5 and 99.5 percentile
            of the foreground of all training cases, then (x - mean) / deviation of that;
            "rescale": to 0..1 by the volume's own minimum and maximum; "none".
        statistics: low, high, mean and deviation of a "ct" channel; `None` until the training
            cases were measured.
    """

    name: str
    aliases: tuple[str, ...] = ()
    normalisation: Normalisation = "zscore"
    statistics: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """What is scored: a set of classes; regions may overlap.

    Attributes:
        name: as in `labels`.
        members: the classes that belong to it.
        paint: the class that a voxel of it gets where regions are decided one by one.
        fallback: the class that replaces it where it is too small to be true; `None`: it stays.
        description: what it is, for reports; may be empty.
    """

    name: str
    members: tuple[int, ...]
    paint: int
    fallback: int | None = None
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is segmented in what.

    Attributes:
        name: of the task.
        channels: the input channels, in the order of the images' last axis.
        classes: names by class number; 0 is the background.
        regions: what is scored, in the order of reports and of a regions head's outputs.
        painting: positions in `regions`, in the order in which they are painted.
        unscored: names of the stored values from `len(classes)` on that are no class.
        ignore: the stored value of voxels that nobody labelled; in no loss and no score.
        file_ending: of the images and labels.
        student: the channel that a student sees by default; `None`: the user must say.
        noun: what the regions are parts of, for messages and reports.
        title: what is segmented, in a sentence; the name where it is empty.
        channel_noun: what a channel is.
    """

    name: str
    channels: tuple[Channel, ...]
    classes: tuple[str, ...]
    regions: tuple[Region, ...]
    painting: tuple[int, ...]
    unscored: tuple[str, ...] = ()
    ignore: int | None = None
    file_ending: str = ".nii.gz"
    student: str | None = None
    noun: str = "foreground"
    title: str = ""
    channel_noun: str = "channel"

    @functools.cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(channel.name for channel in self.channels)

    @functools.cached_property
    def region_names(self) -> tuple[str, ...]:
        """Names of the regions."""
        return tuple(region.name for region in self.regions)

    @functools.cached_property
    def hull(self) -> tuple[int, ...]:
        """The classes of the union of all regions."""
        return tuple(sorted({member for region in self.regions for member in region.members}))

    @functools.cached_property
    def without_statistics(self) -> "Task":
        """The task as it was before its training cases were measured."""
        plain = tuple(dataclasses.replace(each, statistics=None) for each in self.channels)
        return dataclasses.replace(self, channels=plain)

    @property
    def has_regions(self) -> bool:
        """Whether the regions are others than the classes one by one."""
        return [region.members for region in self.regions] != [
            (number,) for number in range(1, len(self.classes))
        ]

    def channel(self, name: str) -> Channel:
        """Returns the channel of that name."""
        return self.channels[self.modalities.index(name)]

    def region(self, name: str) -> Region:
        """Returns the region of that name."""
        return self.regions[self.region_names.index(name)]

    def mask(self, classes: Integer[np.ndarray, "*grid"], region: str) -> Bool[np.ndarray, "*grid"]:
        """Returns the voxels of `classes` that belong to a region."""
        return np.isin(classes, self.region(region).members)

    def hull_mask(self, classes: Integer[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
        """Returns the voxels of `classes` that belong to any region."""
        return np.isin(classes, self.hull)

    def read_modalities(self, text: str, key: str) -> tuple[str, ...]:
        """Returns the channels of a comma-separated text, in the task's order.

        Raises:
            UserError: for an empty text, an unknown or a repeated channel.
        """
        names = [name.strip().lower() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in self.modalities:
                raise UserError(
                    f"{key} holds {name!r}{nearest(name, self.modalities)} (the sequences are "
                    f"{', '.join(self.modalities)})."
                )
        if not names or len(set(names)) < len(names):
            raise UserError(f"{key} is {text!r}: name each sequence once, separated by commas.")
        return tuple(name for name in self.modalities if name in names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that the task says, shortened."""
        text = json.dumps(self.to_dataset_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dataset_json(self) -> dict[str, Any]:
        """Returns the task as `from_dataset_json` reads it, without a number of cases."""
        painted = [self.regions[place] for place in self.painting]
        labels: dict[str, Any] = {"background": 0}
        for region in painted:
            labels[region.name] = _plain(region.members)
        if self.ignore is not None:
            labels["ignore"] = self.ignore
        document: dict[str, Any] = {
            "name": self.name,
            "channel_names": {str(i): name for i, name in enumerate(self.modalities)},
            "labels": labels,
            "file_ending": self.file_ending,
        }
        if self.has_regions:
            document["regions_class_order"] = [region.paint for region in painted]
        own = {
            "normalisation": {each.name: each.normalisation for each in self.channels},
            "aliases": {each.name: list(each.aliases) for each in self.channels if each.aliases},
            "statistics": {
                each.name: list(each.statistics) for each in self.channels if each.statistics
            },
            "classes": list(self.classes),
            "regions": list(self.region_names),
            "fallback": {
                each.name: self.classes[each.fallback]
                for each in self.regions
                if each.fallback is not None
            },
            "unscored": list(self.unscored),
            "student": self.student,
            "noun": self.noun,
            "descriptions": {each.name: each.description for each in self.regions},
            "title": self.title,
            "channel_noun": self.channel_noun,
        }
        own["descriptions"] = {name: text for name, text in own["descriptions"].items() if text}
        return document | {_OWN_KEY: {key: value for key, value in own.items() if value}}


def read(text: str | os.PathLike[str]) -> Task:
    """Returns the task that `--config.task` or `--task` names.

    Args:
        text: "glioma", or a `dataset.json`, or the folder that holds it.

    Raises:
        UserError: there is no such file, or it describes no task.
    """
    if str(text) == GLIOMA_NAME:
        return GLIOMA
    path = pathlib.Path(text)
    if path.is_dir():
        path = path / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"task is {str(text)!r}: it is neither {GLIOMA_NAME} nor a file; expected the path of "
            "a dataset.json of nnU-Net, or of the folder that holds it."
        )
    return from_dataset_json(documents.read_object(path), str(path))


def to_json(task: Task) -> Any:
    """Returns the task as this project's own files hold it: the glioma by name, others whole."""
    return GLIOMA_NAME if task == GLIOMA else task.to_dataset_json()


def from_json(value: Any, where: str) -> Task:
    """Returns the task that `to_json` wrote; `where` names it in messages.

    Raises:
        UserError: it is neither "glioma" nor what `from_dataset_json` reads.
    """
    return GLIOMA if value == GLIOMA_NAME else from_dataset_json(_object(value, where), where)


def from_dataset_json(document: Mapping[str, Any], where: str) -> Task:
    """Returns the task of a `dataset.json`.

    Args:
        document: its content.
        where: names it in messages.

    Raises:
        UserError: a key is missing or cannot be.
    """
    own = _object(document.get(_OWN_KEY, {}), f"{where}: {_OWN_KEY!r}")
    for key in own:
        check_choice(f"{where}: a key of {_OWN_KEY!r}", key, _OWN_KEYS)
    channels = _read_channels(document, own, where)
    ending = document.get("file_ending", ".nii.gz")
    check_choice(f"{where}: 'file_ending'", ending, FILE_ENDINGS)
    values, ignore = _read_labels(document, where)
    regions = _read_regions(values, document, where)
    ordered = _ordered(regions, own, where)
    names = _class_names(regions, own, where)
    unscored = _texts(own.get("unscored", []), f"{where}: 'unscored'")
    _check_ignore(ignore, len(names) + len(unscored), where)
    student = own.get("student")
    if student is not None:
        check_choice(f"{where}: 'student'", student, [each.name for each in channels])
    return Task(
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
    )


# ------------------------------------------------------------------- the keys of a dataset.json


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r:.80}; expected an object of names and values.")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{what} is {value!r:.80}; expected a list of names.")
    return tuple(value)


def _read_channels(
    document: Mapping[str, Any], own: Mapping[str, Any], where: str
) -> tuple[Channel, ...]:
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
        Channel(
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
    own: Mapping[str, Any], key: str, names: Sequence[str], where: str
) -> dict[str, Any]:
    values = _object(own.get(key, {}), f"{where}: {key!r}")
    lower = {str(name).lower(): value for name, value in values.items()}
    for name in lower:
        check_choice(f"{where}: a channel of {key!r}", name, names)
    return lower


def _normalisation(name: str, chosen: Mapping[str, Any], where: str) -> Normalisation:
    found = chosen.get(name, _BY_CHANNEL_NAME.get(name, "zscore"))
    check_choice(f"{where}: the normalisation of {name}", found, NORMALISATIONS)
    return found


def _statistics(
    name: str, given: Mapping[str, Any], where: str
) -> tuple[float, float, float, float] | None:
    if name not in given:
        return None
    value = given[name]
    numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    if not numbers or len(value) != 4 or not (value[0] < value[1] and value[3] > 0):
        raise UserError(
            f"{where}: the statistics of {name} are {value!r:.80}; expected low, high, mean and "
            "deviation, low below high and the deviation above 0."
        )
    low, high, mean, deviation = map(float, value)
    return low, high, mean, deviation


def _read_labels(
    document: Mapping[str, Any], where: str
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Returns name -> values of what is segmented, and the value of the ignore label."""
    labels = _object(document.get("labels"), f"{where}: 'labels'")
    # The Decathlon writes {"0": "background", "1": ...}.
    if labels and all(key.isdigit() for key in labels):
        labels = {str(name): int(value) for value, name in labels.items()}
    values: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(n) is int and 0 <= n <= _LARGEST_CLASS for n in numbers):
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
    values: Mapping[str, tuple[int, ...]], document: Mapping[str, Any], where: str
) -> tuple[Region, ...]:
    order = document.get("regions_class_order")
    if order is None:
        joint = [name for name, members in values.items() if len(members) > 1]
        if joint:
            raise UserError(
                f"{where}: {joint[0]!r} is a region of several values, but there is no "
                "'regions_class_order'; expected one value for each region, in their order."
            )
        order = [members[0] for members in values.values()]
    known = {member for members in values.values() for member in members}
    numbers = isinstance(order, list) and all(type(value) is int for value in order)
    if not numbers or len(order) != len(values) or not set(order) <= known:
        raise UserError(
            f"{where}: 'regions_class_order' is {order!r:.80}; expected one of the labels' values "
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
    plain = document.get("regions_class_order") is None
    regions = [
        Region(name=name, members=members, paint=paint)
        for (name, members), paint in zip(values.items(), order, strict=True)
    ]
    if plain and len({region.members for region in regions}) < len(regions):
        raise UserError(f"{where}: two labels have the same value.")
    return tuple(sorted(regions, key=lambda each: each.members) if plain else regions)


def _class_names(regions: Sequence[Region], own: Mapping[str, Any], where: str) -> tuple[str, ...]:
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


def _ordered(regions: Sequence[Region], own: Mapping[str, Any], where: str) -> tuple[Region, ...]:
    by_name = {region.name: region for region in regions}
    order = own.get("regions", list(by_name))
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(by_name):
        raise UserError(
            f"{where}: 'regions' is {order!r:.120}; expected each of {', '.join(by_name)} once."
        )
    return tuple(by_name[name] for name in order)


def _with_fallbacks(
    regions: Sequence[Region], classes: Sequence[str], own: Mapping[str, Any], where: str
) -> tuple[Region, ...]:
    given = _object(own.get("fallback", {}), f"{where}: 'fallback'")
    for name, target in given.items():
        check_choice(f"{where}: a region of 'fallback'", name, [each.name for each in regions])
        check_choice(f"{where}: the fallback of {name}", target, classes)
    return tuple(
        dataclasses.replace(each, fallback=classes.index(given[each.name]))
        if each.name in given
        else each
        for each in regions
    )


def _described(regions: Sequence[Region], own: Mapping[str, Any], where: str) -> tuple[Region, ...]:
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


GLIOMA: Final = from_dataset_json(documents.read_object(_GLIOMA_FILE), str(_GLIOMA_FILE))
# Where no task is named.
DEFAULT: Final = GLIOMA
