"""Presets and roles: what each changes of the defaults in `kdnet_jax/config/keys.py`.

A preset is a set of sizes and budgets; a role (teacher, baseline, student) says which channels
the network sees and what it learns from. All three roles of a preset have the same network, data,
split, patches, augmentation and evaluation, so that their numbers can be compared.
"""

from collections.abc import Mapping
from typing import Any, Final

from ml_collections import config_dict

from kdnet_jax.config import flat_keys, keys, values
from kdnet_jax.errors import UserError, nearest

_PHANTOM: Final = {
    "data.spacing": 3.0,
    "model.widths": (8, 16, 32),
    "model.last_blocks": 2,
    "optimizer.learning_rate": 3e-3,
    "train.steps": 800,
    "train.validate_every": 200,
    "inference.patch": (64, 64, 56),
}
_COHORT: Final = {
    "data.phantom.cases": 100,
    "split.train": 0.4,
    "split.validation": 0.1,
    "split.test": 0.5,
}
# Preset -> key -> value, for every role.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "phantom": _PHANTOM,
    "brats": {
        "loader.patch": (128, 128, 128),
        "loader.crops_per_read": 4,
        "loader.threads": 8,
        "augment.preset": "nnunet",
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "plateau",
        "split.folds": 3,
        "train.steps": 95_000,  # 500 epochs of 190 cases, two thirds of BraTS 2018
        "train.log_every": 50,
        "train.validate_every": 1900,
        "inference.patch": (128, 128, 128),
        "inference.mirror": True,
    },
    "smoke": _PHANTOM
    | {
        "data.phantom.cases": 8,
        "data.spacing": 6.0,
        "split.train": 0.5,
        "split.validation": 0.25,
        "split.test": 0.25,
        "loader.patch": (16, 16, 16),
        "model.widths": (4, 8),
        "train.steps": 6,
        "train.log_every": 2,
        "train.validate_every": 3,
        "inference.patch": (32, 32, 32),
    },
    "fewlabels": _PHANTOM | _COHORT | {"split.labelled": 8},
}
_TEACHER_STEPS: Final = {"phantom": 1200, "brats": 95_000, "smoke": 6, "fewlabels": 1200}
# Of a student alone: the reference teaches where there is one, the teacher everywhere else.
_STUDENTS: Final[dict[str, dict[str, Any]]] = {
    "fewlabels": {"distillation.kd_weight": 0.0, "distillation.latent_weight": 0.0},
}
_STUDIES: Final[dict[str, dict[str, Any]]] = {
    "phantom": _COHORT,
    "brats": {"study.folds": 5},
    "smoke": {"study.folds": 2, "study.seeds": 2},
    "fewlabels": {"study.arms": "E,A,D,B,C", "study.seeds": 5},
}


def base_config(
    role: str, preset: str, method: Mapping[str, Any] | None = None
) -> config_dict.ConfigDict:
    """Returns the config of a role ("teacher", "baseline", "student") or a "study" for a preset.

    Args:
        role: what is trained.
        preset: sizes and budgets; "": the first.
        method: key -> value, what a method (`configs/methods/`) changes of the student.

    Raises:
        UserError: for an unknown preset.
    """
    preset = preset or "phantom"
    if preset not in PRESETS:
        raise UserError(
            f"{preset!r} is no preset of a config{nearest(preset, PRESETS)} (there are "
            f"{', '.join(PRESETS)})."
        )
    declared = keys.of_role(role)
    config = config_dict.create(**flat_keys.nest({n: _value(key) for n, key in declared.items()}))
    changes = {"role": role, "preset": preset} | PRESETS[preset]
    if role == "teacher":
        changes["train.steps"] = _TEACHER_STEPS[preset]
    if "teacher.steps" in declared:
        changes |= {"teacher.steps": _TEACHER_STEPS[preset]} | _STUDENTS.get(preset, {})
    if role == "study":
        changes |= _STUDIES[preset]
    changes |= method or {}
    config.update_from_flattened_dict(changes)
    return config


def _value(key: keys.Key) -> Any:
    """Returns a key's default in the form from which the flags take its type."""
    if key.unset:
        return config_dict.placeholder(type(key.default))
    if isinstance(key.kind, values.OneOr):
        return config_dict.FieldReference(key.default, field_type=object)
    return key.default
