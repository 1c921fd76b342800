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
paints an enhancing tumour also where it finds no whole tumour; here regions are nested.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Num

from kdnet_jax import conventions, files
from kdnet_jax.errors import UserError
from kdnet_jax.interop import (
    described_weights,
    foreign_model,
    network_kinds,
    torch_files,
    vocabulary,
    weights,
)
from kdnet_jax.models import nnunet

_DATASET: Final = "Dataset999_KDNet"
_TRAINER, _PLANS, _CONFIGURATION = "nnUNetTrainer", "nnUNetPlans", "3d_fullres"
# The names under which nnU-Net knows the sequences of BraTS.
_CHANNELS: Final = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "Flair"}
_CLASS_LABELS: Final = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
# In nnU-Net's order, where a later region is painted over an earlier one: value 2 (ED) for all of
# the tumour, then 1 (NCR) for its core, then 3 (ET).
_REGION_LABELS: Final = {
    "background": 0,
    "whole tumor": [1, 2, 3],
    "tumor core": [1, 3],
    "enhancing tumor": [3],
}
_REGION_ORDER: Final = ("WT", "TC", "ET")
_REGION_VALUES: Final = [2, 1, 3]
_HEADS: Final = re.compile(r"decoder\.seg_layers\.\d+\.(weight|bias)")


def check(network: Any) -> None:
    """Raises UserError unless PyTorch has a class for the network."""
    if network_kinds.of_config(network) is None:
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
    if reason := _not_nnunet(given.axes, given.spacing):
        return [*said, f"no folder for nnUNetv2_predict: {reason}"]
    results = folder / "nnUNet_results" / _DATASET / f"{_TRAINER}__{_PLANS}__{_CONFIGURATION}"
    dataset, plans = _dataset(given), _plans(given)
    documents = {"plans.json": plans, "dataset.json": dataset}
    if given.known.complete:
        cases = list(given.known.ids)
        documents["splits_final.json"] = [{"train": cases, "val": []}] * len(states)
    for name, content in documents.items():
        files.write_text(results / name, json.dumps(content, indent=1) + "\n")
    channels = _channels(given.head, given.order)
    for fold, state in enumerate(states):
        content = _checkpoint(_with_heads(state, channels), plans, dataset, fold, given.mirror)
        torch_files.write(results / f"fold_{fold}" / "checkpoint_final.pth", content)
    return [*said, f"{results.relative_to(folder)}: for nnUNetv2_predict"]


# ------------------------------------------------------------------------- nnU-Net's folder


def _not_nnunet(axes: str, spacing: float | None) -> str:
    """Returns why nnU-Net's folder cannot say what the model needs, "" if it can."""
    if spacing is None:
        return "nnU-Net resamples every scan to one voxel size, this model takes each as it is"
    if sorted(axes) != sorted("SPL"):
        return f"nnU-Net takes the axes as BraTS files have them, this model turns them to {axes}"
    return ""


def _channels(head: vocabulary.Head, order: Sequence[int]) -> list[int]:
    """Returns, for each of nnU-Net's outputs, the network's channel."""
    if head == "softmax":
        return list(order)
    return [order[conventions.REGIONS.index(name)] for name in _REGION_ORDER]


def _with_heads(state: weights.State, channels: Sequence[int]) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns a state dict whose outputs are in the order `channels`."""
    chosen = list(channels)
    return {
        name: value[chosen] if _HEADS.fullmatch(name) else value for name, value in state.items()
    }


def _dataset(given: foreign_model.ForeignModel) -> dict[str, Any]:
    regions = {"regions_class_order": _REGION_VALUES} if given.head == "regions" else {}
    return {
        "channel_names": {str(i): _CHANNELS[name] for i, name in enumerate(given.modalities)},
        "labels": _REGION_LABELS if given.head == "regions" else _CLASS_LABELS,
        **regions,
        "licence": given.about.get("licence", ""),
        "numTraining": len(given.known.ids),
        "file_ending": ".nii.gz",
        "name": _DATASET,
    }


def _plans(given: foreign_model.ForeignModel) -> dict[str, Any]:
    """Returns plans.json."""
    forward = ["SPL".index(letter) for letter in given.axes]
    channels, spacing, window = len(given.modalities), given.spacing, list(given.window)
    kind = network_kinds.of_config(given.network)
    arguments = kind.write(given.network, channels)
    # nnU-Net passes these itself.
    for name in ("input_channels", "num_classes", "deep_supervision"):
        arguments.pop(name)
    return {
        "dataset_name": _DATASET,
        "plans_name": _PLANS,
        "original_median_spacing_after_transp": [spacing] * 3,
        "original_median_shape_after_transp": window,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(channels)},
        "configurations": {
            _CONFIGURATION: {
                "data_identifier": f"{_PLANS}_{_CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": window,
                "median_image_size_in_voxels": [float(edge) for edge in window],
                "spacing": [spacing] * 3,
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [True] * channels,
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


def _resampling(what: str, is_seg: bool) -> dict[str, Any]:
    """Returns nnU-Net's function for it, linear as this project's, where nnU-Net has splines."""
    options = {"is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": False}
    return {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape",
        f"resampling_fn_{what}_kwargs": options,
    }


def _checkpoint(
    state: weights.State,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    fold: int,
    mirror: bool,
) -> dict[str, Any]:
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
