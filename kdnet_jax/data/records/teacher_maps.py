"""Teacher's maps: probabilities of every training case from a folder, on the working grid.

Each case's file is a 4-D image on the scan's own grid, with a channel for each output of the
network in its order: classes, or regions. It is brought to the working grid once, as fixed-point
numbers in an uncompressed file below the built datasets, of which a crop reads no more than it
needs. Of classes the background is left out: it is what the others leave, so that voxels outside
of a case, where all is 0, are background.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, UInt16

from kdnet_jax.core import console, files
from kdnet_jax.data.records import case_builder, cohort_builder, records, store
from kdnet_jax.data.scans import geometry as geometry_lib
from kdnet_jax.data.scans import grids, nifti, nifti_header, spaces
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads

KEY: Final = "teacher.maps"
# A probability of 1 in the files of fixed-point numbers, and on the device.
ONE: Final = 65535
# What `predict --probabilities` adds to a mask's name; without it the file is called as the case.
_SUFFIXES: Final = ("_prob", "")
# To be raised by whoever changes what is written below the built datasets.
_VERSION: Final = 1
_FOLDER: Final = "teacher_maps"
# Rounding of other tools, float16 among them.
_TOLERANCE: Final = 2e-3
_SUM_TOLERANCE: Final = 2e-2

_EXPECTED: Final = (
    "Expected a 4-D image for each training case, as python -m kdnet_jax.predict --probabilities "
    "writes it (docs/distillation.md)"
)


@dataclasses.dataclass(frozen=True)
class Maps:
    """The probabilities of a teacher for some cases of a store.

    Attributes:
        folder: where they came from.
        channels: how many each voxel has: the outputs of the head but for the background.
        hash: of the files that they are made of, and of the grids.
        files: index of a case in the store -> its numbers on the working grid.
    """

    folder: pathlib.Path
    channels: int
    hash: str
    files: Mapping[int, pathlib.Path]

    def __getitem__(self, index: int) -> UInt16[np.ndarray, "d h w k"]:
        """Returns the probabilities of a case times `ONE`, mapped from its file."""
        # Opened for each use: a map that stays open takes a file descriptor.
        return np.load(self.files[index], mmap_mode="r", allow_pickle=False)


def open_maps(
    folder: pathlib.Path,
    cases: store.CaseStore,
    indices: Sequence[int],
    head: heads.Head,
    *,
    root: pathlib.Path,
    workers: int = 1,
    progress: bool = True,
) -> Maps:
    """Brings the maps of cases to their working grids, but for those that are there already.

    Args:
        folder: of the teacher's files: `CASE_prob.nii.gz`, or `CASE.nii.gz`.
        cases: the prepared cases.
        indices: which of them have a map.
        head: what the channels are.
        root: folder of the built datasets.
        workers: maps read at once.
        progress: show a progress bar.

    Raises:
        UserError: there is no such folder, cases have no map, or one has another grid, another
            number of channels or values that are no probabilities.
    """
    found = _find(folder, [cases.summaries[index].case_id for index in indices])
    targets = {
        index: root / _FOLDER / f"{cases.summaries[index].case_id}-{_digest(path, cases, head)}.npy"
        for index, path in zip(indices, found, strict=True)
    }
    for path in found:  # all headers, before the first is read
        _check_channels(path, nifti.read_header(path, channels=True).shape, head)
    missing = [
        (index, path)
        for index, path in zip(indices, found, strict=True)
        if not targets[index].exists()
    ]
    make = functools.partial(_make, cases=cases, targets=targets, head=head)
    made = case_builder.ordered_map(make, missing, workers)
    for _ in console.bar(
        made, "teacher's maps", len(missing), unit="case", disable=not (progress and missing)
    ):
        pass
    names = "\n".join(path.name for path in targets.values())
    return Maps(folder, _kept(head), hashlib.sha256(names.encode()).hexdigest(), targets)


def _kept(head: heads.Head) -> int:
    return len(head.outputs[head.foreground])


def check_folder(folder: pathlib.Path) -> None:
    """Raises UserError if there is no such folder; what it must hold, the split says."""
    if not folder.is_dir():
        raise UserError(f"{KEY} is {folder}: there is no such folder. {_EXPECTED}.")


def _find(folder: pathlib.Path, case_ids: Sequence[str]) -> list[pathlib.Path]:
    check_folder(folder)
    by_stem = {nifti_header.stem(path): path for path in folder.iterdir() if _is_image(path)}
    found, absent = [], []
    for case_id in case_ids:
        names = (case_id + suffix for suffix in _SUFFIXES)
        path = next((by_stem[name] for name in names if name in by_stem), None)
        absent += [case_id] if path is None else []
        found += [] if path is None else [path]
    if absent:
        raise UserError(
            f"{KEY} is {folder}: {len(absent)} of the {len(case_ids)} training cases have no map "
            f"there, such as {absent[0]}. {_EXPECTED}, called {absent[0]}_prob.nii.gz or "
            f"{absent[0]}.nii.gz."
        )
    return found


def _is_image(path: pathlib.Path) -> bool:
    return path.name.lower().endswith((*nifti_header.SUFFIXES, *nifti_header.ITK_SUFFIXES))


def _digest(path: pathlib.Path, cases: store.CaseStore, head: heads.Head) -> str:
    parts = (_VERSION, cohort_builder.stamp(path), cases.fingerprint, head.outputs)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _check_channels(path: pathlib.Path, shape: tuple[int, ...], head: heads.Head) -> None:
    count = shape[3] if len(shape) > 3 else 1
    if count != len(head.outputs):
        raise UserError(
            f"{path}: has {count} channel{'s' * (count != 1)}; expected {len(head.outputs)}, the "
            f"probabilities of {', '.join(head.outputs)} in this order (model.head is "
            f"{head.kind!r}). Give the maps of a network with the same outputs."
        )


def _make(
    job: tuple[int, pathlib.Path],
    *,
    cases: store.CaseStore,
    targets: Mapping[int, pathlib.Path],
    head: heads.Head,
) -> None:
    index, path = job
    try:
        way = cases.read(index).geometry
    except records.UnreadableCaseError:
        return  # The stream of patches stops there, or takes another case.
    volume = _on_grid(nifti.read_volume(path, channels=True), way)
    # Of one output the last axis may have been left out.
    values = volume.data.reshape(*way.shape, -1)
    _check_values(path, values, head)
    kept = values[..., head.foreground]
    working = np.empty((*way.working_shape, kept.shape[-1]), np.uint16)
    for channel in range(kept.shape[-1]):
        found = geometry_lib.to_working(kept[..., channel], way, order=1)
        working[..., channel] = np.rint(np.clip(found, 0, 1) * ONE)
    target = targets[index]
    with files.writing(target), files.replacing(target, ".npy") as beside:
        np.save(beside, working)


@dataclasses.dataclass(frozen=True)
class _Scan:
    """The scan's own grid, as `grids.turned` reads it."""

    shape: tuple[int, ...]
    space: spaces.Space


