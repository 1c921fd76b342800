"""Base of the TFDS builders of scans on disk: a cohort, and how its cases are prepared."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import console, typed
from kdnet_jax.data.records import case_builder
from kdnet_jax.data.scans import ct_statistics, geometry, nifti, prepare
from kdnet_jax.data.sources import cases, decathlon, labels
from kdnet_jax.errors import UserError

# Bytes of records per byte of the scans, at the scans' own voxel size. BraTS 2021 takes 1.1; the
# rest is for scans that compress better than their z-scored float16 form.
_GROWTH = {".gz": 1.6, ".nii": 0.6}
_LONGEST_NAME = 60  # of the channels, in the name of a folder


@dataclasses.dataclass
class CohortConfig(tfds.core.BuilderConfig):
    """A cohort and the way it is prepared.

    Attributes:
        release: one of `layouts.RELEASES`, or of the layouts of `task_layouts`.
        modalities: the channels of the image, in the task's order.
        spacing: working voxel size in mm, one or one per SPL axis; None keeps each scan's own.
        orientation: see `prepare.prepare_case`.
        allow_skull: see `prepare.prepare_case`.
    """

    release: str = "user"
    modalities: tuple[str, ...] = task_lib.DEFAULT.modalities
    spacing: prepare.Spacing = 1.0
    orientation: str = geometry.HEADER
    allow_skull: bool = False


class CohortBuilder(case_builder.CaseBuilder, skip_registration=True):
    """Prepared cases of one cohort.

    Args:
        cohort: the cases; None looks for them in TFDS's manual_dir when the dataset is built.
        **kwargs: of `CaseBuilder`.
    """

    def __init__(self, *, cohort: cases.Cohort | None = None, **kwargs: Any) -> None:
        self._cohort = cohort
        super().__init__(**kwargs)
        self._asked = self.task

    @property
    def modalities(self) -> tuple[str, ...]:
        """The channels of every image."""
        return tuple(self._config.modalities)

    @property
    def label_convention(self) -> str:
        """That of the cohort's own segmentations."""
        return self._found.cases[0].convention

    @property
    def _config(self) -> CohortConfig:
        assert isinstance(self.builder_config, CohortConfig)
        return self.builder_config

    @property
    def _found(self) -> cases.Cohort:
        assert self._cohort is not None, "it is found when the dataset is built"
        return self._cohort

    def _jobs(self, dl_manager: tfds.download.DownloadManager) -> list[case_builder.Job]:
        config = self._config
        cohort = self._cohort
        if cohort is None:
            self._cohort = cohort = cases.find_cases(
                pathlib.Path(dl_manager.manual_dir),
                config.release,
                config.modalities,
                task=self.task,
                unlabelled=True,
            )
        self._notes += cohort.notes
        if not labels.is_brats(self.task) and not self._skip_bad_cases:
            self._check_files()
        self.task = ct_statistics.measure(
            cohort.cases,
            self.task,
            orientation=config.orientation,
            skip_bad_cases=self._skip_bad_cases,
        )
        run = functools.partial(
            prepare.prepare_case,
            task=self.task,
            spacing=config.spacing,
            orientation=config.orientation,
            allow_skull=config.allow_skull,
            modalities=config.modalities,
        )
        return [
            case_builder.Job(case.case_id, functools.partial(run, case)) for case in cohort.cases
        ]

    def _check_files(self) -> None:
        """Refuses files that contradict the task, before the first case is prepared."""
        check = functools.partial(check_files, task=self.task)
        checked = case_builder.ordered_map(check, self._found.cases, self._workers)
        count = len(self._found.cases)
        for _ in console.bar(checked, "checking", count, unit="case", disable=not self._progress):
            pass

    def _content(self) -> typed.Json:
        return describe(self._found, self._config, self._asked)


def check_files(case: cases.Case, *, task: task_lib.Task) -> None:
    """Refuses a case whose channels or label values are others than the task's.

    Raises:
        UserError: a file of several channels has another number of them, or a label value is not
            known; or a file cannot be read.
    """
    for path in dict.fromkeys(
        where[0] for where in case.images.values() if isinstance(where, tuple)
    ):
        decathlon.check_channels(path, nifti.read_header(path, channels=True).shape, task)
    if case.label is not None:
        volume = nifti.read_labels(case.label)
        labels.to_classes(volume.data, case.convention, volume.path, task=task)


