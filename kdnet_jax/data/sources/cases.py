"""Cases of a release, or of a user's own collection, found by folder and file names alone.

No image is opened, so a release of 1251 cases takes well under a second. What the names cannot
tell (labels, grids) is checked when a case is read (`prepare.py`). `docs/data.md` shows the
layouts.
"""

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import problems
from kdnet_jax.data.scans import nifti_header
from kdnet_jax.data.sources import (
    decathlon,
    labels,
    layouts,
    names,
    own_layouts,
    patients,
    task_layouts,
    task_names,
)
from kdnet_jax.errors import UnknownLayoutError, UserError, check_choice, counted, first_few

Source = pathlib.Path | tuple[pathlib.Path, int]
_CHOOSE: Final = (
    "(check_data, build_data: --modalities; in a config --config.data.modalities; predict, "
    "evaluate: --sequences, of a network that was trained with modality dropout)"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """The files of one visit of one patient.

    Attributes:
        case_id: the name of the visit.
        patient_id: the name of the patient; several visits may share it.
        grade: "HGG", "LGG" or None where it is not known.
        images: modality -> file, or (file, channel), in the task's order of channels.
        label: the segmentation, or None.
        convention: what the values of `label` mean, a key of `labels.conventions_of(task)`.
    """

    case_id: str
    patient_id: str
    grade: str | None
    images: dict[str, Source]
    label: pathlib.Path | None
    convention: str


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The cases of one release, by case id, and notes on them.

    `left_aside` are the notes on masks that are no segmentation by their names.
    """

    release: str
    cases: list[Case]
    notes: list[str]
    left_aside: tuple[str, ...] = ()


def find_cases(
    data_dir: str | os.PathLike[str],
    release: str = layouts.AUTO,
    modalities: Sequence[str] | None = None,
    labelled: bool = True,
    label_convention: str | None = None,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    unlabelled: bool = False,
    incomplete: bool = False,
) -> Cohort:
    """Finds the cases under `data_dir`.

    Args:
        data_dir: the root of a release, or up to two folders above it.
        release: one of `layouts.RELEASES`; "auto" recognises it by names.
        modalities: the sequences that every case must have, others are ignored; None: all of
            the task.
        labelled: leave out cases without a segmentation.
        label_convention: what label values mean, a key of `labels.LABEL_CONVENTIONS`; None takes
            the release's own, and for a user's own data "brats2021" (with a note). Of tasks
            other than the glioma the values are the task's own numbers.
        task: what is segmented: it names the channels and the label values.
        unlabelled: with `labelled`, keep those without a segmentation that have all sequences.
        incomplete: keep cases that lack some of the sequences, but not all.

    Raises:
        UserError: nothing usable is there, several releases are, a case lacks a sequence or is
            duplicate, or an argument is unknown.
    """
    modalities = task.modalities if modalities is None else modalities
    _check_arguments(release, modalities, label_convention, task)
    root = layouts.check_folder(data_dir)
    cohort = _find(root, release, label_convention, task, problems.refuse, labelled=labelled)
    found = _labelled(cohort, root, task, unlabelled) if labelled else cohort.cases
    found = _with_modalities(found, root, modalities, task, problems.refuse)
    if incomplete:
        _note_incomplete(found, root, cohort.notes, task)
    else:
        if unlabelled:
            found = _without_incomplete_bare(found, cohort.notes, task)
        _refuse_incomplete(found, root, task)
    if unlabelled:
        _note_bare(found, cohort.notes)
    return _told(cohort, found, root)


def survey_cases(
    data_dir: str | os.PathLike[str],
    release: str = layouts.AUTO,
    modalities: Sequence[str] | None = None,
    label_convention: str | None = None,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    incomplete: bool = False,
) -> tuple[Cohort, list[problems.Problem]]:
    """Finds all that looks like a case, of all releases, and lists what `find_cases` would refuse.

    A case may lack sequences or its segmentation, or be duplicate. The arguments are those of
    `find_cases`.

    Raises:
        UserError: there is no such folder, nothing in it is recognised, or an argument is wrong.
    """
    modalities = task.modalities if modalities is None else modalities
    _check_arguments(release, modalities, label_convention, task)
    root = layouts.check_folder(data_dir)
    listed: list[problems.Problem] = []

    def report(error: UserError, case: str, file: object) -> None:
        listed.append(problems.from_error(error, case, file))

    try:
        cohort = _find(root, release, label_convention, task, report)
    except UnknownLayoutError as error:
        if not listed:
            raise
        report(error, "", root)
        return Cohort(release, [], []), listed
    if not any(case.label for case in cohort.cases):
        report(_unlabelled(cohort, root, task), "", root)
    found = _with_modalities(cohort.cases, root, modalities, task, report)
    folders = [patients.case_files(case)[0].parent for case in cohort.cases]
    listed += _incomplete(found, folders, task, incomplete)
    if lacking := _lacking(found, task):
        cohort.notes.append(_counted(lacking, len(found), task))
    return _told(cohort, found, root), listed


def _find(
    root: pathlib.Path,
    release: str,
    label_convention: str | None,
    task: task_lib.Task,
    report: problems.Report,
    *,
    labelled: bool = True,
) -> Cohort:
    """Returns the cases of all releases that are taken, whole or not.

    What their labels mean is noted where they are used (`labelled`).
    """
    files, notes = layouts.list_files(root, report, task=task)
    if labels.is_brats(task):
        chosen, more = layouts.choose_release(release, files, root, report)
        more = more if labelled else []
    else:
        chosen, more = task_layouts.choose(files, root, task, report)
    notes += more
    found = []
    untold: list[layouts.File] = []
    if "user" in chosen:
        chosen["user"] = own_layouts.leave_untold(chosen["user"])
        untold = [file for file in _members(chosen) if file.name.aside]
    aside = _left_aside(
        [*files, *untold] if "user" in chosen or labels.is_brats(task) else [], task
    )
    used = files if "user" in chosen else _members(chosen)
    _check_doubts(used, task, report)
    for name, groups in chosen.items():
        layouts.check_unique(groups, report)
        convention, meaning = layouts.label_convention_of(name, label_convention, task)
        notes += meaning if labelled else []
        cases = _cases_of(name, groups, task, notes, report)
        bare = [case.case_id for case in cases if not case.images and case.label]
        if bare:
            aside.append(f"have a segmentation but no sequence, not used: {first_few(bare)}")
        cases = [dataclasses.replace(case, convention=convention) for case in cases if case.images]
        found += _with_patients(cases, name, root, task, notes, report)
    notes += aside
    if not found:
        raise UnknownLayoutError(_unknown(files, root, task))
    taken = {path for case in found for path in patients.case_files(case)}
    unused = [file.path.name for file in files if file.path not in taken]
    if unused:
        notes.append(
            f"not used of {root}: {counted(len(unused), f'other {_kind(task)} file')}: "
            f"{first_few(unused)}"
        )
    return Cohort(", ".join(chosen), found, notes, tuple(aside))


def _kind(task: task_lib.Task) -> str:
    return "NIfTI" if task.file_ending in nifti_header.SUFFIXES else task.file_ending


def _unknown(files: Sequence[layouts.File], root: pathlib.Path, task: task_lib.Task) -> str:
    known = layouts.UNKNOWN
    if not labels.is_brats(task):
        known = (
            f"has a name that says its channel ({', '.join(task.modalities)}, and seg), such as "
            f"{first_few([file.path.name for file in files[:1]])}. Rename them, or name the "
            'words of their names in "aliases" under "kdnet" in the dataset.json.'
        )
    known += f"\n{layouts.layouts_of(task)}"
    return f"{root}: none of its {len(files)} {_kind(task)} files {known}"


def _members(chosen: dict[str, layouts.Groups]) -> list[layouts.File]:
    return [file for groups in chosen.values() for group in groups.values() for file in group]


def _left_aside(files: Sequence[layouts.File], task: task_lib.Task) -> list[str]:
    """Returns a note for each kind of masks, and images with contrast agent, that is not taken."""
    words = {} if labels.is_brats(task) else task_names.ASIDE
    reasons: dict[str, list[str]] = {}
    for file in files:
        if file.name.aside and file.name.aside != names.OTHER_IMAGE:
            why = words.get(file.name.aside, file.name.aside)
            reasons.setdefault(why, []).append(file.path.name)
    return [f"by name {why}, not used: {first_few(found)}" for why, found in reasons.items()]


def _check_doubts(
    files: Sequence[layouts.File], task: task_lib.Task, report: problems.Report
) -> None:
    """Refuses images whose names do not say which sequence they are."""
    listed = ", ".join(task.modalities[:-1])
    listed += f"{' or ' * bool(listed)}{task.modalities[-1]}"
    for file in files:
        if file.name.doubt:
            message = (
                f"{file.path}: its name {file.name.doubt}; expected one sequence. Rename it so "
                f"that it ends in {listed} alone, or move it away"
            )
            report(UserError(message), file.prefix, file.path)


def _told(cohort: Cohort, cases: list[Case], root: pathlib.Path) -> Cohort:
    """Returns the cohort with these cases in order, and their number as its first note."""
    notes = [f"{cohort.release}: {counted(len(cases), 'case')} under {root}", *cohort.notes]
    ordered = sorted(cases, key=lambda case: case.case_id)
    return dataclasses.replace(cohort, cases=ordered, notes=notes)


def _check_arguments(
    release: str, modalities: Sequence[str], convention: str | None, task: task_lib.Task
) -> None:
    releases = layouts.RELEASES if labels.is_brats(task) else ()
    check_choice("data.release", release, (layouts.AUTO, *releases))
    task.read_modalities(",".join(modalities), "data.modalities")
    if convention is not None:
        check_choice("data.label_convention", convention, labels.conventions_of(task))


# ------------------------------------------------------------------------- the files of a case


def _cases_of(
    release: str,
    groups: layouts.Groups,
    task: task_lib.Task,
    notes: list[str],
    report: problems.Report,
) -> list[Case]:
    if release == "decathlon":
        return _decathlon_cases(groups, task, notes, report)
    second: list[str] = []
    found = [
        _case(release, case_id, files, task, notes, second, report)
        for (case_id, _), files in groups.items()
    ]
    if second:
        notes.append(
            "of two files the one without bias correction (of masks the corrected one) is taken, "
            f"not {first_few(second)}"
        )
    return found


def _with_patients(
    found: list[Case],
    release: str,
    root: pathlib.Path,
    task: task_lib.Task,
    notes: list[str],
    report: problems.Report,
) -> list[Case]:
    try:
        return patients.with_patients(found, release, root, notes, task=task)
    except UserError as error:
        report(error, "", root)
        return found


def _case(
    release: str,
    case_id: str,
    group: Sequence[layouts.File],
    task: task_lib.Task,
    notes: list[str],
    second: list[str],
    report: problems.Report,
) -> Case:
    """Returns the case of a folder; its convention, patient and grade are filled in later.

    `second` gets the names of files that stand behind a better one of their sequence.
    """
    paths = {}
    for sequence in (*task.modalities, names.LABEL):
        candidates = [file for file in group if file.sequence == sequence]
        own = [file for file in candidates if file.prefix.lower() in ("", case_id.lower())]
        pool = own or candidates
        first = [file for file in pool if not file.name.secondary]
        if len(first) == 1:
            second += [file.path.name for file in pool if file.name.secondary]
            pool = first
        if len(pool) > 1:
            _refuse_several(pool, sequence, case_id, report)
        if candidates and not own and release != "user":
            _check_foreign(candidates[0], case_id, report)
            notes.append(f"{case_id}: {candidates[0].path.name} is taken as its {sequence}")
        if candidates:
            paths[sequence] = pool[0].path
    label = paths.pop(names.LABEL, None)
    return Case(case_id, case_id, None, paths, label, release)


def _refuse_several(
    files: Sequence[layouts.File], sequence: str, case_id: str, report: problems.Report
) -> None:
    folders = {file.folder for file in files}
    shown = ", ".join(str(f.path) if len(folders) > 1 else f.path.name for f in files)
    bids = any("derivatives" in folder.parts for folder in folders) and len(folders) > 1
    remedy = (
        "Give the folder of one pipeline (derivatives/NAME), or one with links to what is wanted, "
        "as data_dir (data.data_dir)"
        if bids
        else "Remove or rename the others"
    )
    message = (
        f"{files[0].folder}: {shown} are all taken for {sequence} of {case_id}; expected one file. "
        f"{remedy}"
    )
    report(UserError(message), case_id, files[0].folder)


def _check_foreign(file: layouts.File, case_id: str, report: problems.Report) -> None:
    if any(pattern.fullmatch(file.prefix) for pattern in layouts.NAMES.values()):
        message = (
            f"{file.path}: lies in the folder of {case_id} but has the name of another case. "
            "Put it where it belongs"
        )
        report(UserError(message), case_id, file.path)


def _decathlon_cases(
    groups: layouts.Groups, task: task_lib.Task, notes: list[str], report: problems.Report
) -> list[Case]:
    """Returns the cases of the Decathlon, whose sequences are the channels of one file."""
    channels = {}
    for folder in dict.fromkeys(folder for _, folder in groups):
        try:
            if labels.is_brats(task):
                channels[folder] = decathlon.read_channels(folder, notes)
            else:
                channels[folder] = task_layouts.channel_order(folder, task, notes)
        except UserError as error:
            report(error, "", folder / "dataset.json")
    cases = []
    for (case_id, folder), files in groups.items():
        paths = {file.folder.name.lower()[:6]: file.path for file in files}
        image, known = paths.get("images"), channels.get(folder, {})
        # A file of one channel has no axis for it.
        several = len(task.channels) > 1
        images = {name: (image, i) if several else image for name, i in known.items() if image}
        cases.append(Case(case_id, case_id, None, images, paths.get("labels"), "decathlon"))
    return cases


# ------------------------------------------------------------------------- what was asked for


def _labelled(
    cohort: Cohort, root: pathlib.Path, task: task_lib.Task, keep_others: bool
) -> list[Case]:
    kept = [case for case in cohort.cases if case.label is not None]
    if not kept:
        raise _unlabelled(cohort, root, task)
    left = [case.case_id for case in cohort.cases if case.label is None]
    if left and not keep_others:
        cohort.notes.append(f"left out for want of a segmentation: {first_few(left)}")
    return cohort.cases if keep_others else kept


def _without_incomplete_bare(
    found: list[Case], notes: list[str], task: task_lib.Task
) -> list[Case]:
    """Leaves out cases that have no segmentation and lack a sequence that others have."""
    lacking = _lacking(found, task)
    left = [case.case_id for i, case in enumerate(found) if i in lacking and case.label is None]
    if left:
        notes.append(f"left out, without a segmentation and incomplete: {first_few(left)}")
    return [case for case in found if case.case_id not in left]


def _note_bare(found: list[Case], notes: list[str]) -> None:
    if bare := [case.case_id for case in found if case.label is None]:
        notes.append(f"without a segmentation: {first_few(bare)}")


def _unlabelled(cohort: Cohort, root: pathlib.Path, task: task_lib.Task) -> UserError:
    aside = "".join(f"; {note}" for note in cohort.left_aside)
    brats = labels.is_brats(task)
    nnunet, what = ("", "tumour's segmentation") if brats else (" and nnU-Net", "segmentation")
    return UserError(
        f"{root}: no segmentation in {counted(len(cohort.cases), 'case')} (a file that ends in "
        f"seg, label or mask; labelsTr for the Decathlon{nnunet}){aside}. Expected the training "
        f"part of a release; a {what} under another name has to be renamed to CASE_seg"
    )


def _with_modalities(
    found: list[Case],
    root: pathlib.Path,
    modalities: Sequence[str],
    task: task_lib.Task,
    report: problems.Report,
) -> list[Case]:
    """Keeps the wanted sequences, as far as a case has them."""
    there = _present(found, task)
    absent = [name for name in modalities if name not in there]
    if absent:
        message = (
            f"{root}: no case has {', '.join(absent)}; there are {', '.join(there)}. "
            f"Choose among these {_CHOOSE}"
        )
        report(UserError(message), "", root)
    wanted = [name for name in there if name in modalities]
    return [
        dataclasses.replace(
            case, images={name: case.images[name] for name in wanted if name in case.images}
        )
        for case in found
    ]


def _present(found: list[Case], task: task_lib.Task) -> list[str]:
    return [name for name in task.modalities if any(name in case.images for case in found)]


def _lacking(found: list[Case], task: task_lib.Task) -> dict[int, list[str]]:
    """Returns the place of each incomplete case -> the sequences that it lacks and others have."""
    there = _present(found, task)
    lacking = {i: [m for m in there if m not in case.images] for i, case in enumerate(found)}
    return {i: names for i, names in lacking.items() if names}


def _counted(lacking: dict[int, list[str]], count: int, task: task_lib.Task) -> str:
    """Says how many of `count` cases lack what."""
    times = Counter(name for names in lacking.values() for name in names)
    listed = ", ".join(f"{name} ({times[name]})" for name in task.modalities if times[name])
    return f"{len(lacking)} of {count} cases lack a sequence: {listed}"


def _note_incomplete(
    found: list[Case], root: pathlib.Path, notes: list[str], task: task_lib.Task
) -> None:
    """Counts the cases that lack a sequence; refuses those that lack all of them."""
    if empty := [case.case_id for case in found if not case.images]:
        raise UserError(
            f"{root}: {', '.join(_present(found, task))} are all missing in "
            f"{counted(len(empty), 'case')}: "
            f"{first_few(empty)}. Remove them, or ask for other sequences "
            f"{layouts.flags_of('modalities')}"
        )
    if lacking := _lacking(found, task):
        lack = _counted(lacking, len(found), task)
        notes.append(f"{lack}. They are used in training alone, where it is 0 (data.incomplete)")


def _refuse_incomplete(found: list[Case], root: pathlib.Path, task: task_lib.Task) -> None:
    bad = [f"{found[i].case_id} ({', '.join(names)})" for i, names in _lacking(found, task).items()]
    if bad:
        raise UserError(
            f"{root}: sequences are missing in {len(bad)} of {len(found)} cases: "
            f"{first_few(bad)}. Complete or remove these cases, ask for fewer {_CHOOSE}, or use "
            "them in training (--config.data.incomplete=true)"
        )


def _incomplete(
    found: list[Case], folders: list[pathlib.Path], task: task_lib.Task, allowed: bool
) -> list[problems.Problem]:
    """Returns a row for each incomplete case; `folders` are those of the cases."""
    use = "" if allowed else "--incomplete, "
    remedy = (
        "Add the file (docs/data.md has the names), remove the case, do without the sequence "
        f"(--modalities, --config.data.modalities), or use the case in training ({use}"
        "--config.data.incomplete=true)"
    )
    return [
        problems.Problem(
            found[i].case_id,
            str(folders[i]),
            problems.WARNING if allowed and found[i].images else problems.ERROR,
            f"no file for {', '.join(names)}; expected one, as in the other cases",
            remedy,
        )
        for i, names in _lacking(found, task).items()
    ]
