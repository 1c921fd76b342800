"""From the files of a case to what the networks see: checked, SPL, cropped, z-scored, resampled.

Every sequence is treated by itself: its background, its mean and its deviation come from its own
voxels. So a sequence looks the same to the networks whether or not the others were acquired; only
the crop depends on all of them.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8

from kdnet_jax import conventions
from kdnet_jax import task as task_lib
from kdnet_jax.data import (
    brain,
    cases,
    copies,
    decathlon,
    geometry,
    grids,
    labels,
    nifti,
    nifti_header,
    spaces,
    tumour_share,
)
from kdnet_jax.errors import UserError

# In the note on a head that was taken as it is: `predict` makes a warning of it.
SKULL_ON = "the skull seems to be on"
# z-scores are cut here, so that a metal artefact neither overflows float16 nor rules a batch.
MAX_Z = 10.0
# A brain without its skull is below 2000 ml, a head above 3000.
MAX_BRAIN_ML = 2500.0

Spacing = float | Sequence[float] | None
T = TypeVar("T")
Affine = Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedCase:
    """One visit of one patient, ready for the networks.

    Attributes:
        case_id: the name of the visit.
        patient_id: the name of the patient; several visits may share it.
        grade: "HGG", "LGG" or None where it is not known.
        modalities: the sequences in the last axis of `image`, in the project's order.
        image: z-scores on the working grid (SPL), 0 outside of the brain, within ±`MAX_Z`.
        label: classes 0..3 (and `RESECTION_CAVITY`) on the working grid, or None.
        reference: the same on the scan's own grid, untouched by crop and resampling, or None.
        geometry: the way from the scan's own grid to the working grid, and back.
    """

    case_id: str
    patient_id: str
    grade: str | None
    modalities: tuple[str, ...]
    image: Float16[np.ndarray, "d h w m"]
    label: UInt8[np.ndarray, "d h w"] | None
    reference: UInt8[np.ndarray, "x y z"] | None
    geometry: geometry.Geometry


def prepare_arrays(
    images: Mapping[str, Num[np.ndarray, "x y z"]],
    affine: Affine,
    reference: UInt8[np.ndarray, "x y z"] | None,
    *,
    spacing: Spacing,
    case_id: str,
    patient_id: str,
    grade: str | None = None,
) -> PreparedCase:
    """Prepares sequences that are already in memory, on one grid; see `prepare_case`.

    Args:
        images: modality -> intensities on the scan's grid, background 0.
        affine: of that grid.
        reference: classes on that grid, or None.
        spacing: mm, one number or one per SPL axis; None keeps the scan's own.
        case_id: see `PreparedCase`.
        patient_id: see `PreparedCase`.
        grade: see `PreparedCase`.
    """
    images = _in_order(images)
    names = {modality: f"{case_id}, {modality}" for modality in images}
    space = spaces.of_affine(affine)
    image, way, _ = _prepare_images(images, names, space, spacing, geometry.HEADER, False)
    return _with_reference(image, way, reference, tuple(images), case_id, patient_id, grade)


def prepare_case(
    case: cases.Case,
    *,
    spacing: Spacing,
    orientation: str = geometry.HEADER,
    allow_skull: bool = False,
) -> tuple[PreparedCase, list[str]]:
    """Reads, checks and prepares the files of a case.

    Args:
        case: the files.
        spacing: mm, one number or one per SPL axis; None keeps the scan's own.
        orientation: "header", or three letters such as "LPS": how the voxels are stored, where the
            header is known to be wrong. Masks still go back onto the file's own grid and affine.
        allow_skull: go on with a scan that seems to have its skull on.

    Returns:
        The case, and a sentence about everything that was repaired or assumed.

    Raises:
        UserError: a file cannot be used (see `nifti`, `labels`), the files do not share one grid,
            a sequence is empty, not skull-stripped, or repeats another one.
    """
    geometry.check_orientation(orientation)
    return prepare_files(
        case,
        read_files(case),
        spacing=spacing,
        orientation=orientation,
        allow_skull=allow_skull,
    )


class CaseFiles(NamedTuple):
    """The files of a case, read: the sequences in the project's order, and the reference."""

    images: dict[str, nifti.Volume]
    reference: nifti.Volume | None


def read_files(case: cases.Case) -> CaseFiles:
    """Reads what `prepare_files` prepares.

    Raises:
        UserError: a file cannot be used, or has other channels than are listed.
    """
    images = read_images(case.images)
    return CaseFiles(images, None if case.label is None else nifti.read_labels(case.label))


