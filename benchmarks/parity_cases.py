"""Networks of nnU-Net and MONAI in settings where an implementation easily goes wrong."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from kdnet_jax.models import adapted, monai, nnunet, torch_layers

Triple = torch_layers.Triple
_ONE: Triple = (1, 1, 1)
_TWO: Triple = (2, 2, 2)
_FLAT: Triple = (1, 3, 3)
_CUBE: Triple = (3, 3, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and an input.

    Attributes:
        network: name of the PyTorch class.
        setting: what is special.
        config: the network.
        channels: of the input.
        edges: of the input, "d h w".
    """

    network: str
    setting: str
    config: adapted.RawConfig
    channels: int
    edges: Triple


def small() -> list[Case]:
    """Returns the cases that take a moment each."""
    return [*_nnunet(), *_dynunet(), *_segresnet()]


def real() -> list[Case]:
    """Returns the networks as people train them on BraTS, on a smaller window."""
    return list(_real())


def _unet(kind: Any, **changes: Any) -> Any:
    """A small network of nnU-Net's; a change of `features` needs one of all other stages."""
    options = {
        "features": (8, 16, 24),
        "kernels": (_CUBE,) * 3,
        "strides": (_ONE, _TWO, _TWO),
        "blocks": (2, 1, 2),
        "decoder_blocks": (2, 1),
        "out_channels": 4,
        "bfloat16": False,
    }
    return kind(**options | changes)


def _nnunet() -> Iterator[Case]:
    flat = {"kernels": (_FLAT, _FLAT, _CUBE), "strides": (_ONE, (1, 2, 2), _TWO)}
    plain = {"norm_affine": False, "norm_epsilon": 1e-3, "slope": 0.2, "conv_bias": False}
    wide = {"kernels": ((5, 5, 5), (3, 1, 5), _CUBE), "strides": (_ONE, (3, 1, 2), (1, 3, 2))}
    deep = {
        "features": (4, 6, 8, 8, 10),
        "kernels": (_CUBE,) * 5,
        "strides": (_ONE, _TWO, (2, 1, 2), _TWO, (1, 2, 2)),
        "blocks": (1, 2, 1, 1, 2),
        "decoder_blocks": (1, 2, 1, 1),
        "deep_supervision": True,
    }
    odd = {"kernels": (_FLAT,) * 3, "strides": (_ONE, (1, 2, 2), (1, 2, 2))}
    settings: list[tuple[str, dict[str, Any], int, Triple]] = [
        ("4 channels, kernels of 3", {}, 4, (16, 20, 24)),
        ("1 channel, kernels (1, 3, 3), strides (1, 2, 2)", flat, 1, (10, 12, 20)),
        ("2 channels, 5 slices, flat kernels and strides", odd, 2, (5, 12, 20)),
        ("kernels of 5 and (3, 1, 5), strides (3, 1, 2)", wide, 2, (9, 12, 16)),
        ("no biases, no scales, another epsilon and slope", plain, 1, (8, 12, 8)),
        ("5 stages, deep supervision", deep, 4, (16, 16, 32)),
    ]
    kinds = (
        ("PlainConvUNet", nnunet.PlainConvConfig),
        ("ResidualEncoderUNet", nnunet.ResidualEncoderConfig),
    )
    for name, kind in kinds:
        for setting, changes, channels, edges in settings:
            yield Case(name, setting, _unet(kind, **changes), channels, edges)
    same = _unet(nnunet.ResidualEncoderConfig, features=(8, 8, 8), stem_features=6)
    yield Case("ResidualEncoderUNet", "stem of 6, then equal widths", same, 2, (8, 12, 16))


