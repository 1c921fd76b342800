r"""The student: a U-Net on one sequence, distilled from a frozen teacher by KD-Net.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564). docs/distillation.md has the loss and its options
(--config.distillation.*).

    python -m kdnet_jax.main --config=configs/student.py
        the synthetic cohort, its teacher trained first; about 5 minutes on 2 CPU cores
    python -m kdnet_jax.main --config=configs/student.py:brats --config.data.data_dir=DIR \
        --config.teacher.checkpoint=runs/teacher-brats
        the paper's scale; days on one GPU, not measured
    python -m kdnet_jax.main --config=configs/student.py:smoke
        seconds; shows that everything runs, and nothing else

--config.teacher.checkpoint names the run of a teacher; without it one is trained into
<workdir>/teacher. --config.distillation.temper_student=false is the literal reading of the paper.
configs/methods/ has other published methods.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats, smoke or fewlabels."""
    return common.base_config("student", preset)
