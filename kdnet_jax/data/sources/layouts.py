"""Layouts of releases, recognised by folder and file names alone."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import problems
from kdnet_jax.data.scans import nifti_header
from kdnet_jax.data.sources import labels, names, own_layouts, task_names
from kdnet_jax.errors import UnknownLayoutError, UserError, counted, first_few

NAMES: Final[dict[str, re.Pattern[str]]] = {
    release: re.compile(pattern, re.IGNORECASE)
    for release, pattern in {
        "brats2018": r"Brats18_\w+_\d+",
        "brats2019": r"BraTS19_\w+_\d+",
        "brats2020": r"BraTS20_(?:Training|Validation)_\d+",
        "brats2021": r"BraTS2021_\d+",
        "brats2023": r"BraTS-(?P<task>GLI|MET|SSA|PED|MEN)-(?P<patient>\d+)-(?P<visit>\d+)",
    }.items()
}
_DECATHLON_NAME: Final = re.compile(r"BRATS_\d+", re.IGNORECASE)
_DECATHLON_FOLDERS: Final = ("imagestr", "imagests", "labelstr")
RELEASES: Final = (*NAMES, "brats2024", "decathlon", "user")
AUTO: Final = "auto"

# The first post-treatment patients and visits of BraTS 2024's glioma set; earlier sets stay below.
_FIRST_PATIENT_2024, _FIRST_VISIT_2024 = 2000, 100
_USER_CONVENTION: Final = "brats2021"
GRADES: Final = ("HGG", "LGG")
_SIBLINGS: Final = {"brats2023": "brats2024", "brats2024": "brats2023"}  # names of one form
_MAX_DEPTH: Final = 5  # folders below the root that are looked into
UNKNOWN: Final = "has a name that says its sequence (t1, t1ce, t2, flair, and seg)."

LAYOUTS: Final = """Known layouts:
  BraTS 2018, 2019   {HGG,LGG}/Brats18_X_1/Brats18_X_1_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2020         BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2021         BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2023, 2024   BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
  Decathlon          dataset.json, imagesTr/BRATS_001.nii.gz, labelsTr/BRATS_001.nii.gz
  BIDS               sub-01/[ses-01/]anat/sub-01_[ses-01_]{T1w,ce-gadolinium_T1w,T2w,FLAIR}.nii.gz,
                     also in derivatives/X/sub-01/..., with sub-01_label-tumor_mask.nii.gz
  your own           CASE/{t1,t1ce,t2,flair,seg}.nii.gz, or CASE_{t1,t1ce,t2,flair,seg}.nii.gz"""


@dataclasses.dataclass(frozen=True)
class File:
    """A NIfTI file; `folder` and `stem` are those of the name that describes it.

    `name` is what that name says.
    """

    path: pathlib.Path
    folder: pathlib.Path
    stem: str
    name: names.Name

    @property
    def prefix(self) -> str:
        """The name of the case that the name holds."""
        return self.name.prefix

    @property
    def sequence(self) -> str | None:
        """A modality, `names.LABEL`, or None."""
        return self.name.sequence


Groups = dict[tuple[str, pathlib.Path], list[File]]


# ------------------------------------------------------------------------- what is on the disk


def check_folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of the scans; a `UserError` says what else is there."""
    if not os.fspath(data_dir):
        raise UserError("data_dir is empty; give the folder that holds the scans")
    root = pathlib.Path(os.path.abspath(pathlib.Path(data_dir).expanduser()))
    if not root.exists():
        raise UserError(f"{root}: no such folder; data_dir must be the folder of the scans")
    if not root.is_dir():
        raise UserError(
            f"{root}: is a file; data_dir must be the folder of the scans (unpack an archive first)"
        )
    return root


