"""What the roles share: the sections of a config, and the presets.

A preset is a set of sizes and budgets; a role (teacher, baseline, student) says which sequences
the network sees and what it learns from. All three roles of a preset have the same network, data,
split, patches, augmentation and evaluation, so that their numbers can be compared.
"""

import dataclasses
from typing import Any

from ml_collections import config_dict

from kdnet_jax import optimizers
from kdnet_jax import task as task_lib
from kdnet_jax.data import augment
from kdnet_jax.errors import UserError, nearest
from kdnet_jax.losses import distillation
from kdnet_jax.models import unet

PRESETS = ("phantom", "brats", "smoke")


def base_config(role: str, preset: str) -> config_dict.ConfigDict:
    """Returns the config of a role ("teacher", "baseline", "student") or a "study" for a preset.

    Raises:
        UserError: for an unknown preset.
    """
    preset = preset or "phantom"
    if preset not in PRESETS:
        raise UserError(
            f"configs/{role}.py:{preset} is no preset{nearest(preset, PRESETS)} (there are "
            f"{', '.join(PRESETS)})."
        )
    config = config_dict.create(**_sections(role, preset))
    _PRESET_CHANGES[preset](config)
    config.inference.patch = config.inference.patch or config.loader.patch
    if role == "study":
        config.study = {
            # Each seed trains its own teacher, baseline and student.
            "seeds": 2 if preset == "smoke" else 3,
            # Every case is tested once in k folds; 0: the one split of `split`.
            "folds": {"phantom": 0, "brats": 5, "smoke": 2}[preset],
        }
        if preset == "phantom":
            config.data.phantom.cases = 100
            config.split.train, config.split.validation, config.split.test = 0.4, 0.1, 0.5
    if role in ("student", "study"):
        config.distillation = _fields(distillation.DistillationOptions())
        # A teacher that has to be trained first differs from the student in these alone.
        config.teacher = {
            # A run, an exported model, or what nnU-Net or MONAI trained.
            "checkpoint": "",
            # Of a teacher of nnU-Net: its folds with commas, to be averaged; empty: all there are.
            "folds": "",
            # What it sees, where it has to be trained first; empty: all that is read.
            "modalities": "",
            # Empty: the student's.
            "widths": (),
            # Of its training.
            "steps": _TEACHER_STEPS[preset],
        }
    if role == "teacher":
        config.train.steps = _TEACHER_STEPS[preset]
    return config


