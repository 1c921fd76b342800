"""A student for the tools that people have: weights for PyTorch's class, and nnU-Net's folder.

    DIR/model.pt, DIR/foreign.json       for MONAI's or nnU-Net's class, and for kdnet_jax
    DIR/nnUNet_results/...               for nnUNetv2_predict, of a network of nnU-Net's

The first is loaded by

    about = json.load(open("foreign.json"))
    layers = ("conv_op", "norm_op", "nonlin")  # nnU-Net's arguments that are classes
    arguments = {
        name: pydoc.locate(value) if name in layers else value
        for name, value in about["arguments"].items()
    }
    network = pydoc.locate(about["class"])(**arguments)
    network.load_state_dict(torch.load("model.pt", weights_only=True))

nnU-Net's own preparation of a scan then differs from this project's as `nnunet_folder` says, and it
paints a region also outside of those that contain it; here it is painted only within them.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Num

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import (
    described_weights,
    foreign_model,
    network_kinds,
    nnunet_task,
    torch_files,
    weights,
)
from kdnet_jax.models import adapted, networks, nnunet, unet

_DATASET: Final = "Dataset999_KDNet"
_TRAINER, _PLANS, _CONFIGURATION = "nnUNetTrainer", "nnUNetPlans", "3d_fullres"
_SCHEMES: Final = {ours: theirs for theirs, ours in nnunet_task.SCHEMES.items()} | {
    "zscore_nonzero": nnunet_task.ZSCORE
}
_HEADS: Final = re.compile(r"decoder\.seg_layers\.\d+\.(weight|bias)")


def check(network: networks.Network | adapted.RawConfig) -> None:
    """Raises UserError unless PyTorch has a class for the network."""
    if isinstance(network, unet.UNetConfig):
        names = ", ".join(sorted(kind.name for kind in network_kinds.KINDS))
        raise UserError(
            "the project's own U-Net has no class in nnU-Net or MONAI, so its weights cannot be "
            f"written for PyTorch. Train a network that has one: {names}."
        )


def write(folder: pathlib.Path, given: foreign_model.ForeignModel) -> list[str]:
    """Writes a model for PyTorch into a folder; needs PyTorch.

    Returns:
        A sentence on each thing that was written, or why it was not.

    Raises:
        UserError: PyTorch has no class for the network, or is missing.
    """
    check(given.network)
    kind = network_kinds.of_config(given.network)
    states = [kind.weights.to_torch(given.network, params) for params in given.members]
    names = ["model.pt"] if len(states) == 1 else [f"model_{i}.pt" for i in range(len(states))]
    for name, state in zip(names, states, strict=True):
        torch_files.write(folder / name, state)
    files.write_text(folder / described_weights.FILE, described_weights.describe(given))
    said = [f"{', '.join(names)}, {described_weights.FILE}: weights for {kind.module}.{kind.name}"]
    if not isinstance(given.network, nnunet.PlainConvConfig):
        return said
    if reason := _not_nnunet(given):
        return [*said, f"no folder for nnUNetv2_predict: {reason}"]
    results = folder / "nnUNet_results" / _DATASET / f"{_TRAINER}__{_PLANS}__{_CONFIGURATION}"
    dataset, plans = _dataset(given), _plans(given)
    documents: dict[str, object] = {"plans.json": plans, "dataset.json": dataset}
    if given.known.complete:
        cases = list(given.known.ids)
        documents["splits_final.json"] = [{"train": cases, "val": []}] * len(states)
    for name, content in documents.items():
        files.write_text(results / name, json.dumps(content, indent=1) + "\n")
    channels = _channels(given)
    for fold, state in enumerate(states):
        content = _checkpoint(_with_heads(state, channels), plans, dataset, fold, given.mirror)
        torch_files.write(results / f"fold_{fold}" / "checkpoint_final.pth", content)
    return [*said, f"{results.relative_to(folder)}: for nnUNetv2_predict"]


# ------------------------------------------------------------------------- nnU-Net's folder


def _not_nnunet(given: foreign_model.ForeignModel) -> str:
    """Returns why nnU-Net's folder cannot say what the model needs, "" if it can."""
    if given.spacing is None:
        return "nnU-Net resamples every scan to one voxel size, this model takes each as it is"
    if sorted(given.axes) != sorted("SPL"):
        return (
            "nnU-Net takes the axes as BraTS files have them, this model turns them to "
            f"{given.axes}"
        )
    if given.head == "regions" and not nnunet_task.has_regions(dataset_json.describe(_task(given))):
        return (
            "nnU-Net has a sigmoid only where a region is of several classes; train with "
            "--config.model.head=softmax"
        )
    for channel in _task(given).channels:
        if channel.normalisation == "ct" and channel.statistics is None:
            return f"the intensities of {channel.name} that a CT is cut at are not known"
    return ""