def make_config(cohort: cases.Cohort, task: task_lib.Task, **preparation: Any) -> CohortConfig:
    """Returns a config whose name, hence folder, is different for every different content.

    Args:
        cohort: the cases.
        task: what is segmented.
        **preparation: modalities, spacing, orientation, allow_skull of `CohortConfig`.
    """
    config = CohortConfig(name="unnamed", release=cohort.release, **preparation)
    fingerprint = case_builder.fingerprint(describe(cohort, config, task))
    size = "native" if config.spacing is None else f"{_triple_text(config.spacing)}mm"
    parts = [cohort.release, _channels_text(config.modalities), size, fingerprint]
    if not labels.is_brats(task):
        parts.insert(0, _plain(task.name))
    config.name = "-".join(parts)
    return config


def _channels_text(modalities: Sequence[str]) -> str:
    text = "_".join(map(_plain, modalities))
    return text if len(text) <= _LONGEST_NAME else f"{len(modalities)}_channels"


def _plain(name: str) -> str:
    return re.sub(r"\W+", "", name, flags=re.ASCII) or "unnamed"


def _triple_text(spacing: float | Sequence[float]) -> str:
    return "x".join(f"{length:g}" for length in np.atleast_1d(spacing))


def describe(cohort: cases.Cohort, config: CohortConfig, task: task_lib.Task) -> typed.Json:
    """Returns what the records of a cohort are made of, as JSON.

    The folder's own path is left out: a cohort that was moved or copied is the same cohort.
    """
    brats = labels.is_brats(task)
    own = (
        {"dataset": "brats"}
        if brats
        else {
            "dataset": "task_cohort",
            "task": dataset_json.fingerprint(task),
            "cropped": task.is_cropped,
        }
    )
    return own | {
        "release": cohort.release,
        "modalities": list(config.modalities),
        "spacing_mm": None if config.spacing is None else np.atleast_1d(config.spacing).tolist(),
        "orientation": config.orientation,
        "allow_skull": config.allow_skull,
        "cases": [_describe_case(case, brats) for case in cohort.cases],
    }


def _describe_case(case: cases.Case, brats: bool) -> typed.Json:
    sources = case.images.items()
    stamps = {path: stamp(path) for path in _files(case)}
    files = {path.name: found for path, found in stamps.items()}
    # CASE.nii.gz may be the name of an image and of a label, as in the Decathlon's folders.
    if not brats or len(files) < len(stamps):
        roles = {name: where[0] if isinstance(where, tuple) else where for name, where in sources}
        named = roles if case.label is None else roles | {"label": case.label}
        files = {role: [path.name, stamps[path]] for role, path in named.items()}
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "grade": case.grade,
        "label_convention": case.convention,
        "channels": {name: where[1] for name, where in sources if isinstance(where, tuple)},
        "files": files,
    }


def _files(case: cases.Case) -> Iterator[pathlib.Path]:
    """Yields each file of the case once (a Decathlon scan holds all sequences in one)."""
    found = [where[0] if isinstance(where, tuple) else where for where in case.images.values()]
    if case.label is not None:
        found.append(case.label)
    yield from dict.fromkeys(pathlib.Path(path) for path in found)


def stamp(path: pathlib.Path) -> str:
    """Returns a text that changes with the content of a file, without reading all of it.

    A gzip file ends in the checksum and length of what it holds; of others the size and the time
    of the last change must do.
    """
    if not path.is_file():
        return "absent"  # The preparation will say so.
    stat = path.stat()
    if path.suffix != ".gz" or stat.st_size < 8:
        return f"{stat.st_size}-{stat.st_mtime_ns}"
    with path.open("rb") as file:
        file.seek(-8, 2)
        return f"{stat.st_size}-{file.read().hex()}"


def estimate_bytes(cohort: cases.Cohort, spacing: prepare.Spacing) -> int:
    """Estimates the size of the built dataset from the sizes of its scans and their voxels."""
    return sum(_estimate_case(case, spacing) for case in cohort.cases)


def _estimate_case(case: cases.Case, spacing: prepare.Spacing) -> int:
    files = list(_files(case))
    there = (path for path in files if path.is_file())
    size = sum(path.stat().st_size * _GROWTH.get(path.suffix, 1.0) for path in there)
    return int(size * _finer(files[0], spacing))


def _finer(path: pathlib.Path, spacing: prepare.Spacing) -> float:
    """How many working voxels there are for one voxel of the scan at `path`."""
    if spacing is None:
        return 1.0
    try:
        affine = nifti.read_header(path, channels=True).space.affine
    except UserError:
        return 1.0  # The preparation will say what is wrong with this file.
    return float(abs(np.linalg.det(affine[:3, :3])) / np.prod(np.broadcast_to(spacing, 3)))
