"""The student: a U-Net on one sequence, distilled from a frozen teacher by KD-Net."""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats or smoke."""
    return common.base_config("student", preset)
