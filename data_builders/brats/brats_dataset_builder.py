"""TFDS builder of glioma MRI cases that the user has on disk: BraTS, Decathlon, own scans."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from kdnet_jax import conventions
from kdnet_jax.data import case_builder, cases, geometry, layouts, nifti, prepare
from kdnet_jax.errors import UserError

# Bytes of records per byte of the scans, at the scans' own voxel size. BraTS 2021 takes 1.1; the
# rest is for scans that compress better than their z-scored float16 form.
_GROWTH = {".gz": 1.6, ".nii": 0.6}


@dataclasses.dataclass
class BratsConfig(tfds.core.BuilderConfig):
    """A release and the way it is prepared.

    Attributes:
        release: one of `layouts.RELEASES`.
        modalities: the sequences of the image, in the order of `conventions.MODALITIES`.
        spacing: working voxel size in mm, one or one per SPL axis; None keeps each scan's own.
        orientation: see `prepare.prepare_case`.
        allow_skull: see `prepare.prepare_case`.
    """

    release: str = "user"
    modalities: tuple[str, ...] = conventions.MODALITIES
    spacing: prepare.Spacing = 1.0
    orientation: str = geometry.HEADER
    allow_skull: bool = False


class Builder(case_builder.CaseBuilder):
    """Prepared cases of one cohort.

    Args:
        cohort: the cases; None looks for them in TFDS's manual_dir when the dataset is built.
        **kwargs: of `CaseBuilder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Oriented, brain-cropped, z-scored volumes with their geometry."
    }
    BUILDER_CONFIGS: ClassVar = [
        BratsConfig(name=release, release=release) for release in layouts.RELEASES
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Register for the release, download it and unpack it; give its folder as manual_dir. "
        "The README of this builder lists the addresses and the layouts."
    )

    def __init__(self, *, cohort: cases.Cohort | None = None, **kwargs: Any) -> None:
        self._cohort = cohort
        super().__init__(**kwargs)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sequences of every image."""
        return tuple(self.builder_config.modalities)

    @property
    def label_convention(self) -> str:
        """That of the cohort's own segmentations."""
        return self._cohort.cases[0].convention

    def _jobs(self, dl_manager: tfds.download.DownloadManager) -> list[case_builder.Job]:
        config = self.builder_config
        if self._cohort is None:
            self._cohort = cases.find_cases(
                pathlib.Path(dl_manager.manual_dir), config.release, config.modalities
            )
        self._notes += self._cohort.notes
        run = functools.partial(
            prepare.prepare_case,
            spacing=config.spacing,
            orientation=config.orientation,
            allow_skull=config.allow_skull,
        )
        return [
            case_builder.Job(case.case_id, functools.partial(run, case))
            for case in self._cohort.cases
        ]

    def _content(self) -> dict[str, Any]:
        return describe(self._cohort, self.builder_config)


def make_config(cohort: cases.Cohort, **preparation: Any) -> BratsConfig:
    """Returns a config whose name, hence folder, is different for every different content.

    Args:
        cohort: the cases.
        **preparation: modalities, spacing, orientation, allow_skull of `BratsConfig`.
    """
    config = BratsConfig(name="unnamed", release=cohort.release, **preparation)
    fingerprint = case_builder.fingerprint(describe(cohort, config))
    size = "native" if config.spacing is None else f"{_triple_text(config.spacing)}mm"
    config.name = "-".join([cohort.release, "_".join(config.modalities), size, fingerprint])
    return config


def _triple_text(spacing: float | Sequence[float]) -> str:
    return "x".join(f"{length:g}" for length in np.atleast_1d(spacing))


def describe(cohort: cases.Cohort, config: BratsConfig) -> dict[str, Any]:
    """Returns what the records of a cohort are made of, as JSON.

    The folder's own path is left out: a cohort that was moved or copied is the same cohort.
    """
    return {
        "dataset": "brats",
        "release": cohort.release,
        "modalities": list(config.modalities),
        "spacing_mm": None if config.spacing is None else np.atleast_1d(config.spacing).tolist(),
        "orientation": config.orientation,
        "allow_skull": config.allow_skull,
        "cases": [_describe_case(case) for case in cohort.cases],
    }


def _describe_case(case: cases.Case) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "grade": case.grade,
        "label_convention": case.convention,
        "channels": {m: where[1] for m, where in case.images.items() if isinstance(where, tuple)},
        "files": {path.name: _stamp(path) for path in _files(case)},
    }


def _files(case: cases.Case) -> Iterator[pathlib.Path]:
    """Yields each file of the case once (a Decathlon scan holds all sequences in one)."""
    found = [where[0] if isinstance(where, tuple) else where for where in case.images.values()]
    if case.label is not None:
        found.append(case.label)
    yield from dict.fromkeys(pathlib.Path(path) for path in found)


def _stamp(path: pathlib.Path) -> str:
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
