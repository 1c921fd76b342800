"""Small folders as nnU-Net and MONAI write them, with random weights; PyTorch saves them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.interop import foreign_model, monai_weights, network_kinds, nnunet_weights
from kdnet_jax.models import monai, nnunet
from kdnet_jax.runs import model

CHANNELS = {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
# As nnU-Net's own converter of BraTS 2021 writes them: 1 edema, 2 necrosis, 3 enhancing.
REGIONS = {
    "background": 0,
    "whole tumor": [1, 2, 3],
    "tumor core": [2, 3],
    "enhancing tumor": [3],
}
PLAIN = nnunet.PlainConvConfig(
    features=(2, 3, 4),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    blocks=(1, 2, 1),
    decoder_blocks=(1, 2),
    out_channels=3,
    bfloat16=False,
)
RESIDUAL = nnunet.ResidualEncoderConfig(
    features=(2, 3, 4),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(1, 2, 1),
    decoder_blocks=(1, 1),
    out_channels=3,
    bfloat16=False,
)
SEGRESNET = monai.SegResNetConfig(
    init_filters=8, out_channels=3, blocks_down=(1, 2), blocks_up=(1,), bfloat16=False
)
DYNUNET = monai.DynUNetConfig(
    kernels=((3, 3, 3), (3, 3, 1), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    upsample_kernels=((2, 2, 1), (2, 2, 2)),
    filters=(2, 3, 4),
    out_channels=3,
    bfloat16=False,
)


def random_params(config: Any, channels: int, seed: int = 0) -> Any:
    """Returns parameters of a network, drawn from a normal distribution."""
    x = jax.ShapeDtypeStruct((1, *config.divisor, channels), np.float32)
    shapes = jax.eval_shape(config.module().init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda each: rng.normal(size=each.shape).astype(np.float32), shapes)


def model_of(config: Any, members: int = 1, **changes: Any) -> foreign_model.ForeignModel:
    """Returns a model of these networks, which sees T1ce unless `changes` say otherwise."""
    values = {
        "source": "",
        "task": task_lib.GLIOMA,
        "modalities": ("t1ce",),
        "head": "regions",
        "order": (0, 1, 2),
        "axes": "SPL",
        "spacing": 1.0,
        "window": (16, 16, 16),
        "overlap": 0.5,
        "mirror": True,
        "known": model.KnownCases(("c1", "c2"), complete=True),
        "about": {"licence": "Apache-2.0"},
    } | changes
    channels = len(values["modalities"])
    params = tuple(random_params(config, channels, seed) for seed in range(members))
    return foreign_model.ForeignModel(network=config, members=params, **values)


def answer(config: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """Applies our network, in float32, to "b d h w m"; returns its logits."""
    module = dataclasses.replace(config, bfloat16=False).module()
    found = jax.jit(lambda params, x: module.apply(params, x)[0])
    return np.asarray(found(jax.tree.map(jnp.asarray, params), jnp.asarray(x)))


def answer_of_torch(network: Any, x: np.ndarray) -> np.ndarray:
    """Applies a network of PyTorch to the same."""
    import torch

    with torch.no_grad():
        y = network.eval()(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 4, 1, 2, 3))))
    return y.numpy().transpose(0, 2, 3, 4, 1)


def state(config: Any, channels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a state dict of PyTorch's class, of `random_params`."""
    is_nnunet = isinstance(config, nnunet.PlainConvConfig)
    weights = nnunet_weights if is_nnunet else monai_weights
    return weights.to_torch(config, random_params(config, channels, seed))


def save(path: pathlib.Path, content: Any) -> pathlib.Path:
    """Saves a tree with PyTorch, its arrays as tensors."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(_tensors(content), path)
    return path


def _tensors(content: Any) -> Any:
    import torch

    if isinstance(content, Mapping):
        return {key: _tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content


def write_json(path: pathlib.Path, content: Any) -> pathlib.Path:
    """Writes a JSON file into a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# ------------------------------------------------------------------------------------- nnU-Net


