"""nnU-Net's networks, equal to `dynamic_network_architectures`' with the same weights.

Isensee et al., "nnU-Net", Nature Methods 2021, and "nnU-Net revisited", MICCAI 2024.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.models import torch_layers, unet
from kdnet_jax.models.torch_layers import Triple


@dataclasses.dataclass(frozen=True)
class PlainConvConfig:
    """`PlainConvUNet`; the number of input channels follows from the input.

    Attributes:
        features: channels of each stage, finest first.
        kernels: of each stage's convolutions.
        strides: of each stage's first convolution.
        blocks: convolutions of each stage of the encoder.
        decoder_blocks: of each stage of the decoder, coarsest first; one fewer.
        out_channels: of the logits.
        conv_bias: convolutions have a bias.
        norm_epsilon: of the instance norms.
        norm_affine: they have a scale and a bias.
        slope: of the LeakyReLU.
        deep_supervision: logits at the coarser stages too (all but the coarsest, whose weight in
            nnU-Net's loss is 0), under "logits_1", ... of the features. Their parameters are there
            in any case.
        bfloat16: see `unet.UNetConfig`.
        convolutions: likewise; those of another stride than 1 are XLA's own in any case.
    """

    features: tuple[int, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    out_channels: int
    conv_bias: bool = True
    norm_epsilon: float = 1e-5
    norm_affine: bool = True
    slope: float = 0.01
    deep_supervision: bool = False
    bfloat16: bool | None = None
    convolutions: unet.Convolutions = "auto"

    def __post_init__(self) -> None:
        """Raises UserError for stages of which no network can be made."""
        torch_layers.check_stages(
            self.kernels,
            self.strides,
            features=self.features,
            blocks=self.blocks,
            # The coarsest stage has none.
            decoder_blocks=(*self.decoder_blocks, 1),
        )

    @property
    def divisor(self) -> Triple:
        """What each edge of the input must be divisible by."""
        return torch_layers.total_stride(self.strides)

    def module(self) -> nn.Module:
        """Returns the network."""
        return PlainConvUNet(self)

    @classmethod
    def of_unet(cls, like: unet.UNetConfig) -> "PlainConvConfig":
        """Returns a network of the widths, strides and kernels of a U-Net's levels."""
        depth = len(like.widths)
        return cls(
            features=like.widths,
            kernels=like.level_kernels,
            strides=((1, 1, 1), *like.level_strides),
            blocks=(like.blocks,) * depth,
            decoder_blocks=(cls._decoder_blocks(like.blocks),) * (depth - 1),
            out_channels=like.out_channels,
            deep_supervision=like.deep_supervision,
            bfloat16=like.bfloat16,
            convolutions=like.convolutions,
        )

    @staticmethod
    def _decoder_blocks(blocks: int) -> int:
        return blocks


@dataclasses.dataclass(frozen=True)
class ResidualEncoderConfig(PlainConvConfig):
    """`ResidualEncoderUNet` with basic blocks; see `PlainConvConfig`.

    `blocks` are residual blocks of two convolutions; `decoder_blocks` are convolutions.

    Attributes:
        stem_features: channels of the convolution before the first stage; 0: `features[0]`.
    """

    stem_features: int = 0

    def module(self) -> nn.Module:
        """Returns the network."""
        return ResidualEncoderUNet(self)

    @staticmethod
    def _decoder_blocks(blocks: int) -> int:
        return 1  # as nnU-Net's planner


class _Layers(nn.Module):
    """What the blocks of one network share."""

    config: PlainConvConfig

    def _conv(
        self,
        name: str,
        features: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        *,
        bias: bool,
    ) -> nn.Module:
        return torch_layers.Conv(
            features,
            kernel,
            stride,
            bias=bias,
            name=name,
            **unet.block_options(self.config),
        )

    def _norm(self, slope: float, first_scale: float) -> nn.Module:
        config, form = self.config, unet.block_options(self.config)["form"]
        return torch_layers.Norm(
            0, config.norm_epsilon, config.norm_affine, slope, first_scale, form, name="norm"
        )


class _Block(_Layers):
    """Convolution, norm, and LeakyReLU if `active` (`ConvDropoutNormReLU`)."""

    features: int
    kernel: Triple
    stride: Triple = (1, 1, 1)
    bias: bool = True
    active: bool = True
    first_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bias = self.bias and self.config.conv_bias
        x = self._conv("conv", self.features, self.kernel, stride=self.stride, bias=bias)(x)
        return self._norm(self.config.slope if self.active else 1.0, self.first_scale)(x)


class _ResidualBlock(_Layers):
    """Two convolutions beside a skip (`BasicBlockD`; He et al., "Bag of tricks", CVPR 2019)."""

    features: int
    kernel: Triple
    stride: Triple

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = (self.config, self.features, self.kernel)
        y = _Block(*block, self.stride, name="conv1")(x)
        # Training begins with the skips alone, as nnU-Net's.
        y = _Block(*block, active=False, first_scale=0.0, name="conv2")(y)
        if self.stride != (1, 1, 1):
            x = torch_layers.average_pool(x, self.stride)
        if x.shape[-1] != self.features:
            own = (self.config, self.features, (1, 1, 1))
            x = _Block(*own, bias=False, active=False, name="skip")(x)
        return torch_layers.leaky_relu(x + y, self.config.slope)


class _UNet(_Layers):
    """The decoder (`UNetDecoder`) over an encoder of `encoder_block`s, which subclasses name."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the network; `unet.UNet` says what it returns."""
        config, depth = self.config, len(self.config.features)
        skips = self._encode(x)
        x = skips[-1]
        features = {"bottleneck": x}
        for stage in range(depth - 1):
            level = depth - 2 - stage
            x = torch_layers.TransposedConv(
                config.features[level],
                config.strides[level + 1],
                config.conv_bias,
                dtype=unet.block_options(config)["dtype"],
                name=f"up_{stage}",
            )(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            for index in range(config.decoder_blocks[stage]):
                block = (config, config.features[level], config.kernels[level])
                x = _Block(*block, name=f"decoder_{stage}_{index}")(x)
            features[f"decoder_{level}"] = x
            # All heads have parameters, as there.
            logits = self._conv(f"head_{stage}", config.out_channels, (1, 1, 1), bias=True)(x)
            logits = logits.astype(jnp.float32)
            if config.deep_supervision and 0 < level < depth - 2:
                features[f"logits_{level}"] = logits
        return logits, features

    def _encode(self, x: Array) -> list[Array]:
        """Returns the result of each stage."""
        config, skips = self.config, []
        for stage, width in enumerate(config.features):
            for index in range(config.blocks[stage]):
                stride = (1, 1, 1) if index else config.strides[stage]
                name = f"encoder_{stage}_{index}"
                x = self.encoder_block(config, width, config.kernels[stage], stride, name=name)(x)
            skips.append(x)
        return skips


class PlainConvUNet(_UNet):
    """nnU-Net's U-Net of plain convolutions."""

    encoder_block = _Block


class ResidualEncoderUNet(_UNet):
    """nnU-Net's U-Net with a residual encoder ("ResEnc")."""

    config: ResidualEncoderConfig
    encoder_block = _ResidualBlock

    def _encode(self, x: Array) -> list[Array]:
        config = self.config
        width = config.stem_features or config.features[0]
        return super()._encode(_Block(config, width, config.kernels[0], name="stem")(x))