def list_files(
    root: pathlib.Path,
    report: problems.Report,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    endings: Sequence[str] = (),
) -> tuple[list[File], list[str]]:
    """Returns the images under `root`, each once, with a note on those that are doubled.

    Args:
        root: the folder.
        report: called for what cannot be read.
        task: gives the ending of the files (NIfTI may be compressed or not), and reads their names.
        endings: other endings that they may have.

    Raises:
        UserError: there is none.
    """
    patterns = dict.fromkeys(map(_pattern, (*endings, task.file_ending)))
    stem_of = functools.partial(_stem, pattern=f"(?:{'|'.join(patterns)})")
    files: dict[tuple[pathlib.Path, str], File] = {}
    doubled = []
    for entry in _walk(root, 0, set(), report, stem_of):
        path, stem = pathlib.Path(entry.path), stem_of(entry.name)
        inner = _inner_file(path, report, stem_of) if _is_dir(entry) else path
        if stem is None or inner is None:
            continue
        key = (path.parent, stem)
        if key in files:
            doubled.append(entry.name)
        # Sorted, x.nii comes before x.nii.gz: the later, compressed copy is the one that stays.
        files[key] = File(inner, *key, task_names.read(stem, path.parent.name, task))
    if not files:
        raise UserError(_nothing(root, task))
    notes = [f"stored in two formats, of which this one is used: {first_few(doubled)}"]
    return _without_holes(files.values()), notes if doubled else []


def _nothing(root: pathlib.Path, task: task_lib.Task) -> str:
    held = sorted(os.listdir(root))
    found = f"it holds {first_few(held)}" if held else "it is empty"
    if task.file_ending not in nifti_header.SUFFIXES:
        return (
            f'{root}: no {task.file_ending} file is in it; {found}. Is the "file_ending" of the '
            "task's dataset.json right?"
        )
    more = "" if labels.is_brats(task) else f' ("file_ending" of the task {task.name})'
    return f"{root}: no .nii or .nii.gz file is in it{more}; {found}\n{layouts_of(task)}"


def layouts_of(task: task_lib.Task) -> str:
    """Returns what the layouts look like that are known for a task."""
    if labels.is_brats(task):
        return LAYOUTS
    shown_as = "{" + ",".join("_".join(name.split()) for name in task.modalities) + ",seg}"
    end = task.file_ending
    return f"""Known layouts for the task {task.name}:
  nnU-Net            imagesTr/CASE_0000{end}, ..., labelsTr/CASE{end}
  Decathlon          imagesTr/CASE{end}, labelsTr/CASE{end}
  BIDS               sub-01/[ses-01/]anat/sub-01_[ses-01_]CHANNEL{end}
  your own           CASE/{shown_as}{end}, or CASE_{shown_as}{end}"""


def _without_holes(files: Iterable[File]) -> list[File]:
    """Returns the files; the `mask` of an inpainting set is what was cut out, and no label."""
    files = list(files)
    sets = {(file.folder, file.prefix) for file in files if file.name.aside == names.HOLE}

    def is_hole(file: File) -> bool:
        named = NAMES["brats2023"].fullmatch(file.prefix) and file.stem.lower().endswith("-mask")
        beside = (file.folder, file.prefix) in sets and file.stem.lower().endswith("mask")
        return file.sequence == names.LABEL and bool(named or beside)

    hole = names.Name("", aside=names.HOLE)
    return [
        dataclasses.replace(file, name=dataclasses.replace(hole, prefix=file.prefix))
        if is_hole(file)
        else file
        for file in files
    ]


def _walk(
    folder: pathlib.Path,
    depth: int,
    seen: set[tuple[int, int]],
    report: problems.Report,
    stem_of: Callable[[str], str | None],
) -> Iterator[os.DirEntry[str]]:
    """Yields files, and folders that are named like an image, in the order of their names."""
    try:
        identity = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        message = f"{folder}: cannot be read ({error.strerror}). Check it and its rights"
        report(UserError(message), "", folder)
        return
    # A link may lead back up: every folder is entered once.
    if (key := (identity.st_dev, identity.st_ino)) in seen:
        return
    seen.add(key)
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not _is_dir(entry) or stem_of(entry.name) is not None:
            yield entry
        elif depth < _MAX_DEPTH:
            yield from _walk(pathlib.Path(entry.path), depth + 1, seen, report, stem_of)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle lead to nothing
        return False


def _pattern(ending: str) -> str:
    return r"\.nii(?:\.gz)?" if ending in nifti_header.SUFFIXES else re.escape(ending)


