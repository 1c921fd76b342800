"""Preparation of a case: its files checked, turned to SPL, cropped, normalised and resampled.

Every channel is normalised separately (`intensities`); only the crop depends on all of them, where
the task has one (`Task.is_cropped`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.checks import tumour_share
from kdnet_jax.data.scans import copies, geometry, grids, intensities, nifti, nifti_header, spaces
from kdnet_jax.data.sources import cases, decathlon, labels
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import boxes

# A sequence of MRI shows something of its own; CT windows of one scan do not.
COMPARED: Final = ("zscore_nonzero", "zscore")

Spacing = float | Sequence[float] | None
T = TypeVar("T")
# Called by these names from outside of the project.
find_brain, z_score = intensities.find_brain, intensities.z_score
Affine = Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedCase:
    """One visit of one patient, ready for the networks.

    Attributes:
        case_id: the name of the visit.
        patient_id: the name of the patient; several visits may share it.
        grade: "HGG", "LGG" or None where it is not known.
        modalities: the channels in the last axis of `image`, in the task's order.
        image: normalised intensities on the working grid (SPL); of a "zscore_nonzero" channel 0 is
            its background.
        label: classes on the working grid, and values that are no class (`Task.unscored`,
            `Task.ignore`), or None.
        reference: the same on the scan's own grid, untouched by crop and resampling, or None.
        geometry: the way from the scan's own grid to the working grid, and back.
        foreground: where the scan has data, on the working grid; None where `image` shows it.
        absent: the channels that the case lacks, of which `image` is 0.
    """

    case_id: str
    patient_id: str
    grade: str | None
    modalities: tuple[str, ...]
    image: Float16[np.ndarray, "d h w m"]
    label: UInt8[np.ndarray, "d h w"] | None
    reference: UInt8[np.ndarray, "x y z"] | None
    geometry: geometry.Geometry
    foreground: Bool[np.ndarray, "d h w"] | None = None
    absent: tuple[str, ...] = ()

    @property
    def inside(self) -> Bool[np.ndarray, "d h w"]:
        """Where the scan has data: what is foreground in any channel."""
        return np.any(self.image, axis=-1) if self.foreground is None else self.foreground


def prepare_arrays(
    images: Mapping[str, Num[np.ndarray, "x y z"]],
    affine: Affine,
    reference: UInt8[np.ndarray, "x y z"] | None,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    spacing: Spacing,
    case_id: str,
    patient_id: str,
    grade: str | None = None,
) -> PreparedCase:
    """Prepares channels that are already in memory, on one grid; see `prepare_case`.

    Args:
        images: channel -> intensities on the scan's grid, background 0.
        affine: of that grid.
        reference: classes on that grid, or None.
        task: what is segmented.
        spacing: mm, one number or one per SPL axis; None keeps the scan's own.
        case_id: see `PreparedCase`.
        patient_id: see `PreparedCase`.
        grade: see `PreparedCase`.
    """
    images = _in_order(images, task)
    names = {modality: f"{case_id}, {modality}" for modality in images}
    space = spaces.of_affine(affine)
    voxels = _prepare_images(images, names, task, space, spacing, geometry.HEADER, False)
    return _with_reference(voxels, reference, tuple(images), case_id, patient_id, grade)


def prepare_case(
    case: cases.Case,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    spacing: Spacing,
    orientation: str = geometry.HEADER,
    allow_skull: bool = False,
    modalities: Sequence[str] | None = None,
) -> tuple[PreparedCase, list[str]]:
    """Reads, checks and prepares the files of a case.

    Args:
        case: the files.
        task: what is segmented; of "ct" channels with their statistics.
        spacing: mm, one number or one per SPL axis; None keeps the scan's own.
        orientation: "header", or three letters such as "LPS": how the voxels are stored, where the
            header is known to be wrong. Masks still go back onto the file's own grid and affine.
        allow_skull: accept a scan that seems to have its skull on, in a channel whose
            normalisation is that of skull-stripped scans ("zscore_nonzero").
        modalities: the channels of the image, in the task's order; None: those of the case.

    Returns:
        The case, and a sentence about everything that was repaired or assumed.

    Raises:
        UserError: a file cannot be used (see `nifti`, `labels`), the files do not share one grid,
            a sequence is empty, not skull-stripped, or repeats another one, or a "ct" channel has
            no statistics.
    """
    geometry.check_orientation(orientation)
    prepared, notes = prepare_files(
        case,
        read_files(case, task=task),
        task=task,
        spacing=spacing,
        orientation=orientation,
        allow_skull=allow_skull,
    )
    return with_absent(prepared, modalities or prepared.modalities), notes


def with_absent(case: PreparedCase, modalities: Sequence[str]) -> PreparedCase:
    """Returns a case with all of these channels, 0 where it has none of its own."""
    absent = tuple(name for name in modalities if name not in case.modalities)
    if not absent:
        return case
    image = np.zeros((*case.image.shape[:3], len(modalities)), np.float16)
    image[..., [modalities.index(name) for name in case.modalities]] = case.image
    return dataclasses.replace(case, modalities=tuple(modalities), image=image, absent=absent)


class CaseFiles(NamedTuple):
    """The files of a case, read: the channels in the task's order, and the reference."""

    images: dict[str, nifti.Volume]
    reference: nifti.Volume | None


