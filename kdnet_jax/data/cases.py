"""Finds the cases of a release, or of a user's own collection, by folder and file names alone.

No image is opened, so a release of 1251 cases takes well under a second. What the names cannot
tell (labels, grids) is checked when a case is read (`prepare.py`). `docs/data.md` shows the
layouts.
"""

import csv
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kdnet_jax import conventions
from kdnet_jax.data import labels
from kdnet_jax.errors import UserError, nearest

_NAMES: Final[dict[str, re.Pattern[str]]] = {
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
RELEASES: Final = (*_NAMES, "brats2024", "decathlon", "user")
AUTO: Final = "auto"

LABEL: Final = "label"
_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "fla"),
    LABEL: ("seg", "segm", "segmentation", "label", "mask"),
}
_SEQUENCES: Final = {name: key for key, names in _SYNONYMS.items() for name in names}

# The first post-treatment patients and visits of BraTS 2024's glioma set; earlier sets stay below.
_FIRST_PATIENT_2024, _FIRST_VISIT_2024 = 2000, 100
_USER_CONVENTION: Final = "brats2021"
_GRADES: Final = ("HGG", "LGG")
_SIBLINGS: Final = {"brats2023": "brats2024", "brats2024": "brats2023"}  # names of one form
_MAX_DEPTH: Final = 5  # folders below the root that are looked into
_SHOWN: Final = 5  # names in a message
_UNKNOWN: Final = "has a name that tells its sequence (t1, t1ce, t2, flair, and seg)."

LAYOUTS: Final = """Known layouts:
  BraTS 2018, 2019   {HGG,LGG}/Brats18_X_1/Brats18_X_1_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2020         BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2021         BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz
  BraTS 2023, 2024   BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
  Decathlon          dataset.json, imagesTr/BRATS_001.nii.gz, labelsTr/BRATS_001.nii.gz
  your own           CASE/{t1,t1ce,t2,flair,seg}.nii.gz, or CASE_{t1,t1ce,t2,flair,seg}.nii.gz"""

