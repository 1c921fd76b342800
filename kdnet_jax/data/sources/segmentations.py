"""Masks of two folders, made by any tool, matched by case.

Names alone tell the case; `docs/evaluation.md` has the rules. What the files hold is the matter
of `mask_checks.py`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import problems
from kdnet_jax.data.scans import nifti_header
from kdnet_jax.data.sources import layouts, names, own_layouts, task_names
from kdnet_jax.errors import UserError, counted, first_few, nearest

# What tools also write behind the name of the case; "trans" is the default of MONAI's SaveImage.
_MASK_ENDINGS: Final = ("labels", "pred", "prediction", "trans")
_OTHER_ENDINGS: Final = re.compile(
    r"[_-](prob|probs|probseg|probability|probabilities|softmax|logits|uncertainty|entropy|overlay|image)$",
    re.IGNORECASE,
)
_IMAGE_FOLDERS: Final = ("imagestr", "imagests")
_NAMED: Final = 40  # missing cases that are named one by one


@dataclasses.dataclass(frozen=True)
class Found:
    """The masks of a folder.

    Attributes:
        folder: where they lie.
        masks: case id -> its files; more than one is a problem.
        files: the same, as they were listed.
        notes: what was left aside.
    """

    folder: pathlib.Path
    masks: dict[str, list[pathlib.Path]]
    files: list[layouts.File]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two masks of a case."""

    case_id: str
    reference: pathlib.Path
    prediction: pathlib.Path


# ------------------------------------------------------------------------- finding


def find_masks(folder: str | os.PathLike[str], flag: str, task: task_lib.Task) -> Found:
    """Finds the masks of a folder and the case of each, by names.

    They have the task's file ending, or are NIfTI files.

    Args:
        folder: with masks at any depth; of a run's folder, its predictions are taken.
        flag: the option that named it, for messages.
        task: what they are masks of.

    Raises:
        UserError: there is no such folder, or no mask in it.
    """
    root = pathlib.Path(os.path.abspath(pathlib.Path(folder).expanduser()))
    if not os.fspath(folder) or not root.is_dir():
        what = "is a file" if os.fspath(folder) and root.exists() else "there is no such folder"
        raise UserError(f"{flag}={folder}: {what}; expected a folder with masks")
    if (root / "config.json").is_file() and (root / "predictions").is_dir():
        root = root / "predictions"
    files, doubled = layouts.list_files(
        root, problems.refuse, task=task, endings=nifti_header.SUFFIXES
    )
    chosen, left = _masks_among(files)
    masks: dict[str, list[pathlib.Path]] = {}
    for file in chosen:
        masks.setdefault(_case_id(file, root, task), []).append(file.path)
    if not masks:
        aside = [f"{file.path.name} is {file.name.aside}" for file in files if file.name.aside]
        why = f" ({aside[0]} by its name)" if aside else ""
        raise UserError(
            f"{flag}={root}: none of its {len(files)} images is a mask by its name{why}; "
            "expected CASE.nii.gz, CASE_seg.nii.gz or CASE/seg.nii.gz"
        )
    left += [path for path in sorted(root.iterdir()) if _is_foreign(path, task)]
    notes = [f"{root}: no masks, left aside: {first_few([path.name for path in left])}"]
    return Found(root, masks, chosen, doubled + (notes if left else []))


def _masks_among(
    files: Sequence[layouts.File],
) -> tuple[list[layouts.File], list[pathlib.Path]]:
    """Returns the masks, and what is neither a mask nor a scan."""
    masks, images, left = [], [], []
    cases = _case_folders(files)
    for file in files:
        if file.folder.name.lower() in _IMAGE_FOLDERS:
            continue
        beside = file.sequence is None and file.folder in cases
        if beside or file.name.aside or file.name.doubt or _OTHER_ENDINGS.search(file.stem):
            left.append(file.path)
        elif file.sequence in (None, names.LABEL):
            masks.append(file)
        else:
            images.append(file)
    if not masks and len({file.sequence for file in images}) == 1:
        # Masks that were given the name of the one sequence that they were made from.
        return images, left
    return masks, left


def _case_folders(files: Sequence[layouts.File]) -> set[pathlib.Path]:
    """Returns the folders of cases, scans and segmentation: what else is there is no mask."""
    scans = {file.folder for file in files if file.sequence not in (None, names.LABEL)}
    return scans & {file.folder for file in files if file.sequence == names.LABEL}


