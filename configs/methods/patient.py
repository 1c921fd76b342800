"""A patient teacher: divergence of the outputs alone, on mixtures, over a long schedule.

Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022: student
and teacher see the same mixture of crops, no reference is read (L = KL at T = 1), and training is
long: three times the preset's steps here, where the paper goes far beyond the usual. All mixtures
of a batch have one ratio.

    python -m kdnet_jax.main --config=configs/methods/patient.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "kl",
    "distillation.kd_weight": 1.0,
    "distillation.temperature": 1.0,
    "distillation.unlabelled": "soft",  # of scans without a reference the same loss
    "distillation.mixup": 1.0,
    "loader.batch": 2,  # a sample is mixed with another one
    "distillation.latent_weight": 0.0,
}
_PATIENCE: Final = 3


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    config = common.base_config("student", preset, METHOD)
    config.train.steps *= _PATIENCE
    return config
