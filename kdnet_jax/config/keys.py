"""Keys of a config, in one table: default, kind, help, and whether a key is operational.

The sections that are the options of a class take names, defaults and help from that class. What a
preset changes is in `configs/common.py`; what depends on several keys, or on the task, is checked
in `reading.py`. A limit far beyond use catches a slip of the finger.
"""

import dataclasses
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.config import values
from kdnet_jax.config.declaring import Key, of_class
from kdnet_jax.data import choices
from kdnet_jax.data.sources import labels, layouts
from kdnet_jax.losses import distillation, segmentation
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, options

ROLES: Final = ("teacher", "baseline", "student")

_SEED: Final = values.Whole(0, 2**31 - 1)
_STEPS: Final = values.Whole(1, 10**9)
_COUNT: Final = values.Whole(0, 10**9)
_SHARE: Final = values.Number(0, 1)
_EDGES: Final = values.Several(values.Whole(1, 1024), 3, 3)
_THREADS: Final = values.Whole(1, 1024)
_WIDTH: Final = values.Whole(1, 10**4)
_TEXT: Final = values.Text()
_CHANNELS: Final = values.Text("channels of the task with commas, or nothing")
_SWITCH: Final = values.Switch()

_RUN: Final = {
    "role": Key("student", _TEXT, "What is trained: teacher, baseline or student, or a study."),
    "preset": Key("phantom", _TEXT, "Sizes and budgets, see configs/common.py."),
    # Guarded by its content: `workdir.check` compares the tasks.
    "task": Key(
        task_lib.GLIOMA_NAME,
        _TEXT,
        "What is segmented: glioma, or a dataset.json of nnU-Net (or the folder that holds it).",
        operational=True,
    ),
    "seed": Key(0, _SEED, "Of the parameters, the patches and the augmentation."),
    "profile": Key(
        0,
        values.Whole(0, 10**6),
        "Trace so many steps into profile/ and write profile/summary.json; 0 does not.",
        operational=True,
    ),
}

_DATA: Final = {
    # Guarded by its content: the checkpoints know the cases' fingerprint.
    "data.data_dir": Key(
        "",
        _TEXT,
        "A folder of scans; empty: the synthetic cohort of `phantom`.",
        operational=True,
    ),
    "data.release": Key(
        layouts.AUTO,
        values.Choice((layouts.AUTO, *layouts.RELEASES)),
        "Layout of the scans; auto recognises it.",
    ),
    "data.label_convention": Key(
        "",
        values.Text("a label convention of the task, or nothing"),
        f"Labels of a `user` folder; of the glioma: {', '.join(labels.LABEL_CONVENTIONS)}.",
    ),
    "data.root": Key("datasets", _TEXT, "Where built datasets lie.", operational=True),
    "data.modalities": Key(
        "",
        _CHANNELS,
        "Channels that are read of each case; a network sees some or all. Empty: the task's.",
    ),
    "data.spacing": Key(
        1.0,
        values.OneOr(values.Several(values.Number(0, 100), 3, 3)),
        "Working voxel size in mm, one number or three along depth (superior), height (posterior) "
        "and width (left); 0 keeps each scan's own.",
    ),
    "data.orientation": Key(
        "header", _TEXT, "header, or three letters such as LPS that overrule a wrong header."
    ),
    "data.resection_cavity": Key(
        "background",
        values.Text("background, or a class of the task"),
        "What BraTS 2024's resection cavity counts as: background, or NCR.",
    ),
    "data.allow_skull": Key(False, _SWITCH, "Take scans that are not skull-stripped."),
    "data.skip_bad_cases": Key(
        False, _SWITCH, "Leave out cases that cannot be read, and list them."
    ),
    # Guarded by its content, as the folder is.
    "data.incomplete": Key(
        False,
        _SWITCH,
        "Train on cases too that lack some of the channels (docs/data.md); a teacher of several "
        "needs augment.modality_dropout for it.",
        operational=True,
    ),
    # What it did is reported in the run's folder.
    "data.on_read_error": Key(
        choices.STOP,
        values.Choice(choices.ON_READ_ERROR),
        "A training case whose built record cannot be read: stop, or skip it.",
        operational=True,
    ),
    "data.workers": Key(2, _THREADS, "Cases prepared at once.", operational=True),
    "data.phantom.cases": Key(60, values.Whole(1, 10**5), "Number of synthetic cases."),
    "data.phantom.seed": Key(0, _SEED, "Of the synthetic cases."),
}

