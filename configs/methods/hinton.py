"""Hinton's distillation: divergence of the softened outputs, times T squared.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015 (arXiv 1503.02531),
at each voxel: L = 0.5 T^2 KL(s || p) + 0.5 L_GT at T = 2. The paper names no single T or weight;
L_GT has a Dice here.

    python -m kdnet_jax.main --config=configs/methods/hinton.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "kl",
    "distillation.kd_weight": 0.5,
    "distillation.temperature": 2.0,
    "distillation.scale_by_temperature": True,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