def _on_grid(volume: nifti.Volume, way: geometry_lib.Geometry) -> nifti.Volume:
    scan = _Scan(way.shape, spaces.of_affine(way.affine))
    turned = grids.turned(volume, scan)
    if turned.space is not scan.space:
        raise UserError(
            f"{volume.path}: lies on another grid than the scan: {spaces.times(volume.shape)} "
            f"voxels, affine {np.round(volume.affine[:3], 3).tolist()}; expected "
            f"{spaces.times(way.shape)}, {np.round(way.affine[:3], 3).tolist()}. Give maps that "
            "were made of these scans."
        )
    return turned


def _check_values(
    path: pathlib.Path, values: Float[np.ndarray, "x y z k"], head: heads.Head
) -> None:
    low, high = values.min(), values.max()
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise UserError(
            f"{path}: its values lie between {low:.4g} and {high:.4g}; expected probabilities from "
            "0 to 1. Are these logits, or a mask?"
        )
    if head.kind != "softmax":
        return
    off = np.abs(values.sum(axis=-1) - 1).max()
    if off > _SUM_TOLERANCE:
        raise UserError(
            f"{path}: the probabilities of a voxel's classes sum to something else than 1 (off by "
            f"up to {off:.2g}). Give those of a softmax over {', '.join(head.outputs)}."
        )
