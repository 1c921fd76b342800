"""Labels of the teacher: the reference where there is one, the teacher's decision everywhere else.

After Gupta et al., "Cross modal distillation for supervision transfer", CVPR 2016, and Lee,
"Pseudo-label", 2013. It needs training cases without a reference: cases without a label file, or
--config.split.labelled=N. On one cohort of real scans it beats the baseline (docs/results.md),
which KD-Net's loss on labelled cases was not shown to do.

    python -m kdnet_jax.main --config=configs/methods/teacher_labels.py[:PRESET] --workdir=DIR

Presets, teacher and all other keys are those of configs/student.py.
"""

from typing import Final

from ml_collections import config_dict

from configs import common

METHOD: Final = {
    "distillation.kd_weight": 0.0,
    "distillation.latent_weight": 0.0,
    "distillation.unlabelled": "hard",
    "distillation.unlabelled_weight": 1.0,
    "loader.unlabelled_share": 0.6,
}


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset of configs/student.py."""
    return common.base_config("student", preset, METHOD)