def plan(config: Any = PLAIN, channels: int = 4) -> dict[str, Any]:
    """Returns a configuration of plans.json."""
    kind = network_kinds.of_config(config)
    arguments = kind.write(config, channels)
    for name in ("input_channels", "num_classes", "deep_supervision"):
        del arguments[name]
    return {
        "patch_size": [8, 8, 16],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [True] * channels,
        "architecture": {
            "network_class_name": f"{kind.module}.{kind.name}",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def plans(configurations: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns plans.json."""
    return {
        "dataset_name": "Dataset137_BraTS2021",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": dict(configurations),
    } | changes


def dataset(**changes: Any) -> dict[str, Any]:
    """Returns dataset.json, as of BraTS 2021."""
    return {
        "channel_names": CHANNELS,
        "labels": REGIONS,
        "regions_class_order": [1, 2, 3],
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "licence": "see the challenge",
    } | changes


def checkpoint(weights: Mapping[str, np.ndarray], configuration: str, fold: Any) -> dict[str, Any]:
    """Returns what nnU-Net's trainer saves, its log of NumPy's numbers included."""
    import torch

    return {
        "network_weights": dict(weights),
        "optimizer_state": {"state": {}},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)]},
        "_best_ema": np.float64(0.25),
        "current_epoch": 1000,
        "init_args": {
            "plans": {},
            "configuration": configuration,
            "fold": fold,
            "dataset_json": {},
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def results(
    root: pathlib.Path,
    config: Any = PLAIN,
    *,
    channels: int = 4,
    folds: Sequence[Any] = (0,),
    configuration: str = "3d_fullres",
    name: str = "checkpoint_final.pth",
    plan_changes: Mapping[str, Any] | None = None,
    plans_json: Mapping[str, Any] | None = None,
    dataset_json: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a folder of results into `root`, and returns it."""
    folder = root / "Dataset137_BraTS2021" / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    found = plan(config, channels) | (plan_changes or {})
    write_json(folder / "plans.json", plans_json or plans({configuration: found}))
    write_json(folder / "dataset.json", dataset_json or dataset())
    for index, fold in enumerate(folds):
        content = checkpoint(state(config, channels, index), configuration, fold)
        save(folder / f"fold_{fold}" / name, content)
    return folder


# ------------------------------------------------------------------------------------- MONAI


def metadata(**channel_defs: Any) -> dict[str, Any]:
    """Returns metadata.json as the model zoo's brats_mri_segmentation has it."""
    inputs = {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}
    outputs = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    return {
        "version": "0.5.3",
        "monai_version": "1.4.0",
        "network_data_format": {
            "inputs": {"image": {"channel_def": channel_defs.get("inputs", inputs)}},
            "outputs": {"pred": {"channel_def": channel_defs.get("outputs", outputs)}},
        },
    }


def inference(network_def: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns inference.json, likewise."""
    return {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network_def": dict(network_def),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                normalise(),
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 8], "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
        },
    } | changes


def normalise(**changes: Any) -> dict[str, Any]:
    """Returns the transform that makes z-scores."""
    given = {"keys": "image", "nonzero": True, "channel_wise": True}
    return {"_target_": "NormalizeIntensityd"} | given | changes


def network_def(config: Any = SEGRESNET, channels: int = 4) -> dict[str, Any]:
    """Returns a bundle's definition of a network."""
    kind = network_kinds.of_config(config)
    return {"_target_": kind.name} | kind.write(config, channels)


def bundle(
    folder: pathlib.Path,
    config: Any = SEGRESNET,
    *,
    seed: int = 0,
    inference_json: Mapping[str, Any] | None = None,
    metadata_json: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a bundle, and returns its folder."""
    made = inference_json or inference(network_def(config))
    write_json(folder / "configs" / "inference.json", made)
    write_json(folder / "configs" / "metadata.json", metadata_json or metadata())
    save(folder / "models" / "model.pt", state(config, 4, seed))
    return folder
