"""KD-Net: the softened outputs by Dice and cross-entropy, and the bottlenecks' divergence.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564): L = 0.75 L_KD + 0.25 L_GT + 10 L_KL at T = 5. T divides the
student's logits too, which the paper leaves open (docs/distillation.md).

    python -m kdnet_jax.main --config=configs/methods/kdnet.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "dice_bce",
    "distillation.kd_weight": 0.75,
    "distillation.temperature": 5.0,
    "distillation.temper_student": True,
    "distillation.latent_weight": 10.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
