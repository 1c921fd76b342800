"""Checks of one case: everything that is wrong with its files.

`prepare.prepare_case`, which training uses, stops at the first problem. What it refuses is an error
here, found by the same functions; what it repairs or takes as it is, is a warning.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import counting
from kdnet_jax.data.checks import cohort_checks, problems, tumour_share
from kdnet_jax.data.scans import copies, geometry, grids, intensities, nifti, prepare, spaces
from kdnet_jax.data.sources import cases, labels, patients
from kdnet_jax.errors import UserError

_ONE_GRID = "Register and resample the files of a case to one grid, or repair the wrong header"
_REPAIR = "Or repair the headers"
_LOOK = "Open the case in a viewer; repair the file if this is wrong"
# Reference contours end at the brain; a label turned over, or of another case, does not.
_MIN_TUMOUR_IN_BRAIN = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What could be read of a case.

    Attributes:
        case: the files.
        problems: all that is wrong, in the order of the files.
        shape: the grid that most files share, or None without any.
        space: where it lies.
        scores: channel -> normalised intensities on that grid, 0 where the channel is background;
            readable files only.
        classes: the stored values of the task, on that grid, or None.
        label_values: as stored.
    """

    case: cases.Case
    problems: list[problems.Problem]
    shape: tuple[int, ...] | None = None
    space: spaces.Space | None = None
    scores: Mapping[str, Float32[np.ndarray, "x y z"]] = dataclasses.field(default_factory=dict)
    classes: UInt8[np.ndarray, "x y z"] | None = None
    label_values: tuple[int | float, ...] = ()

    @property
    def affine(self) -> spaces.Affine | None:
        """4x4 float64, voxel index to mm, RAS+."""
        return None if self.space is None else self.space.affine


class _Notebook:
    """Collects the problems of one case, each once."""

    def __init__(self, case_id: str) -> None:
        self._case = case_id
        self._rows: dict[problems.Problem, None] = {}

    @property
    def rows(self) -> list[problems.Problem]:
        return list(self._rows)

    def refuse(self, error: UserError, file: object) -> None:
        self._rows[problems.from_error(error, self._case, file)] = None

    def error(self, file: object, finding: str, remedy: str) -> None:
        row = problems.Problem(self._case, str(file), problems.ERROR, finding, remedy)
        self._rows[row] = None

    def warn(self, file: object, finding: str, remedy: str = _LOOK) -> None:
        row = problems.Problem(self._case, str(file), problems.WARNING, finding, remedy)
        self._rows[row] = None