def _task(given: foreign_model.ForeignModel) -> task_lib.Task:
    """Returns the task as nnU-Net sees it: of these channels, by classes where they are outputs."""
    task, names = given.task, given.modalities
    channels = tuple(task.channel(name) for name in names)
    task = dataclasses.replace(
        task, channels=channels, student=task.student if task.student in names else None
    )
    if given.head == "regions":
        return task
    classes = tuple(
        task_lib.Region(name=name, members=(number,), paint=number)
        for number, name in enumerate(task.classes)
        if number
    )
    return dataclasses.replace(task, regions=classes, painting=tuple(range(len(classes))))


def _channels(given: foreign_model.ForeignModel) -> list[int]:
    """Returns, for each of nnU-Net's outputs, the network's channel."""
    if given.head == "softmax":
        return list(given.order)
    return [given.order[place] for place in given.task.painting]


def _with_heads(state: weights.State, channels: Sequence[int]) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns a state dict whose outputs are in the order `channels`."""
    chosen = list(channels)
    return {
        name: value[chosen] if _HEADS.fullmatch(name) else value for name, value in state.items()
    }


def _dataset(given: foreign_model.ForeignModel) -> typed.Json:
    task = _task(given)
    document = dataset_json.describe(task)
    own = {**document[dataset_json.OWN_KEY], "crops_zeros": task.crops_zeros}
    return document | {
        dataset_json.OWN_KEY: own,
        "licence": given.about.get("licence", ""),
        "numTraining": len(given.known.ids),
    }


def _plans(given: foreign_model.ForeignModel) -> typed.Json:
    """Returns plans.json."""
    forward = ["SPL".index(letter) for letter in given.axes]
    channels, window = _task(given).channels, list(given.window)
    spacing = list(given.spacing) if isinstance(given.spacing, tuple) else [given.spacing] * 3
    kind = network_kinds.of_config(given.network)
    arguments = kind.write(given.network, len(channels))
    # nnU-Net passes these itself.
    for name in ("input_channels", "num_classes", "deep_supervision"):
        arguments.pop(name)
    return {
        "dataset_name": _DATASET,
        "plans_name": _PLANS,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": window,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        nnunet_task.PROPERTIES: {
            str(i): dict(zip(nnunet_task.STATISTICS, each.statistics or (), strict=False))
            for i, each in enumerate(channels)
        },
        "configurations": {
            _CONFIGURATION: {
                "data_identifier": f"{_PLANS}_{_CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": window,
                "median_image_size_in_voxels": [float(edge) for edge in window],
                "spacing": spacing,
                "normalization_schemes": [_SCHEMES[each.normalisation] for each in channels],
                "use_mask_for_norm": [each.normalisation == "zscore_nonzero" for each in channels],
                **_resampling("data", is_seg=False),
                **_resampling("seg", is_seg=True),
                **_resampling("probabilities", is_seg=False),
                "architecture": {
                    "network_class_name": f"{kind.module}.{kind.name}",
                    "arch_kwargs": arguments,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
    }


def _resampling(what: str, is_seg: bool) -> typed.Json:
    """Returns nnU-Net's function for it, linear as this project's, where nnU-Net has splines."""
    options = {"is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": False}
    return {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape",
        f"resampling_fn_{what}_kwargs": options,
    }


def _checkpoint(
    state: weights.State,
    plans: typed.JsonView,
    dataset: typed.JsonView,
    fold: int,
    mirror: bool,
) -> typed.Json:
    return {
        "network_weights": state,
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": plans,
            "configuration": _CONFIGURATION,
            "fold": fold,
            "dataset_json": dataset,
        },
        "trainer_name": _TRAINER,
        "inference_allowed_mirroring_axes": (0, 1, 2) if mirror else None,
    }