_SPLIT: Final = {
    "split.file": Key(
        "",
        _TEXT,
        "A JSON file that gives the split; then only `labelled` and its seed are read besides.",
    ),
    "split.seed": Key(0, _SEED, "Seed of the random split."),
    "split.train": Key(0.7, _SHARE, "Share of the patients; unused with folds."),
    "split.validation": Key(
        0.1, _SHARE, "Share of the patients; with folds, of those outside of the test fold."
    ),
    "split.test": Key(0.2, _SHARE, "Share of the patients; unused with folds."),
    "split.folds": Key(
        0, values.Whole(0, 1000), "Number of folds; 0: the shares split.train and so on."
    ),
    "split.fold": Key(0, values.Whole(0, 999), "Which of the folds is the test part, from 0."),
    "split.labelled": Key(
        0,
        _COUNT,
        "Training cases that keep their reference; the others are used without it, by a student. "
        "0: all.",
    ),
    "split.labelled_seed": Key(
        0,
        _SEED,
        "Of the drawing of the labelled cases; those of a smaller number are part of those of a "
        "larger one.",
    ),
}

_LOADER: Final = {
    "loader.patch": Key((48, 48, 48), _EDGES, "Voxels along depth, height and width."),
    "loader.batch": Key(1, values.Whole(1, 10**5), "Patches a step, over all devices."),
    "loader.tumour_share": Key(
        0.5, values.Number(0.33, 1), "Share of the patches that are placed on tumour."
    ),
    "loader.unlabelled_share": Key(
        0.5,
        _SHARE,
        "Of a student: share of the patches from training cases without a reference, if there are "
        "any; 0 does not use them.",
    ),
    "loader.crops_per_read": Key(1, values.Whole(1, 1000), "Batches in a row from the same cases."),
    "loader.threads": Key(2, _THREADS, "Threads that decode and cut.", operational=True),
    "loader.prefetch_batches": Key(
        4, values.Whole(1, 1000), "Batches ready on the host.", operational=True
    ),
    "loader.cache": Key(
        choices.PLACES[0],
        values.Choice(choices.PLACES),
        "Where the training cases lie: device, host (memory), stream (from disk); auto takes the "
        "first that fits.",
        operational=True,
    ),
}

_MODEL: Final = {
    "model.modalities": Key(
        "",
        _CHANNELS,
        "The channels that the network sees. Empty: of a teacher all that is read, of a student or "
        "baseline the one that the task names for it. Several students at once: ; between them.",
    ),
    "model.family": Key(
        networks.UNET,
        values.Choice((networks.UNET, *networks.FAMILIES)),
        "unet, or a network of nnU-Net (plain_conv_unet, residual_encoder_unet) or MONAI (dynunet, "
        "segresnet), which has widths, blocks, head, deep_supervision, bfloat16 and convolutions "
        "too, but no last_blocks; docs/interoperability.md says more.",
    ),
} | of_class(
    "model",
    unet.UNetConfig,
    {
        "widths": values.Several(_WIDTH, 2, 9),
        "blocks": values.Whole(1, 100),
        "last_blocks": values.Whole(1, 100),
        "bfloat16": values.Choice(("auto", "true", "false")),
        # No more than a level each.
        "strides": values.Several(values.Several(values.Whole(1, 2), 3, 3), 0, 8),
        "kernels": values.Several(values.Several(values.Whole(1, 3), 3, 3), 0, 9),
    },
    # Forms of one computation: equal but for rounding.
    operational=("convolutions", "remat"),
    bfloat16="auto",
)

