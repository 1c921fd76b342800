"""The weights of MONAI's networks under the names of `monai.networks.nets` 1.5 and 1.6."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Num, PyTree

from kdnet_jax.interop import weights
from kdnet_jax.models import monai

Config = monai.DynUNetConfig | monai.SegResNetConfig
# DynUNet holds its blocks by their names, and again nested in one another.
_SKIP = "skip_layers"


def from_torch(config: Config, state: weights.State, channels: int) -> PyTree:
    """Returns parameters for `config.module()`, which sees so many channels, from a state dict.

    Raises:
        UserError: it is not of this network; see `weights.from_torch`.
    """
    return weights.from_torch(config, entries(config, channels), state, channels)


def to_torch(config: Config, params: PyTree) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns the state dict of the PyTorch class, all of its keys."""
    tree = params["params"]
    channels = tree["input_block"]["conv1"]["kernel"].shape[3] if "input_block" in tree else 1
    return weights.to_torch(entries(config, channels), params)


def entries(config: Config, channels: int) -> Iterator[weights.Entry]:
    """Returns the table of arrays.

    Args:
        config: the network.
        channels: of its input, which decide whether DynUNet's first residual block projects it.
    """
    if isinstance(config, monai.DynUNetConfig):
        return _dynunet(config, channels)
    return _segresnet(config)


# --- DynUNet -------------------------------------------------------------------------------------


def _dynunet(config: monai.DynUNetConfig, channels: int) -> Iterator[weights.Entry]:
    last, before = len(config.filters) - 1, channels
    for level, features in enumerate(config.filters):
        path, name = f"downsamples_{level - 1}", f"downsamples.{level - 1}"
        if level in (0, last):
            path = name = "bottleneck" if level else "input_block"
        twin = _SKIP + ".next_layer" * level + ("" if level == last else ".downsample")
        changed = before != features or config.strides[level] != (1, 1, 1)
        yield from _block(config, path, [name, twin], projected=config.res_block and changed)
        before = features
    for level in range(last):
        index = last - 1 - level
        names = [f"upsamples.{index}", _SKIP + ".next_layer" * level + ".upsample"]
        yield from weights.convolution(
            f"upsamples_{index}_transp_conv",
            [f"{name}.transp_conv.conv" for name in names],
            bias=config.trans_bias,
            layout="transposed",
        )
        block = [f"{name}.conv_block" for name in names]
        yield from _block(config, f"upsamples_{index}_conv_block", block, projected=False)
    yield from weights.convolution("output_block", ["output_block.conv.conv"], bias=True)
    for index in range(config.heads):
        twin = _SKIP + ".next_layer" * (index + 1) + ".super_head"
        names = [f"{name}.conv.conv" for name in (f"deep_supervision_heads.{index}", twin)]
        yield from weights.convolution(f"heads_{index}", names, bias=True)


def _block(
    config: monai.DynUNetConfig, path: str, names: list[str], projected: bool
) -> Iterator[weights.Entry]:
    for number in (1, 2, 3) if projected else (1, 2):
        conv = [f"{name}.conv{number}.conv" for name in names]
        yield from weights.convolution(f"{path}/conv{number}", conv, bias=False)
        norm = [f"{name}.norm{number}" for name in names]
        yield from weights.norm(f"{path}/norm{number}", norm, affine=config.norm_affine)


# --- SegResNet -----------------------------------------------------------------------------------


def _segresnet(config: monai.SegResNetConfig) -> Iterator[weights.Entry]:
    yield from weights.convolution("init", ["convInit.conv"], bias=False)
    for level, count in enumerate(config.blocks_down):
        if level:
            down = [f"down_layers.{level}.0.conv"]
            yield from weights.convolution(f"down_{level}", down, bias=False)
        for index in range(count):
            name = f"down_layers.{level}.{index + 1}"
            yield from _res_block(f"encoder_{level}_{index}", name)
    for stage, count in enumerate(config.blocks_up):
        up = f"up_samples.{stage}"
        yield from weights.convolution(f"up_{stage}", [f"{up}.0.conv"], bias=False)
        if config.upsample_mode == "deconv":
            yield from weights.convolution(
                f"deconv_{stage}", [f"{up}.1.deconv"], bias=True, layout="transposed"
            )
        for index in range(count):
            yield from _res_block(f"decoder_{stage}_{index}", f"up_layers.{stage}.{index}")
    yield from weights.norm("final_norm", ["conv_final.0"])
    yield from weights.convolution("final_conv", ["conv_final.2.conv"], bias=True)


def _res_block(path: str, name: str) -> Iterator[weights.Entry]:
    for number in (1, 2):
        yield from weights.norm(f"{path}/norm{number}", [f"{name}.norm{number}"])
        conv = [f"{name}.conv{number}.conv"]
        yield from weights.convolution(f"{path}/conv{number}", conv, bias=False)
