"""TFDS builder of glioma MRI cases that the user has on disk: BraTS, Decathlon, own scans."""

from typing import ClassVar

import tensorflow_datasets as tfds

from kdnet_jax.data.records import cohort_builder
from kdnet_jax.data.sources import layouts


class Builder(cohort_builder.CohortBuilder):
    """Prepared glioma cases of one cohort."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Oriented, brain-cropped, z-scored volumes with their geometry."
    }
    BUILDER_CONFIGS: ClassVar = [
        cohort_builder.CohortConfig(name=release, release=release) for release in layouts.RELEASES
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Register for the release, download it and unpack it; give its folder as manual_dir. "
        "The README of this builder lists the addresses and the layouts."
    )
