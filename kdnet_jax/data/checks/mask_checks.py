"""Checks of the masks of cases, before anything is computed."""

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import nibabel as nib
import numpy as np
from jaxtyping import Num, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import counting
from kdnet_jax.data.checks import problems
from kdnet_jax.data.scans import grids, nifti, spaces
from kdnet_jax.data.sources import labels, segmentations
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import scoring

# A mask with larger values, or with more than these and the task's, is none.
_MOST_VALUES: Final = 16
_LARGEST: Final = 255


_NOWHERE: Final = spaces.Space(np.eye(4))


@dataclasses.dataclass(frozen=True)
class Content:
    """What was read in a file: its grid, values and channels, notes, or its problem.

    Where it could not be read at all, the shape is empty, and the space means nothing.
    """

    shape: tuple[int, ...] = ()
    space: spaces.Space = _NOWHERE
    values: frozenset[int] = frozenset()
    channels: int = 0
    notes: tuple[str, ...] = ()
    problem: str | None = None


def read_content(path: pathlib.Path, *, task: task_lib.Task) -> Content:
    """Reads a mask and says what it holds; a mistake in the file becomes its `problem`."""
    try:
        volume = nifti.read_labels(path, channels=True)
    except UserError as error:
        return Content(problem=str(error))
    values, counts = counting.value_counts(volume.data)
    most = max(_MOST_VALUES, *map(len, labels.conventions_of(task).values()))
    problem = _not_labels(values, counts, most)
    if problem:
        return Content(volume.shape, volume.space, problem=f"{path}: {problem}")
    held = frozenset(map(int, values.tolist()))
    channels = volume.data.shape[3] if volume.data.ndim > 3 else 0
    return Content(volume.shape, volume.space, held, channels, volume.notes)


def _not_labels(
    values: Num[np.ndarray, " n"], counts: Num[np.ndarray, " n"], most: int
) -> str | None:
    broken = ~np.isfinite(values) | (values != np.round(values))
    if broken.any():
        some = ", ".join(f"{value:.4g}" for value in values[broken][:3])
        return (
            f"holds values that are no whole numbers ({some}, in {counts[broken].sum()} voxels): "
            "probabilities, or a mask that was resampled with interpolation. Expected a label "
            "map; take the most probable class, and resample masks with nearest neighbour"
        )
    if values[0] < 0 or values[-1] > _LARGEST:
        odd = values[0] if values[0] < 0 else values[-1]
        return f"holds the value {odd:.4g}. Expected a label map"
    if len(values) > most:
        return f"holds {len(values)} different values. Expected a label map"
    return None


def check_files(
    case_id: str, paths: Iterable[pathlib.Path], contents: Mapping[pathlib.Path, Content]
) -> list[problems.Problem]:
    """Returns what is wrong with each of a case's files by itself."""
    return [
        problems.from_error(UserError(contents[path].problem), case_id, path)
        for path in paths
        if contents[path].problem
    ]


def check_pairs(
    pairs: Iterable[segmentations.Pair],
    contents: Mapping[pathlib.Path, Content],
    *,
    ignore_affine: bool,
) -> list[problems.Problem]:
    """Returns what is wrong with the files of each pair, and between them.

    Args:
        pairs: the cases.
        contents: what every file of them holds.
        ignore_affine: take voxel i of the prediction as voxel i of the reference, wherever the
            prediction's header places it.
    """
    listed = []
    for pair in pairs:
        both = (pair.reference, pair.prediction)
        broken = check_files(pair.case_id, both, contents)
        # Without a shape, a file could not be read at all.
        readable = all(contents[path].shape for path in both)
        listed += broken + (_check_grid(pair, contents, ignore_affine) if readable else [])
    return listed


def _check_grid(
    pair: segmentations.Pair, contents: Mapping[pathlib.Path, Content], ignore_affine: bool
) -> list[problems.Problem]:
    reference, prediction = contents[pair.reference], contents[pair.prediction]

    def problem(finding: str, remedy: str) -> list[problems.Problem]:
        path = str(pair.prediction)
        return [problems.Problem(pair.case_id, path, problems.ERROR, finding, remedy)]

    if not ignore_affine and grids.turn_onto(prediction, reference) is not None:
        return []
    if reference.shape != prediction.shape:
        return problem(
            f"its grid is {_grid(prediction)}, that of its reference {pair.reference.name} is "
            f"{_grid(reference)}",
            "Both belong on the scan's own grid: predict there, or resample the mask that is "
            "elsewhere to it with nearest neighbour",
        )
    if ignore_affine:
        return []
    apart = spaces.displacement(reference.space.affine, prediction.space.affine, reference.shape)
    return problem(
        f"its header places voxels up to {apart:.1f} mm from where that of its reference "
        f"{pair.reference.name} has them: {_place(prediction)}, against {_place(reference)}",
        "If only the header was lost or changed and the voxels are in the reference's order, "
        "--ignore_affine takes the reference's header for both; else resample the mask",
    )


