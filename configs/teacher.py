"""The teacher: a U-Net on all four sequences, trained on the reference alone.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564): the network that is frozen and distilled.

    python -m kdnet_jax.main --config=configs/teacher.py
        the synthetic cohort; about 3 minutes on 2 CPU cores
    python -m kdnet_jax.main --config=configs/teacher.py:brats --config.data.data_dir=DIR
        the paper's scale: patches of 128^3, Adam 1e-4, 95 000 steps; days on one GPU, not measured
    python -m kdnet_jax.main --config=configs/teacher.py:smoke
        seconds; shows that everything runs, and nothing else

A run lands in runs/teacher-<preset> unless --workdir says otherwise; the same command resumes it.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats, smoke or fewlabels."""
    return common.base_config("teacher", preset)
