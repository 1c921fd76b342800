"""MONAI's networks, equal to `monai.networks.nets`' with the same weights.

DynUNet: Futrega et al., "Optimized U-Net for brain tumor segmentation", BraTS 2021. SegResNet:
Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization", BraTS 2018.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.errors import UserError
from kdnet_jax.models import layers, torch_layers, unet
from kdnet_jax.models.torch_layers import Triple

_ONE: Triple = (1, 1, 1)


@dataclasses.dataclass(frozen=True)
class DynUNetConfig:
    """`DynUNet`; the number of input channels follows from the input.

    Attributes:
        kernels: of each stage, finest first; the last is the bottleneck's.
        strides: likewise.
        upsample_kernels: of the transposed convolutions, `strides[1:]` in MONAI's words.
        filters: channels of each stage.
        out_channels: of the logits.
        groups: of the norms; 0 for instance norms.
        norm_affine: they have a scale and a bias.
        slope: of the LeakyReLU.
        res_block: residual blocks in the encoder.
        trans_bias: transposed convolutions have a bias.
        heads: logits at so many coarser stages too, under "logits_1", ... of the features; 0
            without deep supervision.
        bfloat16: see `unet.UNetConfig`.
        convolutions: likewise; those of another stride than 1 are XLA's own in any case.
    """

    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    upsample_kernels: tuple[Triple, ...]
    filters: tuple[int, ...]
    out_channels: int
    groups: int = 0
    norm_affine: bool = True
    slope: float = 0.01
    res_block: bool = False
    trans_bias: bool = False
    heads: int = 0
    bfloat16: bool | None = None
    convolutions: unet.Convolutions = "auto"

    def __post_init__(self) -> None:
        """Raises UserError for a network that MONAI cannot have."""
        torch_layers.check_stages(self.kernels, self.strides, filters=self.filters)
        stages = len(self.filters)
        if stages < 3:
            raise UserError(f"a DynUNet of {stages} stages; it has at least three.")
        if self.upsample_kernels != self.strides[1:]:
            raise UserError(
                f"a DynUNet with upsample_kernels {self.upsample_kernels}; expected the strides of "
                f"all stages but the first, {self.strides[1:]}."
            )
        if not 0 <= self.heads < stages - 1:
            raise UserError(
                f"a DynUNet of {stages} stages with {self.heads} heads for deep supervision; it "
                f"can have up to {stages - 2}."
            )
        _check_groups(self.groups, self.filters)

    @property
    def divisor(self) -> Triple:
        """What each edge of the input must be divisible by."""
        return torch_layers.total_stride(self.strides)

    def module(self) -> nn.Module:
        """Returns the network."""
        return DynUNet(self)

    @classmethod
    def of_unet(cls, like: unet.UNetConfig) -> "DynUNetConfig":
        """Returns a network of the widths, strides and kernels of a U-Net's levels.

        Raises:
            UserError: its blocks are not to have two convolutions, or it has too few stages.
        """
        if like.blocks != 2:
            raise UserError(
                f"model.blocks is {like.blocks}, but the blocks of a dynunet have two "
                "convolutions. Set --config.model.blocks=2."
            )
        return cls(
            kernels=like.level_kernels,
            strides=(_ONE, *like.level_strides),
            upsample_kernels=like.level_strides,
            filters=like.widths,
            out_channels=like.out_channels,
            # As the other families: none at the coarsest stage of the decoder.
            heads=max(len(like.widths) - 3, 0) if like.deep_supervision else 0,
            bfloat16=like.bfloat16,
            convolutions=like.convolutions,
        )


@dataclasses.dataclass(frozen=True)
class SegResNetConfig:
    """`SegResNet`; the number of input channels follows from the input.

    Attributes:
        init_filters: channels of the finest stage; each further one has twice as many.
        out_channels: of the logits.
        blocks_down: residual blocks of each stage of the encoder, finest first.
        blocks_up: of each stage of the decoder, coarsest first; one fewer.
        groups: of the group norms.
        upsample_mode: "nontrainable" (trilinear) or "deconv".
        bfloat16: see `unet.UNetConfig`.
        convolutions: likewise; those of another stride than 1 are XLA's own in any case.
    """

    init_filters: int
    out_channels: int
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    groups: int = 8
    upsample_mode: Literal["nontrainable", "deconv"] = "nontrainable"
    bfloat16: bool | None = None
    convolutions: unet.Convolutions = "auto"

    def __post_init__(self) -> None:
        """Raises UserError for a network that MONAI cannot have."""
        if len(self.blocks_down) != len(self.blocks_up) + 1 or not self.blocks_up:
            raise UserError(
                f"a SegResNet with blocks_down {self.blocks_down} and blocks_up {self.blocks_up}: "
                "give two or more stages down, and up one fewer."
            )
        if self.upsample_mode not in ("nontrainable", "deconv"):
            raise UserError(
                f"a SegResNet's upsample_mode is {self.upsample_mode!r}; nontrainable and deconv "
                "are supported."
            )
        if min(self.init_filters, *self.blocks_down) < 1:
            raise UserError(
                f"a SegResNet with init_filters {self.init_filters} and blocks_down "
                f"{self.blocks_down}; give at least 1."
            )
        _check_groups(self.groups, (self.init_filters,))

    @property
    def divisor(self) -> Triple:
        """What each edge of the input must be divisible by."""
        edge = 2 ** (len(self.blocks_down) - 1)
        return edge, edge, edge

    def module(self) -> nn.Module:
        """Returns the network."""
        return SegResNet(self)

    @classmethod
    def of_unet(cls, like: unet.UNetConfig) -> "SegResNetConfig":
        """Returns a network as deep as `like.widths`, which begins with as many channels.

        Raises:
            UserError: the widths do not double, deep supervision is requested, or its levels are
                not to halve every axis.
        """
        widths = like.widths
        if like.strides or like.kernels:
            raise UserError(
                f"its levels are to have the strides {like.level_strides} and the kernels "
                f"{like.level_kernels} (model.strides and model.kernels, or by data.spacing), but "
                "a segresnet halves every axis at every level. Choose another model.family, or "
                "one spacing for all axes."
            )
        if like.deep_supervision:
            raise UserError("model.deep_supervision is true, but a segresnet has one head only.")
        expected = tuple(widths[0] * 2**level for level in range(len(widths)))
        if widths != expected or widths[0] % cls.groups:
            raise UserError(
                f"model.widths is {widths}, but a segresnet begins with a multiple of {cls.groups} "
                f"and doubles, such as {tuple(8 * 2**level for level in range(len(widths)))}."
            )
        return cls(
            init_filters=widths[0],
            out_channels=like.out_channels,
            blocks_down=(like.blocks,) * len(widths),
            blocks_up=(1,) * (len(widths) - 1),
            bfloat16=like.bfloat16,
            convolutions=like.convolutions,
        )


def _check_groups(groups: int, widths: tuple[int, ...]) -> None:
    if groups and any(width % groups for width in widths):
        raise UserError(f"norms of {groups} groups do not divide stages of {widths} channels.")


class _DynBlock(nn.Module):
    """`UnetBasicBlock`, or `UnetResBlock` where `residual`."""

    config: DynUNetConfig
    features: int
    kernel: Triple
    stride: Triple = _ONE
    residual: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.config.slope
        y = self._norm("norm1", slope)(self._conv("conv1", self.kernel, self.stride)(x))
        y = self._conv("conv2", self.kernel)(y)
        if not self.residual:
            return self._norm("norm2", slope)(y)
        y = self._norm("norm2")(y)
        if x.shape[-1] != self.features or self.stride != _ONE:
            x = self._norm("norm3")(self._conv("conv3", _ONE, self.stride)(x))
        return torch_layers.leaky_relu(x + y, slope)

    def _conv(self, name: str, kernel: Triple, stride: Triple = _ONE) -> nn.Module:
        d, h, w = ((k - s + 1) // 2 for k, s in zip(kernel, stride, strict=True))
        options = unet.block_options(self.config)
        return torch_layers.Conv(
            self.features, kernel, stride, (d, h, w), bias=False, name=name, **options
        )

    def _norm(self, name: str, slope: float = 1.0) -> nn.Module:
        config, form = self.config, unet.block_options(self.config)["form"]
        affine = config.norm_affine
        return torch_layers.Norm(config.groups, affine=affine, slope=slope, form=form, name=name)


class DynUNet(nn.Module):
    """MONAI's dynamic U-Net: see `unet.UNet` for what it takes and returns."""

    config: DynUNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the network."""
        config, last = self.config, len(self.config.filters) - 1
        names = ["input_block", *(f"downsamples_{i}" for i in range(last - 1)), "bottleneck"]
        skips = []
        for level, name in enumerate(names):
            x = _DynBlock(
                config,
                config.filters[level],
                config.kernels[level],
                config.strides[level],
                config.res_block,
                name=name,
            )(x)
            skips.append(x)
        features = {"bottleneck": x}
        for level in reversed(range(last)):
            x = self._up(x, skips[level], level, f"upsamples_{last - 1 - level}")
            features[f"decoder_{level}"] = x
            if 0 < level <= config.heads:
                features[f"logits_{level}"] = self._head(x, f"heads_{level - 1}")
        return self._head(x, "output_block"), features

    def _up(self, x: Array, skip: Array, level: int, name: str) -> Array:
        config, features = self.config, self.config.filters[level]
        x = torch_layers.TransposedConv(
            features,
            config.upsample_kernels[level],
            config.trans_bias,
            dtype=unet.block_options(config)["dtype"],
            name=f"{name}_transp_conv",
        )(x)
        x = jnp.concatenate([x, skip], axis=-1)
        # The kernel of the stage below, as there.
        block = _DynBlock(config, features, config.kernels[level + 1], name=f"{name}_conv_block")
        return block(x)

    def _head(self, x: Array, name: str) -> Array:
        options = unet.block_options(self.config)
        conv = torch_layers.Conv(self.config.out_channels, _ONE, name=name, **options)
        return conv(x).astype(jnp.float32)


class _Segment(nn.Module):
    """What the parts of a SegResNet share."""

    config: SegResNetConfig

    def _conv(
        self, name: str, features: int, edge: int = 3, stride: int = 1, bias: bool = False
    ) -> torch_layers.Conv:
        return torch_layers.Conv(
            features,
            (edge, edge, edge),
            (stride, stride, stride),
            bias=bias,
            draw="torch",
            name=name,
            **unet.block_options(self.config),
        )

    def _norm(self, name: str) -> nn.Module:
        """Returns a norm with a ReLU."""
        return torch_layers.Norm(self.config.groups, slope=0.0, name=name)


class _ResBlock(_Segment):
    """Norm, ReLU and convolution twice, beside a skip (`ResBlock`)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        y = self._conv("conv1", features)(self._norm("norm1")(x))
        return x + self._conv("conv2", features)(self._norm("norm2")(y))