_TRAINING: Final = {
    **of_class(
        "loss",
        segmentation.LossOptions,
        {
            "mask_share": values.Number(0, 1, without_low=True, without_high=True),
            "mask_edge": values.Whole(1, 1024),
        },
    ),
    **of_class(
        "optimizer",
        optimizers.OptimizerOptions,
        {
            "learning_rate": values.Number(0, 100, without_low=True),
            "warmup": _COUNT,
            "weight_decay": values.Number(0, 100),
            "clip": values.Number(0, 1e9),
            "plateau_factor": values.Number(0, 1, without_low=True, without_high=True),
            "plateau_epochs": values.Whole(1, 10**6),
        },
    ),
    **of_class(
        "train",
        options.TrainOptions,
        {
            "steps": _STEPS,
            "log_every": _STEPS,
            "validate_every": _STEPS,
            "save_minutes": values.Number(0, 1e6, without_low=True),
            "early_stop": values.Whole(0, 10**6),
            "accumulate": values.Whole(1, 10**5),
            "save_steps": _COUNT,
            "average": values.Number(0, 1, without_high=True),
            "start": _TEXT,
        },
        operational=(
            "log_every",
            "save_minutes",
            "save_steps",
            # Equal but for rounding.
            "accumulate",
            # What it did is reported in the run's folder.
            "nonfinite",
            # Guarded by its content: the checkpoints know the hash of its parameters.
            "start",
        ),
    ),
}

_AUGMENT: Final = {
    "augment.preset": Key(
        "plain",
        values.Choice(tuple(augment.PRESETS)),
        "none, plain or nnunet; a key that is not set has the preset's value.",
    )
} | {
    name: dataclasses.replace(key, unset=True)
    for name, key in of_class(
        "augment",
        augment.AugmentOptions,
        {
            "modality_dropout": values.Number(0, 1, without_high=True),
            "flip_axes": values.Text("letters out of d, h and w, or an empty text"),
            "scale": _SHARE,
            "shift": values.Number(0, 10),
            "noise": values.Number(0, 10),
            **{
                name: values.Several(values.Number(*limits), 2, 2)
                for name, limits in augment.LIMITS.items()
            },
            **{
                field.name: _SHARE
                for field in dataclasses.fields(augment.AugmentOptions)
                if field.name.endswith("_probability")
            },
        },
    ).items()
}

_USE: Final = {
    "inference.patch": Key((48, 48, 48), _EDGES, "Window of whole-volume prediction."),
    "inference.overlap": Key(
        0.5,
        values.Number(0, 1, without_high=True),
        "Share of a window's edge that the next one covers too.",
    ),
    "inference.mirror": Key(False, _SWITCH, "Average over the 8 mirror images."),
    "inference.thresholds": Key(
        "fixed",
        values.Choice(("fixed", "validation")),
        "Decision: fixed, the most probable class (of a regions head: above 0.5); or validation, a "
        "threshold for each region that is chosen on the validation cases.",
    ),
    "inference.whole": Key(
        False,
        _SWITCH,
        "No windows: a scan in one pass, its depth split over all of a process's devices.",
    ),
    # Equal but for the order of sums.
    "mesh.data": Key(
        -1, values.Whole(-1, 10**6), "-1: all devices that `space` leaves.", operational=True
    ),
    "mesh.space": Key(
        1, values.Whole(1, 10**6), "Devices that share the depth of a patch.", operational=True
    ),
    "mesh.state": Key(
        sharding.STATES[0],
        values.Choice(sharding.STATES),
        "Parameters and optimizer state: replicated, or sharded over `data`.",
        operational=True,
    ),
}