def prepare_files(
    case: cases.Case, files: CaseFiles, *, spacing: Spacing, orientation: str, allow_skull: bool
) -> tuple[PreparedCase, list[str]]:
    """Checks and prepares files that were read; see `prepare_case`."""
    label = {} if files.reference is None else {grids.LABEL: files.reference}
    stated = orientation == geometry.HEADER
    grid = grids.common_grid(files.images | label, stored_alike=not stated)
    reference = grid.members.pop(grids.LABEL, None)
    notes = grid.notes + orientation_notes(grid.space, orientation)
    names = {modality: str(volume.path) for modality, volume in grid.members.items()}
    images = {modality: volume.data for modality, volume in grid.members.items()}
    image, way, more = _prepare_images(images, names, grid.space, spacing, orientation, allow_skull)
    classes = None
    if reference is not None:
        notes += [f"{reference.path}: {note}" for note in reference.notes]
        classes = labels.to_classes(reference.data, case.convention, reference.path)
        _check_share(classes, image, way, reference.path)
    prepared = _with_reference(
        image, way, classes, tuple(images), case.case_id, case.patient_id, case.grade
    )
    return prepared, [f"{case.case_id}: {note}" for note in notes + more]


def _check_share(
    classes: UInt8[np.ndarray, "x y z"],
    image: Float16[np.ndarray, "d h w m"],
    way: geometry.Geometry,
    path: pathlib.Path,
) -> None:
    foreground_ml = np.count_nonzero(image.any(axis=-1)) * math.prod(way.spacing) / 1000
    tumour_share.check(classes, foreground_ml, spaces.voxel_ml(way.affine), path)


def unlabelled_case(images: Mapping[str, cases.Source]) -> cases.Case:
    """Returns scans without a reference, such as the one sequence at the bedside, as a case.

    Args:
        images: modality -> file, or (file, channel).

    Raises:
        UserError: the first file is no NIfTI by its name.
    """
    path = nifti_header.check_suffix(_path_and_channel(next(iter(images.values())))[0])
    return _unlabelled(path.name[: path.name.lower().rfind(".nii")], dict(images))


def in_memory(images: Mapping[str, nifti.Volume], name: str) -> tuple[cases.Case, CaseFiles]:
    """Returns scans that were not read from files of their own as what `prepare_files` takes."""
    return _unlabelled(name, {}), CaseFiles(_in_order(images), None)


def _unlabelled(name: str, images: dict[str, cases.Source]) -> cases.Case:
    return cases.Case(
        case_id=name, patient_id=name, grade=None, images=images, label=None, convention="kdnet"
    )


# ------------------------------------------------------------------------------------- files


def read_images(sources: Mapping[str, cases.Source]) -> dict[str, nifti.Volume]:
    """Reads the sequences, each file once, in the project's order of modalities.

    Raises:
        UserError: a file cannot be used, or has other channels than are listed.
    """
    files: dict[pathlib.Path, nifti.Volume] = {}
    volumes = {}
    for modality, source in _in_order(sources).items():
        path, channel = _path_and_channel(source)
        if path not in files:
            files[path] = nifti.read_volume(path, channels=channel is not None)
        volumes[modality] = _channel(files[path], channel)
    return volumes


def _in_order(by_modality: Mapping[str, T]) -> dict[str, T]:
    return {m: by_modality[m] for m in sorted(by_modality, key=conventions.MODALITIES.index)}


def _path_and_channel(source: cases.Source) -> tuple[pathlib.Path, int | None]:
    path, channel = source if isinstance(source, tuple) else (source, None)
    return pathlib.Path(path), channel


def _channel(volume: nifti.Volume, channel: int | None) -> nifti.Volume:
    if channel is None:
        return volume
    decathlon.check_channels(volume.path, volume.data.shape, task_lib.DEFAULT)
    return dataclasses.replace(volume, data=volume.data[..., channel])


def orientation_notes(space: spaces.Space, orientation: str) -> list[str]:
    """Returns what was assumed of where the voxels of a scan lie."""
    if orientation == geometry.HEADER:
        return list(space.doubts)
    says = "".join(nib.aff2axcodes(space.affine)) if space.is_known else "nothing"
    taken = f"the voxels are taken as stored in {orientation} (the header says {says})"
    return [taken, *(doubt for doubt in space.doubts if not doubt.startswith(spaces.UNSAID))]


# ------------------------------------------------------------------------------- intensities


