"""TFDS builder of scans that the user has on disk, of any segmentation task."""

from typing import ClassVar

import tensorflow_datasets as tfds

from kdnet_jax.data.records import cohort_builder


class Builder(cohort_builder.CohortBuilder):
    """Prepared cases of one cohort; the task is an argument of `CaseBuilder`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Oriented, cropped, normalised volumes with geometry."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the folder of the scans as manual_dir."
