"""Pretraining: a network reconstructs what is hidden of its own sequences, and reads no reference.

It learns from all training cases, with a reference and without. Baseline, student or teacher then
start from what it has learnt: --config.train.start=DIR. docs/distillation.md has the method.

    python -m kdnet_jax.main --config=configs/pretrain.py[:PRESET] --workdir=DIR

Presets and all other keys are those of configs/baseline.py; with --config.model.modalities of a
teacher's sequences it pretrains a teacher.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats, smoke or fewlabels."""
    return common.base_config("baseline", preset, {"loss.form": "reconstruction"})