def _prepare_images(
    images: Mapping[str, Num[np.ndarray, "x y z"]],
    names: Mapping[str, str],
    space: spaces.Space,
    spacing: Spacing,
    orientation: str,
    allow_skull: bool,
) -> tuple[Float16[np.ndarray, "d h w m"], geometry.Geometry, list[str]]:
    """Crops to the union of all brains; scores and resamples each sequence by its own brain.

    Raises:
        UserError: see `find_brain`, `z_score` and `copies.repeated`.
    """
    affine = space.affine
    voxel_ml = spaces.voxel_ml(affine)
    masks, notes = {}, []
    for modality, volume in images.items():
        masks[modality], note = find_brain(volume, voxel_ml, names[modality], allow_skull)
        notes += note
    union = np.logical_or.reduce(list(masks.values()))
    box = _bounding_box(geometry.orient(union, affine, orientation))
    way = geometry.make_geometry(
        union.shape, space, box=box, spacing=spacing, orientation=orientation
    )
    _check_grid(way, next(iter(names.values())))
    image = np.empty((*way.working_shape, len(images)), np.float16)
    voxels, samples = copies.places(union), {}
    for index, (modality, volume) in enumerate(images.items()):
        scores = z_score(volume, masks[modality], names[modality])
        if len(images) > 1:
            samples[modality] = copies.sample(scores, voxels)
        image[..., index] = geometry.to_working(scores, way, order=1)
    for error in copies.repeated(samples, names).values():
        raise error
    return image, way, notes


def _check_grid(way: geometry.Geometry, name: str) -> None:
    """Refuses a working grid that no brain fills, before memory is taken for it."""
    voxels = math.prod(way.working_shape)
    if voxels > nifti_header.MAX_VOXELS:
        raise UserError(
            f"{name}: what is not background is {' x '.join(map(str, way.working_shape))} voxels "
            f"at {' x '.join(f'{mm:g}' for mm in way.spacing)} mm; expected at most "
            f"{nifti_header.MAX_VOXELS}. Is the header's voxel size right?"
        )


def find_brain(
    volume: Num[np.ndarray, "x y z"], voxel_ml: float, name: str, allow_skull: bool = False
) -> tuple[Bool[np.ndarray, "x y z"], list[str]]:
    """Returns the voxels that are not background, and a note where that took a decision.

    The background is 0, or the one value that the border of the volume has (a volume that others
    z-scored), or near it where interpolation rang (see `brain.foreground`). A border with neither,
    or too large a foreground, is a head with its skull.

    Args:
        volume: intensities.
        voxel_ml: the volume of a voxel, ml.
        name: names the scan in messages.
        allow_skull: take such a head as it is, with a note.

    Raises:
        UserError: nothing but background, or the skull is on and `allow_skull` is false.
    """
    mask, notes = brain.foreground(volume, name)
    reason = None
    if mask is None:
        mask, reason = np.ones(volume.shape, bool), "the border of the volume is not background"
    elif (millilitres := np.count_nonzero(mask) * voxel_ml) > MAX_BRAIN_ML:
        reason = f"{millilitres:.0f} ml are not background, a brain has at most {MAX_BRAIN_ML:g}"
    if not mask.any():
        raise UserError(f"{name}: every voxel is background; expected a brain")
    if reason is None:
        return mask, notes
    if not allow_skull:
        raise UserError(
            f"{name}: {reason}: {SKULL_ON}. Expected a skull-stripped scan: strip it "
            "with HD-BET or SynthStrip, or go on as it is with --allow_skull "
            "(--config.data.allow_skull=true)"
        )
    return mask, [*notes, f"{name}: {reason}: {SKULL_ON}. The scan was used as it is"]


def _bounding_box(mask: Bool[np.ndarray, "d h w"]) -> geometry.Box:
    """Returns (start, stop) per axis of the smallest box that holds all of `mask`."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        box.append((int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def z_score(
    volume: Num[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"], name: str
) -> Float[np.ndarray, "x y z"]:
    """Returns (volume - mean) / deviation over `mask`, cut at ±`MAX_Z`, and 0 outside of it.

    Raises:
        UserError: all voxels of `mask` have one value.
    """
    inside = volume[mask].astype(np.float64)  # float32 sums lose digits at intensities of 1e7
    deviation = inside.std()
    if inside.min() == inside.max() or deviation == 0:
        raise UserError(
            f"{name}: every voxel of the brain is {inside[0]:g}; the file holds a mask or an empty "
            "sequence, expected intensities"
        )
    # In place: of a large head this is the largest array of all.
    inside -= inside.mean()
    inside /= deviation
    np.clip(inside, -MAX_Z, MAX_Z, out=inside)
    scores = np.zeros(volume.shape, np.float32)
    scores[mask] = inside
    return scores


def _with_reference(
    image: Float16[np.ndarray, "d h w m"],
    way: geometry.Geometry,
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
        image=image,
        label=None if reference is None else geometry.to_working(reference, way, order=0),
        reference=reference,
        geometry=way,
    )
