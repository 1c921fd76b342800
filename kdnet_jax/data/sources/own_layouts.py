"""Cases in a folder that is no release: files grouped by folder, by prefix, or by BIDS."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from kdnet_jax.data.checks import problems
from kdnet_jax.data.sources import names
from kdnet_jax.errors import UserError

if TYPE_CHECKING:
    from kdnet_jax.data.sources.layouts import File, Groups

# Folders in which a patient's visits lie, and folders of many patients.
_VISIT: Final = re.compile(
    r"\d|(19|20)\d\d|(?:(?:pre|post|before|after|intra|baseline|follow[ _-]?up|fu|visit|time[ _-]?"
    r"point|tp|time|session|ses|scan|exam|mri?|week|month|year|day|v|t|w|m|y|d)[ _-]?"
    r"(?:op|operative|surgery|rt|radiotherapy|treatment|therapy)?[ _-]?\d{0,4})",
    re.IGNORECASE,
)
# The number of a patient among others, and no year.
_MANY: Final = re.compile(r"\d{2,3}|\d{5,}")
_DATE: Final = re.compile(r"(?<!\d)(19|20)\d\d[._-]?[01]\d(?:[._-]?[0-3]\d)?(?!\d)")
_COLLECTIONS: Final = (
    *("hgg", "lgg", "train", "training", "val", "validation", "test", "testing", "data", "cases"),
    *("images", "patients", "subjects", "nifti", "scans"),
)


def group(files: Iterable["File"], root: pathlib.Path, report: problems.Report) -> "Groups":
    """Takes a folder as a case, or, where a sequence is in it more than once, each prefix.

    Of BIDS each session of each subject is a case, wherever in the dataset its files lie.
    """
    folders: dict[pathlib.Path, list[File]] = {}
    groups: Groups = {}
    for file in files:
        if not file.sequence:
            continue
        if place := _bids_place(file, root, report):
            groups.setdefault(place, []).append(file)
        else:
            folders.setdefault(file.folder, []).append(file)
    for folder, members in folders.items():
        flat = folder == root or _holds_several(folder, members, report)
        for file in members:
            name = (flat and file.prefix) or _case_of_folder(folder, members, root)
            groups.setdefault((name, folder), []).append(file)
    return groups


def leave_untold(groups: "Groups") -> "Groups":
    """Leaves out masks that are called by something that is neither their case nor a tumour.

    Which words are the case's follows from its own name, its folder's, and the names of its images.
    """
    return {
        (case, folder): [_untold(file) if _is_untold(file, case, files) else file for file in files]
        for (case, folder), files in groups.items()
    }


def _is_untold(file: "File", case: str, files: Sequence["File"]) -> bool:
    images = [each.prefix for each in files if each.sequence != names.LABEL]
    if file.sequence != names.LABEL or file.name.tumour or not images:
        return False
    known = _words(" ".join([case, file.folder.name, *images]))
    return not _words(file.prefix) <= known


def _words(text: str) -> set[str]:
    return {*re.split(r"[\s_.-]+", text.lower())} | {""}


def _untold(file: "File") -> "File":
    return dataclasses.replace(
        file, name=dataclasses.replace(file.name, sequence=None, aside=names.UNTOLD)
    )


def _holds_several(
    folder: pathlib.Path, members: Sequence["File"], report: problems.Report
) -> bool:
    """Whether the files of a folder are of several cases; refuses those that may be either."""
    sequences = [file.sequence for file in members]
    if len(set(sequences)) == len(sequences):
        return False
    images = [file for file in members if file.sequence != names.LABEL]
    if not all(file.prefix for file in images):
        return False  # a bare t1.nii.gz is of the folder's case
    apart = len({file.prefix for file in images}) == len(images)
    if apart and len({file.sequence for file in images}) > 1:
        message = (
            f"{folder}: of {', '.join(file.path.name for file in images[:5])} no two begin alike, "
            "so it is unknown which are of one case, and several are of one sequence. Name "
            "them CASE_SEQUENCE, or give each case a folder with one file of each sequence"
        )
        report(UserError(message), folder.name, folder)
    return True


def _case_of_folder(folder: pathlib.Path, members: Sequence["File"], root: pathlib.Path) -> str:
    """Returns the case of a folder; its files may tell more, or it may say "_nifti" behind."""
    prefix, own = members[0].prefix, _visit(folder, root) or folder.name
    if prefix.lower() != folder.name.lower() and all(file.prefix == prefix for file in members):
        # Timepoint_1/Patient_3_Timepoint_1_t1, UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1
        longer = prefix.lower().endswith(folder.name.lower())
        if longer or folder.name.lower() == f"{prefix}_nifti".lower():
            return prefix
    return own


def _visit(folder: pathlib.Path, root: pathlib.Path) -> str:
    """Returns "anna_pre" of a folder anna/pre below the root, "" of one that is no visit."""
    patient = folder.parent
    inside = patient != root and patient.is_relative_to(root)
    if not inside or not _is_visit(folder.name) or _is_visit(patient.name):
        return ""
    if folder.name.isdecimal() and any(_MANY.fullmatch(each.name) for each in patient.iterdir()):
        return ""  # site/1 to site/12 are twelve patients
    return "" if patient.name.lower() in _COLLECTIONS else f"{patient.name}_{folder.name}"


def _is_visit(name: str) -> bool:
    return bool(_VISIT.fullmatch(name) or _DATE.search(name))


def patient_of_visit(case_id: str, file: pathlib.Path) -> str:
    """Returns the patient of a case whose files lie in PATIENT/VISIT, "" of another case."""
    for folder in file.parents[:2]:  # x.nii may be a folder with the file inside
        if _is_visit(folder.name) and case_id == f"{folder.parent.name}_{folder.name}":
            return folder.parent.name
    return ""


def case_of_bare(file: "File", root: pathlib.Path) -> str:
    """Returns the case of a file whose name holds none, by its folders."""
    place = _bids_place(file, root, problems.refuse)
    return place[0] if place else _visit(file.folder, root) or file.folder.name


def _bids_place(
    file: "File", root: pathlib.Path, report: problems.Report
) -> tuple[str, pathlib.Path] | None:
    """Returns the case and the dataset of a file of BIDS, None for another."""
    above = [each for each in (file.folder, *file.folder.parents) if each.is_relative_to(root)]
    folder = next((each for each in above if _is_entity(each.name, "sub-")), None)
    session = next((each.name for each in above if _is_entity(each.name, "ses-")), "")
    subject, own_session = names.subject(file.stem)
    if folder is None:
        return (file.prefix, file.folder) if subject else None
    if subject and subject != folder.name:
        message = (
            f"{file.path}: lies in the folder of {folder.name} but has the name of {subject}. Put "
            "it where it belongs"
        )
        report(UserError(message), folder.name, file.path)
    dataset = folder.parent
    if "derivatives" in (dataset.name, dataset.parent.name):
        dataset = dataset.parent if dataset.name == "derivatives" else dataset.parents[1]
    if own_session or (subject and not session):
        return file.prefix, dataset
    rest = file.prefix.removeprefix(subject) if subject else ""
    return "_".join(part for part in (folder.name, session) if part) + rest, dataset


def _is_entity(name: str, key: str) -> bool:
    return name.startswith(key) and name.removeprefix(key).isalnum()
