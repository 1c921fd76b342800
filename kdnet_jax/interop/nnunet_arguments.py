"""The arguments of nnU-Net's network classes as raw network configs, and back."""

from typing import Final

from kdnet_jax.core import typed
from kdnet_jax.interop import arguments
from kdnet_jax.models import nnunet

_EPSILON: Final = 1e-5  # PyTorch's default


def read_plain(given: arguments.Arguments) -> nnunet.PlainConvConfig:
    """Returns the config equivalent to a PlainConvUNet's arguments."""
    given.expect("nonlin_first", False, False)
    return nnunet.PlainConvConfig(**_fields(given, "n_conv_per_stage"))


def read_residual(given: arguments.Arguments) -> nnunet.ResidualEncoderConfig:
    """Returns the config equivalent to a ResidualEncoderUNet's arguments."""
    block = given.take("block")
    if block is not None and str(block).rpartition(".")[2] != "BasicBlockD":
        given.refuse("block", block, "BasicBlockD")
    given.expect("bottleneck_channels", None, None)
    stem = given.take("stem_channels") or 0
    return nnunet.ResidualEncoderConfig(**_fields(given, "n_blocks_per_stage"), stem_features=stem)


def _fields(given: arguments.Arguments, blocks: str) -> typed.Json:
    layers = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU"}
    for name, only in layers.items():
        value = given.need(name)
        if str(value).rpartition(".")[2] != only:
            given.refuse(name, value, only)
    # A layer of dropout shifts the names of the weights after it.
    given.expect("dropout_op", None, None)
    given.take("dropout_op_kwargs")
    stages = given.need("n_stages")
    if type(stages) is not int or stages < 2:
        given.refuse("n_stages", stages, "a whole number above 1")
    strides = given.triples("strides", given.need("strides"), stages)
    if strides[0] != (1, 1, 1):
        given.refuse("strides", list(strides), "strides that begin with 1")
    norm = given.inside("norm_op_kwargs", given.take("norm_op_kwargs"))
    active = given.inside("nonlin_kwargs", given.take("nonlin_kwargs"))
    fields = {
        "features": given.numbers("features_per_stage", given.need("features_per_stage"), stages),
        "kernels": given.triples("kernel_sizes", given.need("kernel_sizes"), stages),
        "strides": strides,
        "blocks": given.numbers(blocks, given.need(blocks), stages),
        "decoder_blocks": given.numbers(
            "n_conv_per_stage_decoder", given.need("n_conv_per_stage_decoder"), stages - 1
        ),
        "out_channels": given.need("num_classes"),
        "conv_bias": bool(given.take("conv_bias", False)),
        "norm_epsilon": float(norm.take("eps", _EPSILON)),
        "norm_affine": bool(norm.take("affine", False)),
        "slope": float(active.take("negative_slope", 0.01)),
        "deep_supervision": bool(given.take("deep_supervision", False)),
    }
    norm.expect("track_running_stats", False, False)
    norm.take("momentum")  # of running statistics, which there are none of
    active.take("inplace")
    norm.finish()
    active.finish()
    return fields


def write(config: nnunet.PlainConvConfig, channels: int) -> typed.Json:
    """Returns the arguments that make a network of `channels` input channels."""
    residual = isinstance(config, nnunet.ResidualEncoderConfig)
    stem = {"stem_channels": config.stem_features} if residual and config.stem_features else {}
    return {
        "input_channels": channels,
        "num_classes": config.out_channels,
        "n_stages": len(config.features),
        "features_per_stage": list(config.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(each) for each in config.kernels],
        "strides": [list(each) for each in config.strides],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(config.blocks),
        "n_conv_per_stage_decoder": list(config.decoder_blocks),
        "conv_bias": config.conv_bias,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": config.norm_epsilon, "affine": config.norm_affine},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True, "negative_slope": config.slope},
        "deep_supervision": config.deep_supervision,
        **stem,
    }
