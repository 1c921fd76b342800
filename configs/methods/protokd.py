"""ProtoKD: maps of similarity with class prototypes, and the divergence of the outputs.

Wang et al., "Prototype knowledge distillation for medical segmentation with missing modality",
ICASSP 2023: L_GT + 10 KL at T = 10 (without T^2) + 0.1 L_proto, all divided by 11 here. Prototypes
are of each patch, as its reference has them. L_GT is Dice and plain cross-entropy, theirs weighted.

    python -m kdnet_jax.main --config=configs/methods/protokd.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "kl",
    "distillation.kd_weight": 10 / 11,
    "distillation.temperature": 10.0,
    "distillation.prototype_weight": 0.1 / 11,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