def _dynunet() -> Iterator[Case]:
    def config(**changes: Any) -> monai.DynUNetConfig:
        options = {
            "kernels": (_CUBE,) * 4,
            "strides": (_ONE, _TWO, _TWO, _TWO),
            "filters": (8, 12, 16, 20),
            "out_channels": 3,
            "bfloat16": False,
        } | changes
        return monai.DynUNetConfig(upsample_kernels=options["strides"][1:], **options)

    flat = {
        "kernels": (_FLAT, _FLAT, (3, 1, 3), _CUBE),
        "strides": (_ONE, (1, 2, 2), (2, 2, 1), (1, 2, 2)),
    }
    grouped = {"groups": 4, "trans_bias": True, "slope": 0.0}
    settings: list[tuple[str, dict[str, Any], int, Triple]] = [
        ("instance norms", {}, 4, (16, 16, 24)),
        ("1 channel, (1, 3, 3) and (3, 1, 3), strides (1, 2, 2)", flat, 1, (6, 16, 12)),
        ("2 channels, group norms, bias of up, ReLU", grouped, 2, (8, 16, 16)),
        ("residual, 2 heads", {"res_block": True, "heads": 2}, 4, (16, 16, 8)),
        (
            "residual, flat, 1 head, 5 slices",
            flat
            | {
                "res_block": True,
                "heads": 1,
                "strides": (_ONE, (1, 2, 2), (1, 2, 1), (1, 2, 2)),
            },
            1,
            (5, 16, 12),
        ),
        ("residual, first stage and input of 8 channels", {"res_block": True}, 8, (8, 8, 16)),
        (
            "residual, equal widths, one stride of 1, no scales",
            {
                "res_block": True,
                "filters": (8,) * 4,
                "strides": (_ONE, _TWO, _ONE, _TWO),
                "norm_affine": False,
            },
            2,
            (8, 8, 12),
        ),
    ]
    for setting, changes, channels, edges in settings:
        yield Case("DynUNet", setting, config(**changes), channels, edges)


def _segresnet() -> Iterator[Case]:
    def config(**changes: Any) -> monai.SegResNetConfig:
        return monai.SegResNetConfig(8, 3, bfloat16=False, **changes)

    short: dict[str, Any] = {"blocks_down": (1, 2), "blocks_up": (2,), "groups": 4}
    yield Case("SegResNet", "4 channels", config(), 4, (16, 24, 32))
    yield Case("SegResNet", "2 channels, deconv", config(upsample_mode="deconv"), 2, (8, 16, 24))
    yield Case("SegResNet", "1 channel, 2 stages, 4 groups", config(**short), 1, (6, 10, 14))


def _real() -> Iterator[Case]:
    edges: Triple = (64, 64, 64)
    stages = {
        "features": (32, 64, 128, 256, 320, 320),
        "kernels": (_CUBE,) * 6,
        "strides": (_ONE, *(_TWO,) * 5),
        "out_channels": 3,
        "deep_supervision": True,
        "bfloat16": False,
    }
    plain = nnunet.PlainConvConfig(blocks=(2,) * 6, decoder_blocks=(2,) * 5, **stages)
    yield Case("PlainConvUNet", "nnU-Net's 3d_fullres for BraTS", plain, 4, edges)
    blocks = (1, 3, 4, 6, 6, 6)
    residual = nnunet.ResidualEncoderConfig(blocks=blocks, decoder_blocks=(1,) * 5, **stages)
    yield Case("ResidualEncoderUNet", "nnU-Net's ResEnc M for BraTS", residual, 4, edges)
    dynunet = monai.DynUNetConfig(
        kernels=stages["kernels"],
        strides=stages["strides"],
        upsample_kernels=stages["strides"][1:],
        filters=(32, 64, 128, 256, 320, 320),
        out_channels=3,
        res_block=True,
        heads=3,
        bfloat16=False,
    )
    yield Case("DynUNet", "6 stages, residual, 3 heads", dynunet, 4, edges)
    segresnet = monai.SegResNetConfig(16, 3, bfloat16=False)
    yield Case("SegResNet", "MONAI's bundle brats_mri_segmentation", segresnet, 4, edges)