def read_files(case: cases.Case, *, task: task_lib.Task = task_lib.DEFAULT) -> CaseFiles:
    """Reads what `prepare_files` prepares.

    Raises:
        UserError: a file cannot be used, or has other channels than are listed.
    """
    images = read_images(case.images, task=task)
    return CaseFiles(images, None if case.label is None else nifti.read_labels(case.label))


def prepare_files(
    case: cases.Case,
    files: CaseFiles,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    spacing: Spacing,
    orientation: str,
    allow_skull: bool,
) -> tuple[PreparedCase, list[str]]:
    """Checks and prepares files that were read; see `prepare_case`."""
    label = {} if files.reference is None else {grids.LABEL: files.reference}
    stated = orientation == geometry.HEADER
    grid = grids.common_grid(files.images | label, stored_alike=not stated)
    reference = grid.members.pop(grids.LABEL, None)
    notes = grid.notes + orientation_notes(grid.space, orientation)
    names = {modality: str(volume.path) for modality, volume in grid.members.items()}
    images = {modality: volume.data for modality, volume in grid.members.items()}
    voxels = _prepare_images(images, names, task, grid.space, spacing, orientation, allow_skull)
    classes = None
    if reference is not None:
        notes += [f"{reference.path}: {note}" for note in reference.notes]
        classes = labels.to_classes(reference.data, case.convention, reference.path, task=task)
        if labels.is_brats(task):  # Other structures may fill what they lie in.
            _check_share(classes, voxels.image, voxels.way, reference.path)
    prepared = _with_reference(
        voxels, classes, tuple(images), case.case_id, case.patient_id, case.grade
    )
    return prepared, [f"{case.case_id}: {note}" for note in notes + voxels.notes]


def _check_share(
    classes: UInt8[np.ndarray, "x y z"],
    image: Float16[np.ndarray, "d h w m"],
    way: geometry.Geometry,
    path: pathlib.Path,
) -> None:
    foreground_ml = np.count_nonzero(image.any(axis=-1)) * way.voxel_ml
    tumour_share.check(classes, foreground_ml, spaces.voxel_ml(way.affine), path)


def unlabelled_case(
    images: Mapping[str, cases.Source], *, task: task_lib.Task = task_lib.DEFAULT
) -> cases.Case:
    """Returns scans without a reference, such as the one sequence at the bedside, as a case.

    Args:
        images: channel -> file, or (file, channel of it).
        task: what is segmented.

    Raises:
        UserError: the first file is no scan by its name.
    """
    path = nifti_header.check_readable(_path_and_channel(next(iter(images.values())))[0])
    return _unlabelled(nifti_header.stem(path), dict(images), task)