class SegResNet(_Segment):
    """MONAI's SegResNet without its autoencoder: see `unet.UNet` for what it takes and returns."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d h w m"]
    ) -> tuple[Float[Array, "b d h w k"], dict[str, Array]]:
        """Applies the network."""
        config, skips = self.config, []
        x = self._conv("init", config.init_filters)(x)
        for level, count in enumerate(config.blocks_down):
            if level:
                x = self._conv(f"down_{level}", config.init_filters * 2**level, stride=2)(x)
            for index in range(count):
                x = _ResBlock(config, name=f"encoder_{level}_{index}")(x)
            skips.append(x)
        features = {"bottleneck": x}
        for stage, count in enumerate(config.blocks_up):
            level = len(config.blocks_up) - 1 - stage
            x = self._up(x, config.init_filters * 2**level, stage) + skips[-2 - stage]
            for index in range(count):
                x = _ResBlock(config, name=f"decoder_{stage}_{index}")(x)
            features[f"decoder_{level}"] = x
        x = self._norm("final_norm")(x)
        logits = self._conv("final_conv", config.out_channels, edge=1, bias=True)(x)
        return logits.astype(jnp.float32), features

    def _up(self, x: Array, features: int, stage: int) -> Array:
        x = self._conv(f"up_{stage}", features, edge=1)(x)
        if self.config.upsample_mode == "nontrainable":
            return layers.upsample_trilinear(x)
        dtype, name = unet.block_options(self.config)["dtype"], f"deconv_{stage}"
        return torch_layers.TransposedConv(
            features, (2, 2, 2), draw="torch", dtype=dtype, name=name
        )(x)