def _sections(role: str, preset: str) -> dict[str, Any]:
    return {
        "role": role,
        "preset": preset,
        # What is segmented: glioma, or a dataset.json of nnU-Net (or the folder that holds it).
        "task": task_lib.GLIOMA_NAME,
        # Of the parameters, the patches and the augmentation.
        "seed": 0,
        # Trace so many steps into profile/ and write profile/summary.json; 0 does not.
        "profile": 0,
        "data": {
            # A folder of scans; empty: the synthetic cohort of `phantom`.
            "data_dir": "",
            # auto, brats2018 ... brats2024, decathlon, user.
            "release": "auto",
            # Labels of a `user` folder: brats2021, brats2023, brats2024, decathlon, kdnet.
            "label_convention": "",
            # Where built datasets lie.
            "root": "datasets",
            # Channels that are read of each case; a network sees some or all. Empty: the task's.
            "modalities": "",
            # Working voxel size in mm, one number or three along depth (superior), height
            # (posterior) and width (left); 0 keeps each scan's own.
            "spacing": config_dict.FieldReference(1.0, field_type=object),
            # header, or three letters such as LPS that overrule a wrong header.
            "orientation": "header",
            # What BraTS 2024's resection cavity counts as: background, or NCR.
            "resection_cavity": "background",
            # Take scans that are not skull-stripped.
            "allow_skull": False,
            # Leave out cases that cannot be read, and list them.
            "skip_bad_cases": False,
            # A training case whose built record cannot be read: stop, or skip it.
            "on_read_error": "stop",
            # Cases prepared at once.
            "workers": 2,
            # The synthetic cohort; `spacing` is the voxel size of its scans too.
            "phantom": {"cases": 60, "seed": 0},
        },
        "split": {
            # A JSON file that gives the split; then the rest of the section is unused.
            "file": "",
            # Of the drawing of the parts.
            "seed": 0,
            # Share of the patients; unused with folds.
            "train": 0.7,
            # Share of the patients; with folds, of those outside of the test fold.
            "validation": 0.1,
            # Share of the patients; unused with folds.
            "test": 0.2,
            # Number of folds; 0: the shares above.
            "folds": 0,
            # Which of the folds is the test part, from 0.
            "fold": 0,
        },
        "loader": {
            # Voxels along depth, height and width.
            "patch": (48, 48, 48),
            # Patches a step, over all devices.
            "batch": 1,
            # Share of the patches that are placed on tumour.
            "tumour_share": 0.5,
            # Batches in a row from the same cases.
            "crops_per_read": 1,
            # Threads that decode and cut.
            "threads": 2,
            # Batches ready on the host.
            "prefetch_batches": 4,
            # Where the training cases lie: device, host (memory), stream (from disk); auto takes
            # the first that fits.
            "cache": "auto",
        },
        "model": {
            # The channels that the network sees. Empty: of a teacher all that is read, of a student
            # or baseline the one that the task names for it.
            "modalities": "",
            # unet, or a network of nnU-Net (plain_conv_unet, residual_encoder_unet) or MONAI
            # (dynunet, segresnet), which has widths, blocks, head, deep_supervision, bfloat16 and
            # convolutions too, but no last_blocks; docs/interoperability.md says more.
            "family": "unet",
        }
        | {k: v for k, v in _fields(unet.UNetConfig()).items() if k != "out_channels"},
        "loss": {
            # dice_ce, or dice_bce: the binary cross-entropy of all channels, as KD-Net writes it.
            "form": "dice_ce",
            # The Dice of the whole batch, not of each sample.
            "over_batch": False,
        },
        "optimizer": _fields(optimizers.OptimizerOptions()),
        "augment": _augment(),
        "train": {
            "steps": 1000,
            "log_every": 10,
            "validate_every": 250,
            # Minutes between saves, besides one at every validation.
            "save_minutes": 10.0,
            # Steps between saves, besides those; 0: none.
            "save_steps": 0,
            # Stop after so many validations without a better one; 0 never stops early.
            "early_stop": 0,
            # Work through each batch in so many parts: less memory, the same update.
            "accumulate": 1,
            # A batch with a NaN or infinite loss or gradient: stop, or skip its update.
            "nonfinite": "stop",
        },
        "inference": {
            # Window of whole-volume prediction; empty: the patch.
            "patch": (),
            # Share of a window's edge that the next one covers too.
            "overlap": 0.5,
            # Average over the 8 mirror images.
            "mirror": False,
            # No windows: a scan in one pass, its depth split over all of a process's devices.
            "whole": False,
        },
        "mesh": {
            # -1: all devices that `space` leaves.
            "data": -1,
            # Devices that share the depth of a patch.
            "space": 1,
            # Parameters and optimizer state: replicated, or sharded over `data`.
            "state": "replicated",
        },
    }


def _fields(options: Any) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    # An unset choice needs a type that a flag can parse.
    return {key: "auto" if value is None else value for key, value in values.items()}


def _augment() -> dict[str, Any]:
    values = dataclasses.asdict(augment.PRESETS["plain"])
    return {
        # none, plain or nnunet; a key that is not set has the preset's value.
        "preset": "plain",
    } | {key: config_dict.placeholder(type(value)) for key, value in values.items()}


def _phantom(config: config_dict.ConfigDict) -> None:
    config.data.spacing = 3.0
    config.model.widths = (8, 16, 32)
    config.model.last_blocks = 2
    config.optimizer.learning_rate = 3e-3
    config.train.steps = 800
    config.train.validate_every = 200
    config.inference.patch = (64, 64, 56)


def _brats(config: config_dict.ConfigDict) -> None:
    config.loader.patch = (128, 128, 128)
    config.loader.crops_per_read = 4
    config.loader.threads = 8
    config.augment.preset = "nnunet"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "plateau"
    config.split.folds = 3
    config.train.steps = 95_000  # 500 epochs of 190 cases, two thirds of BraTS 2018
    config.train.log_every = 50
    config.train.validate_every = 1900
    config.inference.mirror = True


def _smoke(config: config_dict.ConfigDict) -> None:
    _phantom(config)
    config.data.phantom.cases = 8
    config.data.spacing = 6.0
    config.split.train, config.split.validation, config.split.test = 0.5, 0.25, 0.25
    config.loader.patch = (16, 16, 16)
    config.model.widths = (4, 8)
    config.train.steps = 6
    config.train.log_every = 2
    config.train.validate_every = 3
    config.inference.patch = (32, 32, 32)


_PRESET_CHANGES = {"phantom": _phantom, "brats": _brats, "smoke": _smoke}
_TEACHER_STEPS = {"phantom": 1200, "brats": 95_000, "smoke": 6}
