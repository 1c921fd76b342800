"""The arguments of MONAI's network classes as raw network configs, and back."""

from typing import Final

from kdnet_jax.core import typed
from kdnet_jax.interop import arguments
from kdnet_jax.models import monai

_EPSILON: Final = 1e-5  # PyTorch's default of all norms


def read_dynunet(given: arguments.Arguments) -> monai.DynUNetConfig:
    """Returns the config equivalent to a DynUNet's arguments."""
    given.expect("spatial_dims", None, 3)
    given.take("dropout")  # without effect once trained
    strides = given.triples("strides", given.need("strides"))
    stages = len(strides)
    if strides[0] != (1, 1, 1):
        given.refuse("strides", list(strides), "strides that begin with 1")
    norm, options = given.named("norm_name", ("instance", {"affine": True}))
    groups, affine = _norm("norm_name", norm, options, given)
    heads = given.take("deep_supr_num", 1)
    filters = given.take("filters") or [min(2 ** (5 + i), 320) for i in range(stages)]
    return monai.DynUNetConfig(
        kernels=given.triples("kernel_size", given.need("kernel_size"), stages),
        strides=strides,
        upsample_kernels=given.triples(
            "upsample_kernel_size", given.need("upsample_kernel_size"), stages - 1
        ),
        # MONAI takes a list that is too long, and leaves its end.
        filters=given.numbers("filters", list(filters)[:stages], stages),
        out_channels=given.need("out_channels"),
        groups=groups,
        norm_affine=affine,
        slope=_slope(given),
        res_block=bool(given.take("res_block", False)),
        trans_bias=bool(given.take("trans_bias", False)),
        heads=heads if given.take("deep_supervision", False) else 0,
    )


def _norm(key: str, name: str, options: typed.Json, given: arguments.Arguments) -> tuple[int, bool]:
    """Returns the groups, 0 for an instance norm, and whether there are scales."""
    rest = given.inside(key, options)
    if name not in ("instance", "group"):
        given.refuse(key, name, "'instance' or 'group'")
    rest.expect("eps", _EPSILON, _EPSILON)
    groups = rest.need("num_groups") if name == "group" else 0
    affine = bool(rest.take("affine", name == "group"))  # as PyTorch's own defaults
    rest.finish()
    return groups, affine


def _slope(given: arguments.Arguments) -> float:
    name, options = given.named("act_name", ("leakyrelu", {"negative_slope": 0.01}))
    if name not in ("leakyrelu", "relu"):
        given.refuse("act_name", name, "'leakyrelu' or 'relu'")
    return float(options.get("negative_slope", 0.01)) if name == "leakyrelu" else 0.0


def read_segresnet(given: arguments.Arguments) -> monai.SegResNetConfig:
    """Returns the config equivalent to a SegResNet's arguments."""
    given.expect("spatial_dims", 3, 3)
    given.expect("use_conv_final", True, True)
    given.take("dropout_prob")  # without effect once trained
    active, _ = given.named("act", "relu")
    if active != "relu":
        given.refuse("act", active, "'relu'")
    # The older words for it.
    old = given.take("norm_name", "")
    groups_before = given.take("num_groups", 8)
    norm, options = given.named("norm", ("group", {"num_groups": 8}))
    if old:
        norm, options = str(old).lower(), {"num_groups": groups_before}
    groups, affine = _norm("norm", norm, options, given)
    mode = str(given.take("upsample_mode", "nontrainable")).lower()
    if norm != "group" or not affine:
        given.refuse("norm", norm, "a group norm with scales")
    if mode not in ("nontrainable", "deconv"):
        given.refuse("upsample_mode", mode, "'nontrainable' or 'deconv'")
    down, up = given.take("blocks_down", (1, 2, 2, 4)), given.take("blocks_up", (1, 1, 1))
    return monai.SegResNetConfig(
        init_filters=given.take("init_filters", 8),
        out_channels=given.take("out_channels", 2),
        blocks_down=given.numbers("blocks_down", down, len(down)),
        blocks_up=given.numbers("blocks_up", up, len(down) - 1),
        groups=groups,
        upsample_mode=mode,
    )


def write_dynunet(config: monai.DynUNetConfig, channels: int) -> typed.Json:
    """Returns the arguments that make a network of `channels` input channels."""
    norm = {"affine": config.norm_affine}
    return {
        "spatial_dims": 3,
        "in_channels": channels,
        "out_channels": config.out_channels,
        "kernel_size": [list(each) for each in config.kernels],
        "strides": [list(each) for each in config.strides],
        "upsample_kernel_size": [list(each) for each in config.upsample_kernels],
        "filters": list(config.filters),
        "norm_name": ["group", {"num_groups": config.groups} | norm]
        if config.groups
        else ["instance", norm],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": config.slope}],
        "deep_supervision": bool(config.heads),
        "deep_supr_num": config.heads or 1,
        "res_block": config.res_block,
        "trans_bias": config.trans_bias,
    }


def write_segresnet(config: monai.SegResNetConfig, channels: int) -> typed.Json:
    """Returns the arguments that make a network of `channels` input channels."""
    return {
        "spatial_dims": 3,
        "init_filters": config.init_filters,
        "in_channels": channels,
        "out_channels": config.out_channels,
        "norm": ["group", {"num_groups": config.groups}],
        "blocks_down": list(config.blocks_down),
        "blocks_up": list(config.blocks_up),
        "upsample_mode": config.upsample_mode,
    }