def _stem(name: str, pattern: str) -> str | None:
    """Returns `name` without its ending in any case of letters, None for another ending."""
    match = re.fullmatch(rf"(.+){pattern}", name, re.IGNORECASE)
    return match[1] if match else None


def _inner_file(
    folder: pathlib.Path, report: problems.Report, stem_of: Callable[[str], str | None]
) -> pathlib.Path | None:
    """Returns the one NIfTI file of a folder that is itself named like one (some copies)."""
    inner = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    images = [path for path in inner if stem_of(path.name) is not None and path.is_file()]
    if len(images) != 1:
        message = (
            f"{folder}: a folder with the name of a NIfTI file that holds {len(images)} NIfTI "
            "files; expected exactly one. Unpack the release again"
        )
        report(UserError(message), "", folder)
        return None
    return images[0]


# ------------------------------------------------------------------------- which release it is


def _group(files: Iterable[File], root: pathlib.Path) -> dict[str, Groups]:
    """Returns release -> (case id, folder) -> files, of the files with a known name."""
    groups: dict[str, Groups] = {}
    for file in files:
        known = _recognise(file, root)
        if known:
            release, case_id = known
            # The Decathlon keeps the image and the label of a case in two folders.
            folder = file.folder.parent if release == "decathlon" else file.folder
            key = (case_id, folder)
            groups.setdefault(release, {}).setdefault(key, []).append(file)
    return groups


def _recognise(file: File, root: pathlib.Path) -> tuple[str, str] | None:
    in_decathlon = file.folder.name.lower() in _DECATHLON_FOLDERS
    if in_decathlon and _DECATHLON_NAME.fullmatch(file.stem):
        return "decathlon", file.stem
    # The folder counts first: a file in it may be misnamed (BraTS20_Training_355).
    for name in (file.folder.name, file.prefix):
        for release, pattern in NAMES.items():
            if match := pattern.fullmatch(name):
                is_2024 = release == "brats2023" and _is_2024(match, file.folder, root)
                return ("brats2024" if is_2024 else release), name
    return None


