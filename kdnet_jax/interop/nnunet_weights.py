"""The weights of nnU-Net's networks under the names of `dynamic_network_architectures` 0.4."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Num, PyTree

from kdnet_jax.interop import weights
from kdnet_jax.models import nnunet


def from_torch(config: nnunet.PlainConvConfig, state: weights.State, channels: int) -> PyTree:
    """Returns parameters for `config.module()`, which sees so many channels, from a state dict.

    Raises:
        UserError: it is not of this network; see `weights.from_torch`.
    """
    return weights.from_torch(config, entries(config), state, channels)


def to_torch(config: nnunet.PlainConvConfig, params: PyTree) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns the state dict of the PyTorch class, all of its keys."""
    return weights.to_torch(entries(config), params)


def entries(config: nnunet.PlainConvConfig) -> Iterator[weights.Entry]:
    """Returns the table of arrays."""
    residual = isinstance(config, nnunet.ResidualEncoderConfig)
    if residual:
        yield from _block(config, "stem", _encoder("stem.convs.0"))
    before = (config.stem_features or config.features[0]) if residual else 0
    for stage, width in enumerate(config.features):
        for index in range(config.blocks[stage]):
            path = f"encoder_{stage}_{index}"
            if not residual:
                names = _encoder(f"stages.{stage}.0.convs.{index}")
                yield from _block(config, path, names)
                continue
            names = _encoder(f"stages.{stage}.blocks.{index}")
            strided = index == 0 and config.strides[stage] != (1, 1, 1)
            yield from _residual_block(config, path, names, strided, before != width)
            before = width
    for stage in range(len(config.features) - 1):
        up = [f"decoder.transpconvs.{stage}"]
        yield from weights.convolution(
            f"up_{stage}", up, bias=config.conv_bias, layout="transposed"
        )
        for index in range(config.decoder_blocks[stage]):
            names = [f"decoder.stages.{stage}.convs.{index}"]
            yield from _block(config, f"decoder_{stage}_{index}", names)
        head = [f"decoder.seg_layers.{stage}"]
        yield from weights.convolution(f"head_{stage}", head, bias=True)


def _encoder(name: str) -> list[str]:
    """Returns a module's names: the decoder holds the encoder too."""
    return [f"encoder.{name}", f"decoder.encoder.{name}"]


def _block(
    config: nnunet.PlainConvConfig, path: str, names: list[str], bias: bool = True
) -> Iterator[weights.Entry]:
    """The entries of a `ConvDropoutNormReLU`, which holds its layers twice."""
    conv = [f"{name}.{layer}" for name in names for layer in ("conv", "all_modules.0")]
    yield from weights.convolution(f"{path}/conv", conv, bias=bias and config.conv_bias)
    norm = [f"{name}.{layer}" for name in names for layer in ("norm", "all_modules.1")]
    yield from weights.norm(f"{path}/norm", norm, affine=config.norm_affine)


def _residual_block(
    config: nnunet.PlainConvConfig, path: str, names: list[str], strided: bool, projected: bool
) -> Iterator[weights.Entry]:
    for conv in ("conv1", "conv2"):
        yield from _block(config, f"{path}/{conv}", [f"{name}.{conv}" for name in names])
    if projected:
        # In the skip it comes after the pooling.
        skip = [f"{name}.skip.{int(strided)}" for name in names]
        yield from _block(config, f"{path}/skip", skip, bias=False)