def _grid(content: Content) -> str:
    sizes = spaces.spacing(content.space.affine)
    return f"{spaces.times(content.shape)} of {spaces.times(sizes)} mm"


def _place(content: Content) -> str:
    affine = content.space.affine
    if spaces.is_identity(affine):
        return "an identity affine"
    if not content.space.is_known:
        return "a header without orientation"
    axes = "".join(nib.aff2axcodes(affine))
    origin = ", ".join(f"{mm:g}" for mm in affine[:3, 3].round(2) + 0.0)
    return f"{axes}, {spaces.times(spaces.spacing(affine))} mm, origin {origin}"


# ------------------------------------------------------------------------- labels


def channel_problems(
    asked: str,
    flag: str,
    contents: Mapping[pathlib.Path, Content],
    held: Mapping[pathlib.Path, Collection[int]],
    task: task_lib.Task,
) -> list[problems.Problem]:
    """Returns a row for each mask that has other channels than the flag names."""
    names = labels.channel_names(asked, task)
    expected = f"{len(names)} channels of 0 and 1, as {flag} names" if names else "one label map"
    examples = (("TC", "WT", "ET"), task.classes)
    if not labels.is_brats(task):
        examples = dict.fromkeys((("background", *task.region_names), task.classes))
    remedy = (
        f"If they are of one region or class each, {flag} names them in their order, such as "
        f"{' or '.join(map(','.join, examples))}; probabilities must be thresholded first"
    )
    return [
        problems.Problem(
            "",
            str(path),
            problems.ERROR,
            f"has {contents[path].channels or 'no'} channels with the values "
            f"{', '.join(map(str, sorted(values)))}; expected {expected}",
            remedy,
        )
        for path, values in held.items()
        if contents[path].channels != len(names) or (names and not set(values) <= {0, 1})
    ]


def foreign_values(
    held: Mapping[pathlib.Path, Collection[int]], side: str, task: task_lib.Task
) -> list[problems.Problem]:
    """Returns a row for each mask with a value that the task does not know.

    A reference may have the ignore label; a prediction has no use for it.
    """
    known = list(labels.conventions_of(task)[labels.TASK])
    if side == "prediction" and task.ignore is not None:
        known.remove(task.ignore)
    return [
        problems.Problem(
            "",
            str(path),
            problems.ERROR,
            f"holds the values {', '.join(map(str, sorted(values)))}; the task {task.name} knows "
            f"{', '.join(map(str, known))}",
            "Convert the mask, or correct the task's labels",
        )
        for path, values in held.items()
        if not set(values) <= set(known)
    ]


# ------------------------------------------------------------------------- reading a pair


def read_pair(
    pair: segmentations.Pair,
    reference_labels: str,
    prediction_labels: str,
    cavity: str,
    ignore_affine: bool,
    *,
    task: task_lib.Task,
) -> scoring.Masks:
    """Returns the classes "x y z" of reference and prediction, and the reference's spacing.

    Args:
        pair: on one grid, as `check_pairs` found.
        reference_labels: see `labels.classes_of`.
        prediction_labels: the same.
        cavity: what a resection cavity counts as in both (`labels.map_cavity`).
        ignore_affine: see `check_pairs`.
        task: what was segmented.
    """
    reference, prediction = (
        nifti.read_labels(path, channels=True) for path in (pair.reference, pair.prediction)
    )
    if not ignore_affine:
        prediction = grids.turned(prediction, reference)

    def classes(volume: nifti.Volume, convention: str) -> UInt8[np.ndarray, "x y z"]:
        found = labels.classes_of(volume.data, convention, volume.path, task=task)
        return labels.map_cavity(found, cavity, task=task)

    return scoring.Masks(
        classes(reference, reference_labels),
        classes(prediction, prediction_labels),
        spaces.spacing(reference.affine),
    )
