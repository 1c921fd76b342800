"""FitNets: hints at the bottleneck, by a learnt projector, and Hinton's divergence.

Romero et al., "FitNets: hints for thin deep nets", ICLR 2015. The paper trains the layers below the
hint by it alone first, and then all layers by the outputs; here both terms are trained at once, and
the projector is 1x1x1, where theirs is a convolution.

    python -m kdnet_jax.main --config=configs/methods/fitnets.py[:PRESET] --workdir=DIR

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
    "distillation.hint_weight": 1.0,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