def in_memory(
    images: Mapping[str, nifti.Volume], name: str, *, task: task_lib.Task = task_lib.DEFAULT
) -> tuple[cases.Case, CaseFiles]:
    """Returns scans that were not read from files of their own as what `prepare_files` takes."""
    return _unlabelled(name, {}, task), CaseFiles(_in_order(images, task), None)


def _unlabelled(name: str, images: dict[str, cases.Source], task: task_lib.Task) -> cases.Case:
    return cases.Case(
        case_id=name,
        patient_id=name,
        grade=None,
        images=images,
        label=None,
        convention=labels.own_convention(task),
    )


# ------------------------------------------------------------------------------------- files


def read_images(
    sources: Mapping[str, cases.Source], *, task: task_lib.Task = task_lib.DEFAULT
) -> dict[str, nifti.Volume]:
    """Reads the channels, each file once, in the task's order.

    Raises:
        UserError: a file cannot be used, or has other channels than are listed.
    """
    files: dict[pathlib.Path, nifti.Volume] = {}
    volumes = {}
    for modality, source in _in_order(sources, task).items():
        path, channel = _path_and_channel(source)
        if path not in files:
            files[path] = nifti.read_volume(path, channels=channel is not None)
        volumes[modality] = _channel(files[path], channel, task)
    return volumes


def read_grid(
    sources: Mapping[str, cases.Source],
    *,
    task: task_lib.Task = task_lib.DEFAULT,
    orientation: str = geometry.HEADER,
) -> grids.Grid:
    """Returns the grid of the channels, by the headers of their files alone.

    Args:
        sources: channel -> file, or (file, channel of it).
        task: what is segmented.
        orientation: see `prepare_case`.

    Returns:
        The grid that `prepare_files` finds; the voxels of its members are made up.

    Raises:
        UserError: a header cannot be used, or the files do not share one grid.
    """
    volumes = {}
    for modality, source in _in_order(sources, task).items():
        path, channel = _path_and_channel(source)
        header = nifti.read_header(path, channels=channel is not None)
        # One number stands for all voxels: it takes no memory, and no grid depends on them.
        voxels = np.broadcast_to(np.float32(0), header.shape[:3])
        volumes[modality] = nifti.Volume(voxels, header.space, path)
    return grids.common_grid(volumes, stored_alike=orientation != geometry.HEADER)


def _in_order(by_modality: Mapping[str, T], task: task_lib.Task) -> dict[str, T]:
    return {m: by_modality[m] for m in sorted(by_modality, key=task.modalities.index)}


def _path_and_channel(source: cases.Source) -> tuple[pathlib.Path, int | None]:
    path, channel = source if isinstance(source, tuple) else (source, None)
    return pathlib.Path(path), channel


def _channel(volume: nifti.Volume, channel: int | None, task: task_lib.Task) -> nifti.Volume:
    if channel is None:
        return volume
    decathlon.check_channels(volume.path, volume.data.shape, task)
    return dataclasses.replace(volume, data=volume.data[..., channel])


def orientation_notes(space: spaces.Space, orientation: str) -> list[str]:
    """Returns what was assumed of where the voxels of a scan lie."""
    if orientation == geometry.HEADER:
        return list(space.doubts)
    says = "".join(nib.aff2axcodes(space.affine)) if space.is_known else "nothing"
    taken = f"the voxels are taken as stored in {orientation} (the header says {says})"
    return [taken, *(doubt for doubt in space.doubts if not doubt.startswith(spaces.UNSAID))]


# ------------------------------------------------------------------------------- intensities


