"""The baseline: the student's network, budget, data and split, one sequence, and no teacher.

The number that a student has to beat. Everything but the distillation is the student's, so what a
student gains over it comes from its teacher (Hu, Maillard et al., MICCAI 2020, table 1 compares the
same way).

    python -m kdnet_jax.main --config=configs/baseline.py
        the synthetic cohort; about 3 minutes on 2 CPU cores
    python -m kdnet_jax.main --config=configs/baseline.py:brats --config.data.data_dir=DIR
        the paper's scale; days on one GPU, not measured
    python -m kdnet_jax.main --config=configs/baseline.py:smoke
        seconds; shows that everything runs, and nothing else

--config.model.modalities=flair trains it on another sequence.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats, smoke or fewlabels."""
    return common.base_config("baseline", preset)
