"""Finds the cases of a release, or of a user's own collection, by folder and file names alone.

No image is opened, so a release of 1251 cases takes well under a second. What the names cannot
tell (labels, grids) is checked when a case is read (`prepare.py`). `docs/data.md` shows the
layouts.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from kdnet_jax import conventions
from kdnet_jax.data import labels, layouts, patients
from kdnet_jax.errors import UnknownLayoutError, UserError, nearest

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


def find_cases(
    data_dir: str | os.PathLike[str],
    release: str = layouts.AUTO,
    modalities: Sequence[str] = conventions.MODALITIES,
    labelled: bool = True,
    label_convention: str | None = None,
) -> Cohort:
    """Finds the cases under `data_dir`.

    Args:
        data_dir: the root of a release, or up to two folders above it.
        release: one of `layouts.RELEASES`; "auto" recognises it by names.
        modalities: the sequences that every case must have; others are ignored.
        labelled: leave out cases without a segmentation.
        label_convention: what label values mean, a key of `labels.LABEL_CONVENTIONS`; None takes
            the release's own, and for a user's own data "brats2021" (with a note).

    Raises:
        UserError: nothing usable is there, several releases are, a case lacks a sequence or is
            there twice, or an argument is not known.
    """
    _check_arguments(release, modalities, label_convention)
    root = layouts.check_folder(data_dir)
    files, notes = layouts.list_files(root)
    release, groups, more = layouts.choose_release(release, files, root)
    layouts.check_unique(groups)
    convention, meaning = layouts.label_convention_of(release, label_convention)
    notes += more + meaning
    if release == "decathlon":
        found = _decathlon_cases(groups, notes)
    else:
        found = [_case(release, case_id, files, notes) for (case_id, _), files in groups.items()]
    found = [dataclasses.replace(case, convention=convention) for case in found if case.images]
    if not found:
        raise UnknownLayoutError(
            f"{root}: none of its {len(files)} NIfTI files {layouts.UNKNOWN}\n{layouts.LAYOUTS}"
        )
    unused = len(files) - sum(len(set(patients.case_files(case))) for case in found)
    if unused:
        notes.append(f"{unused} other NIfTI files under {root} are not used")
    found = patients.with_patients(found, release, root, notes)
    found = _labelled(found, root, notes) if labelled else found
    cases = sorted(_with_modalities(found, root, modalities), key=lambda case: case.case_id)
    return Cohort(release, cases, [f"{release}: {len(cases)} cases under {root}", *notes])


def _check_arguments(release: str, modalities: Sequence[str], convention: str | None) -> None:
    if release not in (layouts.AUTO, *layouts.RELEASES):
        raise UserError(
            f"release is {release!r}{nearest(release, layouts.RELEASES)}; expected auto or one of "
            f"{', '.join(layouts.RELEASES)}"
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


# ------------------------------------------------------------------------- the files of a case


def _case(release: str, case_id: str, group: Sequence[layouts.File], notes: list[str]) -> Case:
    """Returns the case of a folder; its convention, patient and grade are filled in later."""
    paths = {}
    for sequence in layouts.SYNONYMS:
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
    label = paths.pop(layouts.LABEL, None)
    return Case(case_id, case_id, None, paths, label, release)


def _check_foreign(file: layouts.File, case_id: str) -> None:
    if any(pattern.fullmatch(file.prefix) for pattern in layouts.NAMES.values()):
        raise UserError(
            f"{file.path}: lies in the folder of {case_id} but has the name of another case; "
            "put it where it belongs"
        )


def _decathlon_cases(groups: layouts.Groups, notes: list[str]) -> list[Case]:
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
    found = [layouts.SEQUENCES.get(str(names[channel]).lower()) for channel in sorted(names)]
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
        notes.append(f"left out for want of a segmentation: {layouts.shown(left)}")
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
            f"{root}: sequences are missing in {len(bad)} of {len(found)} cases: "
            f"{layouts.shown(bad)}. Complete or remove these cases, or ask for fewer "
            "(--config.data.modalities)"
        )
    wanted = [name for name in conventions.MODALITIES if name in modalities]
    return [
        dataclasses.replace(case, images={name: case.images[name] for name in wanted})
        for case in found
    ]
