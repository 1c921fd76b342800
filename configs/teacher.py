"""The teacher: a U-Net on all four sequences, trained on the reference alone."""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats or smoke."""
    return common.base_config("teacher", preset)