Source = pathlib.Path | tuple[pathlib.Path, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """The files of one visit of one patient.

    Attributes:
        case_id: the name of the visit.
        patient_id: the name of the patient; several visits may share it.
        grade: "HGG", "LGG" or None where it is not known.
        images: modality -> file, or (file, channel), in the project's order of modalities.
        label: the segmentation, or None.
        convention: what the values of `label` mean, a key of `labels.LABEL_CONVENTIONS`.
    """

    case_id: str
    patient_id: str
    grade: str | None
    images: dict[str, Source]
    label: pathlib.Path | None
    convention: str


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The cases of one release, by case id, and what a command should tell about them."""

    release: str
    cases: list[Case]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _File:
    """A NIfTI file; `folder` and `stem` are those of the name that describes it."""

    path: pathlib.Path
    folder: pathlib.Path
    stem: str

    @property
    def prefix(self) -> str:
        """The name before the sequence."""
        return self.stem[: max(0, len(self.stem) - len(self._token) - 1)]

    @property
    def sequence(self) -> str | None:
        """A modality, `LABEL`, or None."""
        return _SEQUENCES.get(self._token.lower())

    @property
    def _token(self) -> str:
        return re.split("[_-]", self.stem)[-1]


_Groups = dict[tuple[str, pathlib.Path], list[_File]]


def find_cases(
    data_dir: str | os.PathLike[str],
    release: str = AUTO,
    modalities: Sequence[str] = conventions.MODALITIES,
    labelled: bool = True,
    label_convention: str | None = None,
) -> Cohort:
    """Finds the cases under `data_dir`.

    Args:
        data_dir: the root of a release, or up to two folders above it.
        release: one of `RELEASES`; "auto" recognises it by names.
        modalities: the sequences that every case must have; others are ignored.
        labelled: leave out cases without a segmentation.
        label_convention: what label values mean, a key of `labels.LABEL_CONVENTIONS`; None takes
            the release's own, and for a user's own data "brats2021" (with a note).

    Raises:
        UserError: nothing usable is there, several releases are, a case lacks a sequence or is
            there twice, or an argument is not known.
    """
    _check_arguments(release, modalities, label_convention)
    root = _check_folder(data_dir)
    files, notes = _list_files(root)
    release, groups, more = _choose_release(release, files, root)
    _check_unique(groups)
    convention, meaning = _convention(release, label_convention)
    notes += more + meaning
    if release == "decathlon":
        found = _decathlon_cases(groups, notes)
    else:
        found = [_case(release, case_id, files, notes) for (case_id, _), files in groups.items()]
    found = [dataclasses.replace(case, convention=convention) for case in found if case.images]
    if not found:
        raise UserError(f"{root}: none of its {len(files)} NIfTI files {_UNKNOWN}\n{LAYOUTS}")
    unused = len(files) - sum(len(set(_paths(case))) for case in found)
    if unused:
        notes.append(f"{unused} other NIfTI files under {root} are not used")
    found = _with_patients(found, release, root, notes)
    found = _labelled(found, root, notes) if labelled else found
    cases = sorted(_with_modalities(found, root, modalities), key=lambda case: case.case_id)
    return Cohort(release, cases, [f"{release}: {len(cases)} cases under {root}", *notes])


def _check_arguments(release: str, modalities: Sequence[str], convention: str | None) -> None:
    if release not in (AUTO, *RELEASES):
        raise UserError(
            f"release is {release!r}{nearest(release, RELEASES)}; expected auto or one of "
            f"{', '.join(RELEASES)}"
        )
    for modality in modalities:
        if modality not in conventions.MODALITIES:
            raise UserError(
                f"modality {modality!r} is not known{nearest(modality, conventions.MODALITIES)}; "
                f"expected some of {', '.join(conventions.MODALITIES)} (--config.data.modalities)"
            )
    if not modalities or len(set(modalities)) < len(modalities):
        raise UserError(
            f"modalities are {', '.join(modalities) or 'empty'}; expected each of the wanted ones "
            "once (--config.data.modalities)"
        )
    if convention is not None and convention not in labels.LABEL_CONVENTIONS:
        raise UserError(
            f"label convention {convention!r} is not known"
            f"{nearest(convention, labels.LABEL_CONVENTIONS)}; expected one of "
            f"{', '.join(labels.LABEL_CONVENTIONS)}"
        )


# ------------------------------------------------------------------------- what is on the disk


def _check_folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
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


def _list_files(root: pathlib.Path) -> tuple[list[_File], list[str]]:
    """Returns the NIfTI files under `root`, each once, with a note on those that are doubled."""
    files: dict[tuple[pathlib.Path, str], _File] = {}
    doubled = []
    for entry in _walk(root, 0, set()):
        path, stem = pathlib.Path(entry.path), _stem(entry.name)
        if stem is None:
            continue
        key = (path.parent, stem)
        if key in files:
            doubled.append(entry.name)
        # Sorted, x.nii comes before x.nii.gz: the later, compressed copy is the one that stays.
        files[key] = _File(_inner_file(path) if entry.is_dir() else path, *key)
    if not files:
        names = sorted(os.listdir(root))
        found = f"it holds {_shown(names)}" if names else "it is empty"
        raise UserError(f"{root}: no .nii or .nii.gz file is in it; {found}\n{LAYOUTS}")
    notes = [f"there as .nii and as .nii.gz, the latter is used: {_shown(doubled)}"]
    return list(files.values()), notes if doubled else []


def _walk(
    folder: pathlib.Path, depth: int, seen: set[tuple[int, int]]
) -> Iterator[os.DirEntry[str]]:
    """Yields files, and folders that are named like a NIfTI file, in the order of their names."""
    try:
        identity = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); check it and its rights"
        ) from error
    # A link may lead back up: every folder is entered once.
    if (key := (identity.st_dev, identity.st_ino)) in seen:
        return
    seen.add(key)
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.is_dir() or _stem(entry.name) is not None:
            yield entry
        elif depth < _MAX_DEPTH:
            yield from _walk(pathlib.Path(entry.path), depth + 1, seen)


def _stem(name: str) -> str | None:
    """Returns `name` without .nii or .nii.gz in any case of letters, None for another suffix."""
    match = re.fullmatch(r"(.+)\.nii(?:\.gz)?", name, re.IGNORECASE)
    return match[1] if match else None


def _inner_file(folder: pathlib.Path) -> pathlib.Path:
    """Returns the one NIfTI file of a folder that is itself named like one (some copies)."""
    inner = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    images = [path for path in inner if _stem(path.name) is not None and path.is_file()]
    if len(images) != 1:
        raise UserError(
            f"{folder}: a folder with the name of a NIfTI file that holds {len(images)} NIfTI "
            "files; expected exactly one. Unpack the release again"
        )
    return images[0]


# ------------------------------------------------------------------------- which release it is


def _group(files: Iterable[_File], root: pathlib.Path) -> dict[str, _Groups]:
    """Returns release -> (case id, folder) -> files, of the files with a known name."""
    groups: dict[str, _Groups] = {}
    for file in files:
        known = _recognise(file, root)
        if known:
            release, case_id = known
            # The Decathlon keeps the image and the label of a case in two folders.
            folder = file.folder.parent if release == "decathlon" else file.folder
            key = (case_id, folder)
            groups.setdefault(release, {}).setdefault(key, []).append(file)
    return groups


def _recognise(file: _File, root: pathlib.Path) -> tuple[str, str] | None:
    in_decathlon = file.folder.name.lower() in _DECATHLON_FOLDERS
    if in_decathlon and _DECATHLON_NAME.fullmatch(file.stem):
        return "decathlon", file.stem
    # The folder counts first: a file in it may be misnamed (BraTS20_Training_355).
    for name in (file.folder.name, file.prefix):
        for release, pattern in _NAMES.items():
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
        if not _NAMES["brats2023"].fullmatch(part)
    )
    return post_treatment or any(named)


def _choose_release(
    release: str, files: Sequence[_File], root: pathlib.Path
) -> tuple[str, _Groups, list[str]]:
    """Returns the release, its files by case, and what to tell about the choice."""
    groups = {} if release == "user" else _group(files, root)
    counts = ", ".join(f"{name} ({len(cases)} cases)" for name, cases in sorted(groups.items()))
    notes = []
    if release == AUTO:
        if len(groups) > 1:
            raise UserError(
                f"{root}: holds several releases: {counts}. They share patients (2018 is part of "
                "2019, 2020, 2021, 2023 and the Decathlon), so they must not be mixed. Give the "
                "folder of one of them, or choose one with --release (--config.data.release)"
            )
        release = next(iter(groups), "user")
        if release in _SIBLINGS:
            notes.append(
                f"the names stand for {release} (2024 starts at patient 02000 or visit 100, or has "
                f"2024 in a folder's name); --release={_SIBLINGS[release]} forces the other"
            )
    if release == "user":
        return release, _user_groups(files, root), notes
    sibling = _SIBLINGS.get(release, release)
    chosen = groups.get(release) or groups.get(sibling)
    if not chosen:
        raise UserError(
            f"{root}: no case of {release}; found {counts or 'no name of a known release'}. Choose "
            "what is there with --release (--config.data.release)\n" + LAYOUTS
        )
    if release not in groups:
        notes.append(f"the names stand for {sibling}; {release} was taken, as asked")
    _check_paediatric(release, chosen, notes)
    return release, chosen, notes


def _check_paediatric(release: str, chosen: _Groups, notes: list[str]) -> None:
    """Refuses BraTS-PED 2024, whose labels are other tissues under the same numbers."""
    cases = [case_id for case_id, _ in chosen if case_id.upper().startswith("BRATS-PED-")]
    meaning = "in 2024 the labels of BraTS-PED mean 1 ET, 2 non-enhancing, 3 cyst, 4 edema"
    if cases and release == "brats2024":
        raise UserError(
            f"{cases[0]} and {len(cases) - 1} more: {meaning}, which are not the classes of the "
            "other sets. Leave the PED cases out, or use the PED set of 2023 (--release=brats2023)"
        )
    if cases and release == "brats2023":
        notes.append(f"{len(cases)} BraTS-PED cases are read as of 2023; {meaning}")


def _user_groups(files: Iterable[_File], root: pathlib.Path) -> _Groups:
    """Takes a folder as a case, or, where a sequence is in it more than once, each prefix."""
    folders: dict[pathlib.Path, list[_File]] = {}
    for file in files:
        if file.sequence:
            folders.setdefault(file.folder, []).append(file)
    groups: _Groups = {}
    for folder, members in folders.items():
        sequences = [file.sequence for file in members]
        flat = folder == root or len(set(sequences)) < len(sequences)
        for file in members:
            name = (flat and file.prefix) or folder.name
            groups.setdefault((name, folder), []).append(file)
    return groups


def _check_unique(groups: _Groups) -> None:
    folders: dict[str, pathlib.Path] = {}
    for case_id, folder in groups:
        if case_id in folders:
            raise UserError(
                f"case {case_id} is there twice: in {folders[case_id]} and in {folder}. Remove one "
                "or give the folder of one copy; the files of a case belong in one folder"
            )
        folders[case_id] = folder


def _convention(release: str, asked: str | None) -> tuple[str, list[str]]:
    if asked is not None:
        return asked, [f"label values are read as those of {asked}, as asked"]
    if release != "user":
        return release, []
    return _USER_CONVENTION, [
        f"no release was recognised: label values are read as those of {_USER_CONVENTION} "
        "(1 NCR, 2 ED, 4 ET); --config.data.label_convention says otherwise"
    ]


# ------------------------------------------------------------------------- the files of a case


def _case(release: str, case_id: str, group: Sequence[_File], notes: list[str]) -> Case:
    """Returns the case of a folder; its convention, patient and grade are filled in later."""
    paths = {}
    for sequence in _SYNONYMS:
        candidates = [file for file in group if file.sequence == sequence]
        own = [file for file in candidates if file.prefix.lower() in ("", case_id.lower())]
        if len(own or candidates) > 1:
            names = ", ".join(file.path.name for file in own or candidates)
            raise UserError(
                f"{group[0].folder}: {names} are all taken for {sequence} of {case_id}; expected "
                "one file. Remove or rename the others"
            )
        if candidates and not own and release != "user":
            _check_foreign(candidates[0], case_id)
            notes.append(f"{case_id}: {candidates[0].path.name} is taken as its {sequence}")
        if candidates:
            paths[sequence] = (own or candidates)[0].path
    label = paths.pop(LABEL, None)
    return Case(case_id, case_id, None, paths, label, release)


def _check_foreign(file: _File, case_id: str) -> None:
    if any(pattern.fullmatch(file.prefix) for pattern in _NAMES.values()):
        raise UserError(
            f"{file.path}: lies in the folder of {case_id} but has the name of another case; "
            "put it where it belongs"
        )


def _decathlon_cases(groups: _Groups, notes: list[str]) -> list[Case]:
    """Returns the cases of the Decathlon, whose sequences are the channels of one file."""
    channels = {folder: _decathlon_channels(folder, notes) for _, folder in groups}
    cases = []
    for (case_id, folder), files in groups.items():
        paths = {file.folder.name.lower()[:6]: file.path for file in files}
        image = paths.get("images")
        images = {name: (image, i) for name, i in channels[folder].items()} if image else {}
        cases.append(Case(case_id, case_id, None, images, paths.get("labels"), "decathlon"))
    return cases


def _decathlon_channels(folder: pathlib.Path, notes: list[str]) -> dict[str, int]:
    """Returns modality -> channel as dataset.json has it; refuses what is not the Decathlon's."""
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        names = {int(channel): name for channel, name in description["modality"].items()}
        edema = str(description["labels"]["1"])
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing; it says which channel is which sequence. Copy it from the "
            "Decathlon's Task01_BrainTumour"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not the Decathlon's description ({type(error).__name__}: {error}); "
            'expected JSON with "modality" and "labels". Copy it from Task01_BrainTumour'
        ) from error
    found = [_SEQUENCES.get(str(names[channel]).lower()) for channel in sorted(names)]
    if sorted(names) != [0, 1, 2, 3] or set(found) != set(conventions.MODALITIES):
        raise UserError(
            f'{path}: "modality" is {description["modality"]}; expected the channels 0 to 3 named '
            "FLAIR, T1w, T1gd and T2w"
        )
    if edema.lower() not in ("edema", "oedema"):
        raise UserError(
            f'{path}: "labels" says that 1 is {edema!r}; expected edema, as in Task01_BrainTumour'
        )
    if found != ["flair", "t1", "t1ce", "t2"]:
        notes.append(f"{path}: the channels are {', '.join(found)}, not the published order")
    return {modality: found.index(modality) for modality in conventions.MODALITIES}