def read_case(
    case: cases.Case,
    orientation: str = geometry.HEADER,
    allow_skull: bool = False,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> Reading:
    """Reads a case, however broken it is; the other arguments are as in `prepare_case`."""
    book = _Notebook(case.case_id)
    if not case.images:  # It lacks all wanted sequences, which was reported when it was found.
        return Reading(case, [])
    volumes = _read_images(case, task, book)
    label = _read_label(case, book)
    members = volumes if label is None else volumes | {grids.LABEL: label}
    if not members:
        return Reading(case, book.rows)
    grid = grids.settle(members, stored_alike=orientation != geometry.HEADER)
    shape, affine = grid.shape, grid.affine
    _note_grid(grid, members, orientation, case, book)
    # What lies elsewhere is looked at too, and then left out.
    volumes, label = volumes | grid.members, grid.members.get(grids.LABEL, label)
    volumes.pop(grids.LABEL, None)
    found = {
        name: _scores(volume, task.channel(name), affine, allow_skull, book)
        for name, volume in volumes.items()
    }
    scores = {name: s for name, s in found.items() if s is not None and s.shape == shape}
    classes = None if label is None else _classes(label, case, task, book)
    if classes is not None and classes.shape != shape:
        classes = None
    if labels.is_brats(task):
        _check_in_brain(scores, classes, grid.space, case, book)
    _check_sequences(scores, classes, volumes, case, task, book)
    values = () if label is None else tuple(counting.value_counts(label.data)[0].tolist())
    return Reading(case, book.rows, shape, grid.space, scores, classes, values)


# --------------------------------------------------------------------------------------- files


def _read_images(case: cases.Case, task: task_lib.Task, book: _Notebook) -> dict[str, nifti.Volume]:
    by_file: dict[pathlib.Path, dict[str, cases.Source]] = {}
    for modality, source in case.images.items():
        path = source[0] if isinstance(source, tuple) else source
        by_file.setdefault(path, {})[modality] = source
    volumes = {}
    for path, sources in by_file.items():
        try:
            volumes |= prepare.read_images(sources, task=task)
        except UserError as error:
            book.refuse(error, path)
    return {name: volumes[name] for name in task.modalities if name in volumes}


def _read_label(case: cases.Case, book: _Notebook) -> nifti.Volume | None:
    if case.label is None:
        book.warn(
            folder_of(case),
            "no segmentation: only a student with a teacher can train on the case",
            "Add the segmentation if there is one; otherwise nothing",
        )
        return None
    try:
        return nifti.read_labels(case.label)
    except UserError as error:
        book.refuse(error, case.label)
        return None


def folder_of(case: cases.Case) -> pathlib.Path:
    """Returns the folder of a case's first file; "." where it has none of the wanted ones."""
    files = patients.case_files(case)
    return files[0].parent if files else pathlib.Path()


# ---------------------------------------------------------------------------------------- grid


def _note_grid(
    grid: grids.Grid,
    members: Mapping[str, nifti.Volume],
    orientation: str,
    case: cases.Case,
    book: _Notebook,
) -> None:
    """Notes the files that do not lie on the grid of most, and what was assumed of it."""
    for name, finding in grid.refused.items():
        book.error(members[name].path, finding, _ONE_GRID)
    for note in grid.notes:
        book.warn(folder_of(case), note)
    for note in prepare.orientation_notes(grid.space, orientation):
        if note.startswith(spaces.NO_ORIENTATION):
            book.error(folder_of(case), note, _REPAIR)
        elif note.startswith(spaces.DOUBTS):
            book.warn(folder_of(case), note)


# ----------------------------------------------------------------------------------- intensities


def _scores(
    volume: nifti.Volume,
    channel: task_lib.Channel,
    affine: spaces.Affine,
    allow_skull: bool,
    book: _Notebook,
) -> Float32[np.ndarray, "x y z"] | None:
    """Returns normalised intensities, those of a head that is refused for its skull too.

    A CT whose range of intensities was not measured yet is z-scored.
    """
    if channel.normalisation == "ct" and channel.statistics is None:
        channel = dataclasses.replace(channel, normalisation="zscore")
    voxel_ml = spaces.voxel_ml(affine)
    name = str(volume.path)
    for allowed in dict.fromkeys((allow_skull, True)):
        try:
            mask, notes = intensities.foreground(volume.data, channel, voxel_ml, name, allowed)
            if allowed == allow_skull:
                for note in notes:
                    book.warn(volume.path, note.removeprefix(f"{name}: "))
            scores = intensities.normalise(volume.data, mask, channel, name)
            return np.where(mask, scores, np.float32(0))
        except UserError as error:
            book.refuse(error, volume.path)
    return None


def _classes(
    label: nifti.Volume, case: cases.Case, task: task_lib.Task, book: _Notebook
) -> UInt8[np.ndarray, "x y z"] | None:
    try:
        classes = labels.to_classes(label.data, case.convention, label.path, task=task)
    except UserError as error:
        book.refuse(error, label.path)
        return None
    for note in label.notes:
        book.warn(label.path, note)
    if not (classes.any() if labels.is_brats(task) else task.hull_mask(classes).any()):
        book.warn(
            label.path,
            f"the segmentation is empty: no voxel is {task.noun}",
            f"Keep the case if the patient has no {task.noun}; otherwise replace the segmentation",
        )
    return classes


def _check_in_brain(
    scores: Mapping[str, Float32[np.ndarray, "x y z"]],
    classes: UInt8[np.ndarray, "x y z"] | None,
    space: spaces.Space,
    case: cases.Case,
    book: _Notebook,
) -> None:
    """Looks whether the label of a tumour lies in the brain."""
    if case.label is None or classes is None or not classes.any() or not scores:
        return
    brain = np.logical_or.reduce([volume != 0 for volume in scores.values()])
    voxel_ml = spaces.voxel_ml(space.affine)
    try:
        brain_ml = np.count_nonzero(brain) * voxel_ml
        tumour_share.check(classes, brain_ml, voxel_ml, case.label)
    except UserError as error:
        book.refuse(error, case.label)
    share = brain[classes > 0].mean()
    if share < _MIN_TUMOUR_IN_BRAIN:
        finding = f"only {share:.0%} of the segmented tumour lie within the brain"
        remedy = "Check that it belongs to this case and is stored in its orientation"
        book.warn(case.label, finding, remedy)


def _check_sequences(
    scores: Mapping[str, Float32[np.ndarray, "x y z"]],
    classes: UInt8[np.ndarray, "x y z"] | None,
    volumes: Mapping[str, nifti.Volume],
    case: cases.Case,
    task: task_lib.Task,
    book: _Notebook,
) -> None:
    """Looks whether the channels are different images, and brain MRI what its names say."""
    compared = {
        name: volume
        for name, volume in scores.items()
        if task.channel(name).normalisation in prepare.COMPARED
    }
    repeated = _repeated(compared, volumes)
    for modality, error in repeated.items():
        book.refuse(error, volumes[modality].path)
    if not labels.is_brats(task):
        return
    measured = cohort_checks.contrast(scores, classes)
    if measured is None:
        return
    pair = None if repeated else cohort_checks.swapped(measured)
    if pair:
        book.warn(
            folder_of(case),
            f"{' and '.join(pair)} seem to be swapped: their contrasts fit each other's name",
            "Look at both in a viewer; rename the files if they are swapped",
        )


def _repeated(
    scores: Mapping[str, Float32[np.ndarray, "x y z"]], volumes: Mapping[str, nifti.Volume]
) -> dict[str, UserError]:
    if len(scores) < 2:
        return {}
    union = np.logical_or.reduce([volume != 0 for volume in scores.values()])
    voxels = copies.places(union)
    samples = {name: copies.sample(volume, voxels) for name, volume in scores.items()}
    return copies.repeated(samples, {name: str(volumes[name].path) for name in scores})


# ---------------------------------------------------------------------------------- who it is


def content(
    reading: Reading,
    orientation: str = geometry.HEADER,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> cohort_checks.Content:
    """Returns what identifies the case by its voxels (see `cohort_checks.doubled`).

    What makes two scans one was measured on skull-stripped brains, so other channels do not count.
    """
    case, affine = reading.case, reading.affine
    prints, keys = {}, []
    if affine is not None:
        for modality, scores in reading.scores.items():
            if task.channel(modality).normalisation != "zscore_nonzero":
                continue
            turned = cohort_checks.fingerprint(geometry.orient(scores, affine, orientation))
            stored = geometry.unorient(turned, turned.shape, affine, orientation)
            prints[modality] = np.stack([turned.ravel(), stored.ravel()])
        if reading.classes is not None:
            both = (geometry.orient(reading.classes, affine, orientation), reading.classes)
            keys = [cohort_checks.label_key(classes) for classes in both]
    labels_held = frozenset(key for key in keys if key is not None)
    return cohort_checks.Content(
        case.case_id, case.patient_id, str(folder_of(case)), prints, labels_held
    )
