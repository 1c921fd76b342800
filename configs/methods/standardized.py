"""Logit standardisation: Hinton's divergence of logits brought to mean 0 and deviation 1.

Sun et al., "Logit standardization in knowledge distillation", CVPR 2024: T^2 KL of the standardised
logits at T = 2, with weight 9 beside 0.1 of the reference's term; both are divided by 9.1 here. For
a softmax head: the logit of a region has no others to be standardised with.

    python -m kdnet_jax.main --config=configs/methods/standardized.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "kl",
    "distillation.standardize_logits": True,
    "distillation.kd_weight": 9 / 9.1,
    "distillation.temperature": 2.0,
    "distillation.scale_by_temperature": True,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