# ------------------------------------------------------------------------- patients and grades


def _with_patients(
    found: list[Case], release: str, root: pathlib.Path, notes: list[str]
) -> list[Case]:
    """Fills in the patient and the grade, as far as names and tables tell them."""
    if release == "user":
        return _from_patients_csv(found, root, notes)
    grades = _name_mapping(found, release, root) if release in _NAMES else {}
    changed = []
    for case in found:
        match = _NAMES["brats2023"].fullmatch(case.case_id)
        patient = case.case_id[: match.end("patient")] if match else case.case_id
        grade = grades.get(case.case_id) or _folder_grade(case, root)
        changed.append(dataclasses.replace(case, patient_id=patient, grade=grade))
    return changed


def _folder_grade(case: Case, root: pathlib.Path) -> str | None:
    folders = (root.name, *_paths(case)[0].parent.relative_to(root).parts)
    return next((part.upper() for part in folders if part.upper() in _GRADES), None)


def _name_mapping(found: list[Case], release: str, root: pathlib.Path) -> dict[str, str]:
    """Returns case id -> grade of name_mapping.csv, which lies among the cases or above them."""
    above = {path.parents[1] for case in found for path in _paths(case)[:1]}
    column = f"BraTS_{release.removeprefix('brats')}_subject_ID"
    grades = {}
    for folder in sorted({root, root.parent, *above}):
        path = folder / "name_mapping.csv"
        if path.is_file():
            rows = _read_csv(path)
            grades |= {row.get(column, ""): row.get("Grade", "").upper() for row in rows}
    return {case_id: grade for case_id, grade in grades.items() if grade in _GRADES}


