"""The baseline: the student's network, budget and split, one sequence, and no teacher."""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats or smoke."""
    return common.base_config("baseline", preset)
