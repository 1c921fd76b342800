"""SMU-Net: squared difference of the outputs, content and style of the bottlenecks.

Azad et al., "SMU-Net: style matching U-Net for brain tumor segmentation with missing modalities",
MIDL 2022. There teacher and student train together, each with a Dice, and the weight of the
difference of the outputs rises over 20 epochs; here the teacher is frozen and the weight is
constant. Content and style are compared as they are, without their matching modules: by the hint
and the Gram matrices, with the paper's weights 0.2 and 1e-4.

    python -m kdnet_jax.main --config=configs/methods/smunet.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_form": "mse",
    "distillation.kd_weight": 0.5,
    "distillation.temperature": 1.0,
    "distillation.hint_weight": 0.2,
    "distillation.gram_weight": 1e-4,
    "distillation.latent_weight": 0.0,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
