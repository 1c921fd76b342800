"""The weights of MONAI's networks under the names of `monai.networks.nets` 1.5 and 1.6."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Num

from kdnet_jax.interop import weights
from kdnet_jax.models import monai

Config = monai.DynUNetConfig | monai.SegResNetConfig


def from_torch(config: Config, state: weights.State) -> Any:
    """Returns parameters for `config.module()` from a state dict.

    Raises:
        UserError: it is not of this network; see `weights.from_torch`.
    """
    return weights.from_torch(config, _entries(config), state)


def to_torch(config: Config, params: Any) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns the state dict of the PyTorch class, all of its keys."""
    return weights.to_torch(_entries(config), params)


def _entries(config: Config) -> Iterator[weights.Entry]:
    return _dynunet(config) if isinstance(config, monai.DynUNetConfig) else _segresnet(config)


# --- DynUNet -------------------------------------------------------------------------------------


def _dynunet(config: monai.DynUNetConfig) -> Iterator[weights.Entry]:
    last = len(config.filters) - 1
    for level in range(last + 1):
        first = level == 0
        path, name = "bottleneck", "bottleneck"
        twin = "skip_layers" + ".next_layer" * last
        if level < last:
            path = "input_block" if first else f"downsamples_{level - 1}"
            name = "input_block" if first else f"downsamples.{level - 1}"
            twin = "skip_layers" + ".next_layer" * level + ".downsample"
        # The input's channels are not known here; they are never those of the first stage.
        changed = first or config.filters[level] != config.filters[level - 1]
        projected = config.res_block and (changed or config.strides[level] != (1, 1, 1))
        yield from _block(config, path, [name, twin], projected)
    for level in range(last):
        index = last - 1 - level
        names = [f"upsamples.{index}", "skip_layers" + ".next_layer" * level + ".upsample"]
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
        twin = "skip_layers" + ".next_layer" * (index + 1) + ".super_head"
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