def _from_patients_csv(found: list[Case], root: pathlib.Path, notes: list[str]) -> list[Case]:
    path = root / "patients.csv"
    if not path.is_file():
        notes.append(
            "every case is taken as a patient of its own; if patients have several cases, say so "
            f"in {path} (columns case_id, patient_id, grade)"
        )
        return found
    rows = {row.get("case_id", ""): row for row in _read_csv(path)}
    missing = [case.case_id for case in found if not rows.get(case.case_id, {}).get("patient_id")]
    if missing:
        raise UserError(
            f"{path}: no patient for {_shown(missing)}; expected a row with case_id and patient_id "
            "for every case"
        )
    grades = {case_id: row.get("grade", "").upper() for case_id, row in rows.items()}
    for case_id, grade in grades.items():
        if grade not in ("", *_GRADES):
            raise UserError(
                f"{path}: the grade of {case_id} is {grade!r}; expected HGG, LGG or empty"
            )
    return [
        dataclasses.replace(
            case, patient_id=rows[case.case_id]["patient_id"], grade=grades[case.case_id] or None
        )
        for case in found
    ]


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); expected CSV") from error
    return [{key: (row[key] or "").strip() for key in row if key} for row in rows]


# ------------------------------------------------------------------------- what was asked for


def _labelled(found: list[Case], root: pathlib.Path, notes: list[str]) -> list[Case]:
    kept = [case for case in found if case.label is not None]
    if not kept:
        raise UserError(
            f"{root}: none of the {len(found)} cases has a segmentation (a file that ends in seg, "
            "label or mask; labelsTr for the Decathlon). Expected the training part of a release"
        )
    left = [case.case_id for case in found if case.label is None]
    if left:
        notes.append(f"left out for want of a segmentation: {_shown(left)}")
    return kept


