"""PMKL: the teacher is followed where it is right, and better than the student.

Chen et al., "Learning with privileged multimodal knowledge for unimodal segmentation", IEEE TMI
2022: L_GT + 0.5 L_masked at T = 10. Their contrastive term is left out: it needs other patients'
scans as negatives, and a batch here is a few patches, often of one scan. One whose negatives are
the patch's other voxels is added by --config.distillation.contrastive_weight=W. Their teacher is
frozen too.

    python -m kdnet_jax.main --config=configs/methods/pmkl.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_weight": 0.0,
    "distillation.temperature": 10.0,
    "distillation.masked_weight": 0.5,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
