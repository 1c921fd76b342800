"""Region affinity: cosines between the classes' mean features, and Hinton's divergence.

Qin et al., "Efficient medical image segmentation based on knowledge distillation", IEEE TMI 2021.
There the features of several layers are compared, and maps of importance too; here those under the
head alone.

    python -m kdnet_jax.main --config=configs/methods/affinity.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "kl",
    "distillation.kd_weight": 0.1,
    "distillation.temperature": 1.0,
    "distillation.affinity_weight": 0.9,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