def _is_2024(match: re.Match[str], folder: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether names of the 2023 form belong to 2024: by a folder's name, or by the numbers."""
    post_treatment = match["task"].upper() == "GLI" and (
        int(match["patient"]) >= _FIRST_PATIENT_2024 or int(match["visit"]) >= _FIRST_VISIT_2024
    )
    folders = (root.name, *folder.relative_to(root).parts)
    named = (
        re.search(r"(?<!\d)2024(?!\d)", part)
        for part in folders
        if not NAMES["brats2023"].fullmatch(part)
    )
    return post_treatment or any(named)


def choose_release(
    release: str, files: Sequence[File], root: pathlib.Path, report: problems.Report
) -> tuple[dict[str, Groups], list[str]]:
    """Returns release -> its files by case, and notes on the choice.

    More than one release is there only where `report` lets the search continue.

    Raises:
        UserError: the requested release is not there.
    """
    _check_nnunet(files, root)
    groups = {} if release == "user" else _group(files, root)
    counts = ", ".join(
        f"{name} ({counted(len(cases), 'case')})" for name, cases in sorted(groups.items())
    )
    if release == AUTO and len(groups) > 1:
        message = (
            f"{root}: holds several releases: {counts}. They share patients (2018 is part of "
            "2019, 2020, 2021, 2023 and the Decathlon), so they must not be mixed. Give the "
            "folder of one of them, or choose one " + flags_of("release")
        )
        report(UserError(message), "", root)
    notes = _sibling_notes(groups) if release == AUTO else []
    if release == "user" or (release == AUTO and not groups):
        return {"user": own_layouts.group(files, root, report)}, notes
    chosen = groups if release == AUTO else {release: _forced(release, groups, root, counts)}
    if release != AUTO and release not in groups:
        notes.append(f"the names stand for {_SIBLINGS[release]}; {release} was taken, as asked")
    for name, cases in chosen.items():
        _check_paediatric(name, cases, root, notes, report)
    return chosen, notes


def _check_nnunet(files: Iterable[File], root: pathlib.Path) -> None:
    """Refuses nnU-Net's raw layout, whose channels have numbers in the place of names."""
    raw = [
        file.stem
        for file in files
        if file.folder.name.lower() in ("imagestr", "imagests")
        and re.fullmatch(r".+_\d{4}", file.stem)
    ]
    if raw:
        raise UnknownLayoutError(
            f"{root}: {raw[0]} and {len(raw) - 1} more have the names of nnU-Net's raw layout, "
            'which does not say the sequence: its dataset.json does ("channel_names"). To train on '
            "them, give that file as the task (check_data, build_data: --task=DIR/dataset.json; in "
            "a config --config.task=DIR/dataset.json). For the task glioma and its networks, copy "
            "or link each image to DIR/CASE_SEQUENCE.nii.gz (t1, t1ce, t2 or flair) and each label "
            "to DIR/CASE_seg.nii.gz, give DIR, and, to train, say what the labels mean "
            + flags_of("label_convention")
        )


def flags_of(name: str) -> str:
    """Returns how to set what the folder is taken as, in a message that all commands may print."""
    return f"(check_data, build_data: --{name}; in a config --config.data.{name})"


def _sibling_notes(releases: Iterable[str]) -> list[str]:
    return [
        f"the names stand for {release} (2024 starts at patient 02000 or visit 100, or has "
        f"2024 in a folder's name); {_SIBLINGS[release]} can be set {flags_of('release')}"
        for release in releases
        if release in _SIBLINGS
    ]


def _forced(release: str, groups: dict[str, Groups], root: pathlib.Path, counts: str) -> Groups:
    """Returns the files of the release asked for, or of the one that shares its names."""
    chosen = groups.get(release) or groups.get(_SIBLINGS.get(release, release))
    if not chosen:
        raise UserError(
            f"{root}: no case of {release}; found {counts or 'no name of a known release'}. Choose "
            f"what is there {flags_of('release')}\n{LAYOUTS}"
        )
    return chosen


def _check_paediatric(
    release: str,
    chosen: Groups,
    root: pathlib.Path,
    notes: list[str],
    report: problems.Report,
) -> None:
    """Refuses BraTS-PED 2024, whose labels are other tissues under the same numbers."""
    cases = [case_id for case_id, _ in chosen if case_id.upper().startswith("BRATS-PED-")]
    meaning = "in 2024 the labels of BraTS-PED mean 1 ET, 2 non-enhancing, 3 cyst, 4 edema"
    if cases and release == "brats2024":
        message = (
            f"{cases[0]} and {len(cases) - 1} more: {meaning}, which are not the classes of the "
            "other sets. Leave the PED cases out, or use the PED set of 2023 as the release "
            "brats2023"
        )
        report(UserError(message), "", root)
    if cases and release == "brats2023":
        notes.append(f"{len(cases)} BraTS-PED cases are read as of 2023; {meaning}")


def check_unique(groups: Groups, report: problems.Report) -> None:
    """Refuses a case id that is in two folders."""
    folders: dict[str, pathlib.Path] = {}
    for case_id, folder in groups:
        if case_id in folders:
            message = (
                f"case {case_id} is duplicate: in {folders[case_id]} and in {folder}. Remove one "
                "or give the folder of one copy. The files of a case belong in one folder; where "
                "these are several patients, the folder or the files need the name of the case"
            )
            report(UserError(message), case_id, folder)
        folders[case_id] = folder


def label_convention_of(
    release: str, asked: str | None, task: task_lib.Task
) -> tuple[str, list[str]]:
    """Returns what the label values of a release mean, and a note where it was chosen."""
    if not labels.is_brats(task):
        return labels.own_convention(task), []
    if asked is not None:
        return asked, [f"label values are read as those of {asked}, as asked"]
    if release != "user":
        return release, []
    return _USER_CONVENTION, [
        f"no release was recognised: label values are read as those of {_USER_CONVENTION} "
        f"(1 NCR, 2 ED, 4 ET); others can be set {flags_of('label_convention')}"
    ]