def _with_modalities(
    found: list[Case], root: pathlib.Path, modalities: Sequence[str]
) -> list[Case]:
    """Keeps the wanted sequences; refuses cases that lack one."""
    there = [name for name in conventions.MODALITIES if any(name in case.images for case in found)]
    absent = [name for name in modalities if name not in there]
    if absent:
        raise UserError(
            f"{root}: no case has {', '.join(absent)}; there are {', '.join(there)}. "
            "Choose among these with --modalities (--config.data.modalities)"
        )
    lacking = {
        case.case_id: [name for name in modalities if name not in case.images] for case in found
    }
    bad = [f"{case_id} ({', '.join(names)})" for case_id, names in lacking.items() if names]
    if bad:
        raise UserError(
            f"{root}: sequences are missing in {len(bad)} of {len(found)} cases: {_shown(bad)}. "
            "Complete or remove these cases, or ask for fewer (--config.data.modalities)"
        )
    wanted = [name for name in conventions.MODALITIES if name in modalities]
    return [
        dataclasses.replace(case, images={name: case.images[name] for name in wanted})
        for case in found
    ]


def _paths(case: Case) -> list[pathlib.Path]:
    """Returns the files of a case, those of the images first."""
    images = [source[0] if isinstance(source, tuple) else source for source in case.images.values()]
    return images + ([case.label] if case.label else [])


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