def _case_id(file: layouts.File, root: pathlib.Path, task: task_lib.Task) -> str:
    if any(pattern.fullmatch(file.folder.name) for pattern in layouts.NAMES.values()):
        return file.folder.name  # a file in it may be misnamed (BraTS20_Training_355)
    stem, sep, ending = _split_name(file.stem)
    if ending in _MASK_ENDINGS:
        if not sep:
            return own_layouts.case_of_bare(file, root)
        name = task_names.read(stem, file.folder.name, task)
        # MONAI names its result after the first image: CASE_flair_trans.
        return name.prefix or file.folder.name if name.sequence else stem
    return file.prefix or own_layouts.case_of_bare(file, root) if file.sequence else file.stem


def _split_name(stem: str) -> tuple[str, str, str]:
    """Returns what stands before the last _ or -, that character, and what stands behind it."""
    match = re.fullmatch(r"(.*)([_-])([^_-]*)", stem)
    return (match[1], match[2], match[3].lower()) if match else ("", "", stem.lower())


def _is_foreign(path: pathlib.Path, task: task_lib.Task) -> bool:
    return (
        path.is_file()
        and not path.name.startswith(".")
        and not path.name.lower().endswith((*nifti_header.SUFFIXES, task.file_ending))
    )


def release_of(found: Found) -> str | None:
    """Returns the release whose own layout all the masks have; CASE.nii.gz says nothing of labels.

    Raises:
        UserError: the masks are of several releases, or of one whose labels are other tissues.
    """
    own = [
        file
        for file in found.files
        if file.sequence == names.LABEL or file.folder.name.lower() == "labelstr"
    ]
    chosen, _ = layouts.choose_release(layouts.AUTO, own, found.folder, problems.refuse)
    return next(iter(chosen)) if len(own) == len(found.files) and "user" not in chosen else None


# ------------------------------------------------------------------------- matching


def match(
    references: Found, predictions: Found, wanted: Sequence[str] | None, *, allow_missing: bool
) -> tuple[list[Pair], list[str], list[problems.Problem], list[str]]:
    """Matches the masks by case id.

    Args:
        references: the masks to score against.
        predictions: the masks to score.
        wanted: the cases to score; None takes all that have a reference.
        allow_missing: whether cases without a prediction are left out.

    Returns:
        The pairs by case id, the cases that are left out, the problems, and notes.
    """
    cases = sorted(references.masks if wanted is None else wanted)
    without = {
        name: [case for case in cases if case not in found.masks]
        for name, found in (("reference", references), ("prediction", predictions))
    }
    left_out = without["prediction"] if allow_missing else []
    listed = _missing("reference", without["reference"], references, cases, "")
    if not allow_missing:
        remedy = "--allow_missing leaves them out; --cases=a,b or split.json:test names the cases"
        listed += _missing("prediction", without["prediction"], predictions, cases, remedy)
    both = [case for case in cases if case in references.masks and case in predictions.masks]
    for found in (references, predictions):
        listed += [_doubled(case, found.masks[case]) for case in both if found.masks[case][1:]]
    pairs = [Pair(case, references.masks[case][0], predictions.masks[case][0]) for case in both]
    if not both:
        listed.append(_nothing_matches(references, predictions))
    return pairs, left_out, listed, _extra(predictions, references, wanted)


def _missing(
    what: str, cases: Sequence[str], found: Found, known: Sequence[str], remedy: str
) -> list[problems.Problem]:
    if not cases:
        return []
    hint = nearest(cases[0], set(found.masks) - set(known)).removesuffix("?")
    finding = f"no {what} for {counted(len(cases), 'case')}: {first_few(cases, _NAMED)}{hint}"
    return [problems.Problem("", str(found.folder), problems.ERROR, finding, remedy)]


def _doubled(case: str, paths: Sequence[pathlib.Path]) -> problems.Problem:
    finding = f"there are {len(paths)} masks of this case, also {', '.join(map(str, paths[1:]))}"
    return problems.Problem(case, str(paths[0]), problems.ERROR, finding, "Keep one of them")


def _nothing_matches(references: Found, predictions: Found) -> problems.Problem:
    finding = (
        f"no case is in both folders: predictions of {first_few(sorted(predictions.masks))}; "
        f"references of {first_few(sorted(references.masks))}"
    )
    remedy = "Name the predictions CASE.nii.gz, with the case ids of the references"
    return problems.Problem("", str(predictions.folder), problems.ERROR, finding, remedy)


def _extra(predictions: Found, references: Found, wanted: Sequence[str] | None) -> list[str]:
    extra = sorted(set(predictions.masks) - set(references.masks if wanted is None else wanted))
    if not extra:
        return []
    why = "without a reference" if wanted is None else "that --cases does not name"
    return [f"not scored: {counted(len(extra), 'prediction')} {why}: {first_few(extra)}"]
