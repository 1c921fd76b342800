"""The scans and cases that the inputs of `predict` name."""

import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import dicom, nifti_header
from kdnet_jax.data.sources import cases, labels, names
from kdnet_jax.errors import UnknownLayoutError, UserError, counted

_LOG = logging.getLogger(__name__)

# A file, (file, channel), or a series of DICOM.
Source = cases.Source | dicom.Series
_OR_LESS = (
    "; or, of a network that was trained with modality dropout, name those that there are "
    "(--sequences)"
)
_CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_SEQUENCE_LIKE = re.compile(
    r"(?:(?<=[_. -])|^)(?:t[12](?!\d)|flair|seg|mask|label)[^_. -]*", re.IGNORECASE
)


def find_scans(
    inputs: list[pathlib.Path],
    modalities: tuple[str, ...],
    task: task_lib.Task,
    series: str = "",
) -> list[tuple[str, Mapping[str, Source]]]:
    """Returns (name, sequence -> file or series) of every scan or case that the inputs name.

    A file is a scan of the network's one sequence. In a folder, cases in a known layout are taken
    by their sequence; where there is none and the network has one sequence, each file is a scan.
    Of a folder or zip of DICOM, one series is (`dicom.choose`).

    Args:
        inputs: files and folders.
        modalities: the network's sequences.
        task: what is segmented.
        series: number or UID of the series of DICOM; "": it is found by its tags.

    Raises:
        UserError: for a missing path, an empty folder, one file where several are needed, or a
            series that cannot be told.
    """
    found: list[tuple[str, Mapping[str, Source]]] = []
    first, *others = modalities
    for path in inputs:
        if not os.path.lexists(path):
            raise UserError(f"--input={path}: there is no such file or folder.")
    of_dicom = {path for path in inputs if dicom.is_dicom(path)}
    if series and not of_dicom:
        raise UserError(f"--series={series}: no --input is a folder, zip or file of DICOM.")
    for path in inputs:
        if path in of_dicom:
            if others:
                raise UserError(
                    f"{path}: is DICOM, and this network needs {', '.join(modalities)} of each "
                    "case. Convert them to .nii.gz in the folder of a case, or use a student of "
                    f"one sequence{_OR_LESS}."
                )
            found.append(
                (nifti_header.stem(path.resolve()), {first: series_of(path, first, task, series)})
            )
        elif path.is_dir():
            found += _scans_of_folder(path, modalities, task)
        elif others:
            raise UserError(
                f"{path}: this network needs {', '.join(modalities)} of each case. Give the folder "
                f"of the case, or of the cases{_OR_LESS}."
            )
        else:
            _warn_of_name(path, first, task)
            found.append((nifti_header.stem(path), {first: path}))
    names = [name for name, _ in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(
            f"Several inputs are called {doubled[0]!r}, so their masks would overwrite each other. "
            "Rename them, or predict them one by one."
        )
    return found


def series_of(
    path: pathlib.Path, modality: str, task: task_lib.Task, asked: str = ""
) -> dicom.Series:
    """Returns the series of DICOM that is the network's sequence, and says which it is.

    Raises:
        UserError: it cannot be told (`dicom.choose`), or nothing can be read.
    """
    found = dicom.find(path)
    ct = task.channel(modality).normalisation == "ct"
    glioma = labels.is_brats(task)
    called = {each.uid: names.read(each.description).sequence or "" for each in found}
    kind = "CT" if ct else "MR" if glioma else ""
    chosen, notes = dicom.choose(found, kind, called if glioma else {}, modality, asked)
    for note in notes:
        _LOG.info(note)
    if glioma and called[chosen.uid] not in ("", modality):
        _warn_of_sequence(f"{path}: {chosen}", called[chosen.uid], modality)
    return chosen


def _scans_of_folder(
    folder: pathlib.Path, modalities: tuple[str, ...], task: task_lib.Task
) -> list[tuple[str, dict[str, cases.Source]]]:
    try:
        cohort = cases.find_cases(folder, "auto", modalities, labelled=False, task=task)
    except UnknownLayoutError as error:
        readable = (*nifti_header.SUFFIXES, *nifti_header.ITK_SUFFIXES)
        files = sorted(
            path
            for path in folder.iterdir()
            if path.name.lower().endswith(readable) and not path.name.startswith(".")
        )
        if not labels.is_brats(task) and (found := _numbered(folder, files, modalities, task)):
            return found
        first, *others = modalities
        if others or not files:
            raise UserError(f"--input={folder}: {error}") from error
        if len(task.modalities) > 1:
            _refuse_numbered_channels(folder, files, first)
        _LOG.info(f"{folder}: no known layout; each of its {len(files)} files is taken as a scan")
        for path in files:
            _warn_of_name(path, first, task)
        return [(nifti_header.stem(path), {first: path}) for path in files]
    for note in cohort.notes:
        _LOG.info(f"note: {note}")
    return [
        (case.case_id, {name: case.images[name] for name in modalities}) for case in cohort.cases
    ]


def _numbered(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    modalities: tuple[str, ...],
    task: task_lib.Task,
) -> list[tuple[str, dict[str, cases.Source]]]:
    """Returns the cases of a folder in nnU-Net's names, CASE_0000 and so on; empty: it is none.

    The numbers are those of the task's channels.

    Raises:
        UserError: a case lacks a channel that the network sees.
    """
    parts = [part for path in files if (part := _CHANNEL_NUMBER.fullmatch(nifti_header.stem(path)))]
    if not files or len(parts) < len(files):
        return []
    if any(int(part["channel"]) >= len(task.modalities) for part in parts):
        return []  # They number the scans.
    by_case: dict[str, dict[int, pathlib.Path]] = {}
    for path, part in zip(files, parts, strict=True):
        by_case.setdefault(part["case"], {})[int(part["channel"])] = path
    wanted = {name: task.modalities.index(name) for name in modalities}
    for case, channels in by_case.items():
        if absent := [number for number in wanted.values() if number not in channels]:
            raise UserError(
                f"--input={folder}: {case} has no file {case}_{absent[0]:04d}, which is the "
                f"channel {task.modalities[absent[0]]} of the task {task.name}; expected it beside "
                "the others, as in nnU-Net's imagesTs."
            )
    listed = ", ".join(f"_{number:04d} as {name}" for name, number in wanted.items())
    _LOG.info(f"{folder}: {counted(len(by_case), 'case')} in nnU-Net's names; {listed}")
    return [
        (case, {name: channels[number] for name, number in wanted.items()})
        for case, channels in sorted(by_case.items())
    ]


def _refuse_numbered_channels(
    folder: pathlib.Path, files: Sequence[pathlib.Path], modality: str
) -> None:
    """Refuses files of several channels in the names of nnU-Net, of which one is the sequence."""
    endings = [nifti_header.stem(path)[-5:] for path in files]
    if len({*endings}) > 1 and {*endings} <= {f"_{channel:04d}" for channel in range(4)}:
        raise UserError(
            f"--input={folder}: its files end in {', '.join(sorted({*endings}))}, which are the "
            f"channels of nnU-Net, and the network takes one, {modality}. Give the files of that "
            'channel alone (the "channel_names" of nnU-Net\'s dataset.json say which it is).'
        )


def _warn_of_name(path: pathlib.Path, modality: str, task: task_lib.Task) -> None:
    """Warns of a file whose name says that it is not, or may not be, the network's sequence."""
    if not labels.is_brats(task):  # The names of other channels are not known so well.
        return
    name = names.read(nifti_header.stem(path), path.absolute().parent.name)
    says = name.sequence or name.aside or (name.doubt and f"one that {name.doubt}")
    if says and says != modality:
        _warn_of_sequence(path, says, modality)
    alike = [] if says else _SEQUENCE_LIKE.findall(nifti_header.stem(path))
    if unknown := [word for word in alike if names.SEQUENCES.get(word.lower()) != modality]:
        _LOG.info(
            f"warning: {path}: it is not understood what {unknown[0]!r} in its name says; the "
            f"network was trained on {modality}. Its mask means nothing if it is another image."
        )


def _warn_of_sequence(what: pathlib.Path | str, says: str, modality: str) -> None:
    _LOG.info(
        f"warning: {what} is named as {says}, but it is taken as {modality}, which the network was "
        "trained on. Its mask means nothing if it is not."
    )
