"""Layouts of a task's files: nnU-Net's, the Decathlon's, BIDS, or one's own."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import documents
from kdnet_jax.data.checks import problems
from kdnet_jax.data.sources import layouts, names, own_layouts
from kdnet_jax.errors import UnknownLayoutError, UserError, first_few

NNUNET, DECATHLON, USER = "nnunet", "decathlon", "user"
_IMAGES, _LABELS, _DATASET_JSON = "imagesTr", "labelsTr", "dataset.json"
_NUMBERED: Final = re.compile(r"(.+)_(\d{4})")


def choose(
    files: Sequence[layouts.File],
    root: pathlib.Path,
    task: task_lib.Task,
    report: problems.Report,
) -> tuple[dict[str, layouts.Groups], list[str]]:
    """Returns the layout's name -> its files by case, and notes on the choice.

    Raises:
        UserError: nothing is recognised, or what is there contradicts the task.
    """
    images = [file for file in files if file.folder.name.lower() == _IMAGES.lower()]
    if not images:
        return {USER: _own(files, root, task, report)}, []
    dataset = _only_dataset(images, root, report)
    notes: list[str] = []
    order = channel_order(dataset, task, notes)
    images = [file for file in images if file.folder.parent == dataset]
    references = [
        _renamed(file, file.stem, names.LABEL)
        for file in files
        if file.folder.parent == dataset and file.folder.name.lower() == _LABELS.lower()
    ]
    labelled = {file.stem for file in references}
    # A label CASE.nii.gz is of the image CASE.nii.gz or of images CASE_0000.nii.gz.
    single = any(file.stem in labelled for file in images)
    numbered = [file for file in images if not single and _NUMBERED.fullmatch(file.stem)]
    if not numbered:
        scans = [_renamed(file, file.stem, None) for file in images]
        return {DECATHLON: _by_case([*scans, *references], dataset)}, notes
    scans = _of_channels(numbered, order, task, report)
    return {NNUNET: _by_case([*scans, *references], dataset)}, notes


def _own(
    files: Sequence[layouts.File],
    root: pathlib.Path,
    task: task_lib.Task,
    report: problems.Report,
) -> layouts.Groups:
    groups = own_layouts.group(files, root, report)
    described = [name for name in (_DATASET_JSON, _LABELS) if (root / name).exists()]
    if not groups and described:
        raise UnknownLayoutError(
            f"{root}: holds {' and '.join(described)}, but no {_IMAGES} with {task.file_ending} "
            f"files; expected {_IMAGES}/CASE_0000{task.file_ending} and so on, a file for each of "
            f"the channels {', '.join(task.modalities)}"
        )
    return groups


def _only_dataset(
    images: Iterable[layouts.File], root: pathlib.Path, report: problems.Report
) -> pathlib.Path:
    """Returns the folder that holds imagesTr; the first one where `report` returns."""
    datasets = list(dict.fromkeys(file.folder.parent for file in images))
    if len(datasets) > 1:
        message = (
            f"{root}: holds several datasets: {first_few([*map(str, datasets)])}. Give the "
            "folder of one of them"
        )
        report(UserError(message), "", root)
    if not datasets[0].is_relative_to(root):
        message = f"{root}: is the folder of the images alone. Give {datasets[0]}, which holds it"
        report(UserError(message), "", root)
    return datasets[0]


def _renamed(file: layouts.File, case_id: str, sequence: str | None) -> layouts.File:
    return dataclasses.replace(file, name=names.Name(case_id, sequence))


def _by_case(files: Iterable[layouts.File], dataset: pathlib.Path) -> layouts.Groups:
    groups: layouts.Groups = {}
    for file in files:
        groups.setdefault((file.prefix, dataset), []).append(file)
    return groups


def _of_channels(
    files: Iterable[layouts.File],
    order: dict[str, int],
    task: task_lib.Task,
    report: problems.Report,
) -> list[layouts.File]:
    """Returns the files CASE_0000, CASE_0001, ... as the channels that they are."""
    channels = {number: name for name, number in order.items()}
    found = []
    for file in files:
        match = _NUMBERED.fullmatch(file.stem)
        case_id, number = (match[1], int(match[2])) if match else ("", -1)
        if number in channels:
            found.append(_renamed(file, case_id, channels[number]))
        elif number > max(channels):
            message = (
                f'{file.path}: is channel {number}, but "channel_names" of the task {task.name} '
                f"are {', '.join(f'{i} {name}' for i, name in enumerate(task.modalities))}. Name "
                "every channel there, or remove the file"
            )
            report(UserError(message), case_id, file.path)
    return found


# ------------------------------------------------------------------------- the folder's own words


def channel_order(dataset: pathlib.Path, task: task_lib.Task, notes: list[str]) -> dict[str, int]:
    """Returns channel -> its number in the files of a folder.

    The dataset.json of the folder counts, if it has one, else the order of the task.

    Raises:
        UserError: it lacks a channel of the task, or means another value by a label.
    """
    path = dataset / _DATASET_JSON
    if not path.is_file():
        return {name: number for number, name in enumerate(task.modalities)}
    described = dataset_json.parse(documents.read_object(path), str(path))
    order = {
        channel.name: described.modalities.index(name)
        for channel in task.channels
        for name in (*channel.aliases, channel.name)
        if name in described.modalities
    }
    missing = [name for name in task.modalities if name not in order]
    if missing:
        raise UserError(
            f"{path}: its channels are {', '.join(described.modalities)}; the task {task.name} has "
            f"{', '.join(missing)} too. Give the task of this folder (--task={path}, "
            f"--config.task={path}), or the folder of the task"
        )
    _check_labels(path, described, task)
    if list(order.values()) != sorted(order.values()):
        notes.append(f"{path}: the channels are {', '.join(described.modalities)}, in this order")
    return order


def _check_labels(path: pathlib.Path, described: task_lib.Task, task: task_lib.Task) -> None:
    """Refuses a folder in which a label of the task has another value."""
    ours, theirs = (
        {region.name: region.members for region in each.regions} for each in (task, described)
    )
    odd = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if odd:
        name = odd[0]
        raise UserError(
            f"{path}: the label {name!r} has the values {', '.join(map(str, theirs[name]))}, in "
            f"the task {task.name} {', '.join(map(str, ours[name]))}. Correct one of them"
        )
