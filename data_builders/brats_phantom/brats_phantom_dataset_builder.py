"""TFDS builder of synthetic glioma cases: no download, no registration, any number of cases."""

import dataclasses
import functools
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kdnet_jax import task as task_lib
from kdnet_jax.data.phantom import phantom
from kdnet_jax.data.records import case_builder
from kdnet_jax.data.scans import prepare

# To be raised by whoever changes what `phantom.generate` returns: datasets that were built before
# are then built anew.
PHANTOM_VERSION = 1

# Bytes of records per case of 1 mm voxels, measured.
_BYTES_AT_1_MM = 14_000_000


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """A synthetic cohort.

    Attributes:
        cases: how many cases.
        seed: of the cohort; a case depends on it and on its index alone.
        spacing: voxel size of the scans and of the working grid in mm.
    """

    cases: int = 40
    seed: int = 0
    spacing: float = 2.0


class Builder(case_builder.CaseBuilder):
    """Prepared synthetic cases, with all four sequences."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Synthetic cases through the same preparation as scans."}
    BUILDER_CONFIGS: ClassVar = [PhantomConfig(name="default")]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sequences of every image: all four."""
        return task_lib.GLIOMA.modalities

    @property
    def label_convention(self) -> str:
        """That of `phantom.write_scans`."""
        return "brats2021"

    def _jobs(self, dl_manager: tfds.download.DownloadManager) -> list[case_builder.Job]:
        del dl_manager
        config = self.builder_config
        return [
            case_builder.Job(
                f"phantom {index}",
                functools.partial(_prepare, config.seed, index, config.spacing),
            )
            for index in range(config.cases)
        ]

    def _content(self) -> dict[str, Any]:
        config = self.builder_config
        return describe(config.cases, config.seed, config.spacing)


def _prepare(seed: int, index: int, spacing: float) -> tuple[prepare.PreparedCase, list[str]]:
    case = phantom.generate(seed, index, spacing)
    prepared = prepare.prepare_arrays(
        case.images,
        case.affine,
        case.labels,
        spacing=spacing,
        case_id=case.case_id,
        patient_id=case.case_id,
        grade=case.grade,
    )
    return prepared, []


def make_config(cases: int, seed: int, spacing: float) -> PhantomConfig:
    """Returns a config whose name, hence folder, is different for every different content."""
    content = describe(cases, seed, spacing)
    name = f"{cases}_cases-seed_{seed}-{spacing:g}mm-{case_builder.fingerprint(content)}"
    return PhantomConfig(name=name, cases=cases, seed=seed, spacing=spacing)


def describe(cases: int, seed: int, spacing: float) -> dict[str, Any]:
    """Returns what the records of a synthetic cohort are made of, as JSON."""
    return {
        "dataset": "brats_phantom",
        "cases": cases,
        "seed": seed,
        "spacing_mm": spacing,
        "phantom_version": PHANTOM_VERSION,
    }


def estimate_bytes(config: PhantomConfig) -> int:
    """Estimates the size of the built dataset."""
    return int(config.cases * _BYTES_AT_1_MM / config.spacing**3)