# Of a student and a study alone.
_OF_STUDENTS: Final = of_class(
    "distillation",
    distillation.DistillationOptions,
    {
        "kd_weight": _SHARE,
        **{
            f"{name}_weight": values.Number(0, 1e6)
            for name in ("latent", *distillation.OF_OWN_WEIGHT)
        },
        "temperature": values.Number(0, 1000, without_low=True),
        "contrastive_temperature": values.Number(0, 1000, without_low=True),
        "unlabelled_weight": values.Number(0, 1e6),
        "unlabelled_temperature": values.Number(0, 1000, without_low=True),
        "sharpening": values.Number(0, 1, without_low=True),
        "confidence_threshold": _SHARE,
        "mixup": values.Number(0, 100),
    },
) | {
    # Guarded by its content: the checkpoints know the hash of its parameters.
    "teacher.checkpoint": Key(
        "",
        _TEXT,
        "A run, an exported model, or what nnU-Net or MONAI trained; several runs or models, with "
        "; between them, are averaged.",
        operational=True,
    ),
    "teacher.weights": Key(
        (),
        values.Several(values.Number(0, 1e6, without_low=True), 0, 100),
        "Of several teachers, in their order; empty: all count alike.",
    ),
    # Guarded by its content too.
    "teacher.maps": Key(
        "",
        _TEXT,
        "In place of a network: a folder of the probabilities of every training case, such as "
        "python -m kdnet_jax.predict --probabilities writes.",
        operational=True,
    ),
    "teacher.folds": Key(
        "",
        _TEXT,
        "Of a teacher of nnU-Net: its folds with commas, to be averaged; empty: all there are.",
    ),
    "teacher.modalities": Key(
        "",
        _CHANNELS,
        "What it sees, where it has to be trained first; empty: all that is read.",
    ),
    "teacher.widths": Key((), values.Several(_WIDTH, 0, 9), "Empty: the student's."),
    "teacher.steps": Key(1000, _STEPS, "Of its training."),
}

# Where D - A is smaller, in mean Dice, there is hardly anything that a method could recover.
LEAST_ROOM: Final = 0.05
_OF_STUDIES: Final = {
    "study.seeds": Key(
        3, values.Whole(1, 100), "Each seed trains its own teacher, baseline and student."
    ),
    "study.folds": Key(
        0,
        values.Whole(0, 100),
        "Every case is tested once in k folds; 0: the one split of `split`.",
    ),
    "study.arms": Key(
        "",
        values.Text("arms out of E, A, D, B and C with commas, or nothing"),
        "Arms of a study of few labels (docs/statistics.md); empty: teacher, baseline, student.",
    ),
    "study.primary": Key(
        "C-A:dice:mean",
        values.Text("a difference of arms, a metric and a region (or mean) with colons"),
        "The primary endpoint of a study of few labels, fixed by its first start.",
    ),
    "study.least_room": Key(
        LEAST_ROOM,
        values.Number(-1, 1),
        "Arms B and C are trained where D - A, in mean Dice, is so much; -1: in any case.",
    ),
}

_OF_ALL: Final = _RUN | _DATA | _SPLIT | _LOADER | _MODEL | _TRAINING | _AUGMENT | _USE
KEYS: Final[dict[str, Key]] = _OF_ALL | _OF_STUDENTS | _OF_STUDIES
OPERATIONAL: Final = frozenset(name for name, key in KEYS.items() if key.operational)
# What is said of a whole section.
SECTIONS: Final = {
    "data.phantom": "The synthetic cohort; `spacing` is the voxel size of its scans too.",
    "teacher": "A teacher that has to be trained first differs from the student in these alone.",
}


def of_role(role: str) -> dict[str, Key]:
    """Returns the keys of a role's config ("teacher", "baseline", "student"), or a "study"'s."""
    return {
        "student": _OF_ALL | _OF_STUDENTS,
        "study": KEYS,
    }.get(role, _OF_ALL)