class _Voxels(NamedTuple):
    """What is made of the channels of a case; see `PreparedCase`."""

    image: Float16[np.ndarray, "d h w m"]
    foreground: Bool[np.ndarray, "d h w"] | None
    way: geometry.Geometry
    notes: list[str]


def _prepare_images(
    images: Mapping[str, Num[np.ndarray, "x y z"]],
    names: Mapping[str, str],
    task: task_lib.Task,
    space: spaces.Space,
    spacing: Spacing,
    orientation: str,
    allow_skull: bool,
) -> _Voxels:
    """Crops to the union of all foregrounds, if the task does so; prepares each channel separately.

    Raises:
        UserError: see `intensities.foreground`, `intensities.normalise` and `copies.repeated`.
    """
    channels = {modality: task.channel(modality) for modality in images}
    for channel in channels.values():
        if channel.normalisation == "ct":
            intensities.known_statistics(channel)
    affine = space.affine
    voxel_ml = spaces.voxel_ml(affine)
    masks, notes = {}, []
    for modality, volume in images.items():
        masks[modality], note = intensities.foreground(
            volume, channels[modality], voxel_ml, names[modality], allow_skull
        )
        notes += note
    union = np.logical_or.reduce(list(masks.values()))
    kept = union if task.is_cropped else np.ones_like(union)
    box = boxes.bounding_box(geometry.orient(kept, affine, orientation))
    way = geometry.make_geometry(
        union.shape,
        space,
        box=typed.triple((side.start, side.stop) for side in box),
        spacing=spacing,
        orientation=orientation,
    )
    _check_grid(way, next(iter(names.values())))
    image = np.empty((*way.working_shape, len(images)), np.float16)
    compared = [m for m, channel in channels.items() if channel.normalisation in COMPARED]
    voxels, samples = copies.places(union) if len(compared) > 1 else None, {}
    for index, (modality, volume) in enumerate(images.items()):
        mask, channel = masks[modality], channels[modality]
        scores = intensities.normalise(volume, mask, channel, names[modality])
        if voxels is not None and modality in compared:
            stripped = channel.normalisation == "zscore_nonzero"
            own = scores if stripped else np.where(mask, scores, 0)
            samples[modality] = copies.sample(own, voxels)
        image[..., index] = geometry.to_working(scores, way, order=1)
    for error in copies.repeated(samples, names).values():
        raise error
    return _Voxels(image, _foreground(kept, way, task), way, notes)


def _foreground(
    kept: Bool[np.ndarray, "x y z"], way: geometry.Geometry, task: task_lib.Task
) -> Bool[np.ndarray, "d h w"] | None:
    """Returns the foreground on the working grid, None where 0 in every channel says the same."""
    if all(task.zero_is_background()):
        return None
    if kept.all():
        return np.ones(way.working_shape, bool)
    return geometry.to_working(kept.astype(np.float32), way, order=1) >= 0.5


def _check_grid(way: geometry.Geometry, name: str) -> None:
    """Refuses a working grid that no scan fills, before memory is taken for it."""
    voxels = math.prod(way.working_shape)
    if voxels > nifti_header.MAX_VOXELS:
        raise UserError(
            f"{name}: what is not background is {' x '.join(map(str, way.working_shape))} voxels "
            f"at {' x '.join(f'{mm:g}' for mm in way.spacing)} mm; expected at most "
            f"{nifti_header.MAX_VOXELS}. Is the header's voxel size right?"
        )


def _with_reference(
    voxels: _Voxels,
    reference: UInt8[np.ndarray, "x y z"] | None,
    modalities: tuple[str, ...],
    case_id: str,
    patient_id: str,
    grade: str | None,
) -> PreparedCase:
    return PreparedCase(
        case_id=case_id,
        patient_id=patient_id,
        grade=grade,
        modalities=modalities,
        image=voxels.image,
        label=None if reference is None else geometry.to_working(reference, voxels.way, order=0),
        reference=reference,
        geometry=voxels.way,
        foreground=voxels.foreground,
    )
