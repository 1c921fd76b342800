"""Every kind of network behind one interface: the project's own U-Net, and those of other tools."""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from kdnet_jax.core import documents, typed
from kdnet_jax.errors import UserError
from kdnet_jax.models import adapted, mean, monai, nnunet, unet
from kdnet_jax.parallel import sharding

N = TypeVar("N")

Network = unet.UNetConfig | adapted.AdaptedConfig | mean.MeanConfig
UNET = "unet"
# The networks of other tools, each by the name of its class.
FAMILIES: dict[str, type[adapted.RawConfig]] = {
    "plain_conv_unet": nnunet.PlainConvConfig,
    "residual_encoder_unet": nnunet.ResidualEncoderConfig,
    "dynunet": monai.DynUNetConfig,
    "segresnet": monai.SegResNetConfig,
}
# Layers of logits, of all kinds of networks.
_HEAD = re.compile(r"\['(heads?(_\d+)?|output_block|final_conv)'\]")
# Choices that only `unet.UNetConfig` has; `last_blocks`, which presets set, is not asked for.
_OWN_KEYS = ("down", "up", "remat")


def check_patch(patch: Sequence[int], config: Network, key: str) -> None:
    """Raises UserError if the network cannot halve `patch` (voxels, d h w) at every level."""
    if len(patch) != 3 or any(edge < 1 for edge in patch):
        raise UserError(f"{key} is {tuple(patch)}: give three positive edges, such as 64,64,64.")
    if not divides(config.divisor, patch):
        which = "every edge" if len(set(config.divisor)) == 1 else "its edges"
        raise UserError(
            f"{key} is {tuple(patch)}, but the network downsamples it, so {which} must be "
            f"divisible by {in_words(config.divisor)}. Set "
            f"--config.{key}={fitting(config.divisor, patch)}, or fewer levels in "
            "--config.model.widths."
        )


def divides(divisor: Sequence[int], patch: Sequence[int]) -> bool:
    """Returns whether each edge of a patch is divisible by what a network needs."""
    return not any(edge % unit for edge, unit in zip(patch, divisor, strict=True))


def in_words(divisor: Sequence[int]) -> str:
    """Returns what the edges of a patch must be divisible by: one number, or one for each."""
    return str(divisor[0]) if len(set(divisor)) == 1 else ", ".join(map(str, divisor))


def fitting(divisor: Sequence[int], patch: Sequence[int]) -> str:
    """Returns the smallest larger patch that is divisible, as a flag's value."""
    return ",".join(map(str, rounded_up(divisor, patch)))


def rounded_up(divisor: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """Returns the smallest patch that holds a patch and is divisible."""
    d, h, w = (-(-edge // unit) * unit for edge, unit in zip(patch, divisor, strict=True))
    return d, h, w


def init_params(config: Network, modalities: int, key: jax.Array) -> PyTree:
    """Returns new parameters for an input of `modalities` channels."""
    # Twice: instance norm needs more than one voxel where the network is coarsest.
    edges = [2 * unit for unit in config.divisor]
    x = jnp.zeros((1, *edges, modalities), jnp.float32)
    return jax.jit(config.module().init)(key, x)


def planned(
    network: unet.UNetConfig, spacing: Sequence[float] | None, patch: Sequence[int]
) -> unet.UNetConfig:
    """Returns the network with the strides and kernels that voxels of different edges call for.

    Those that are given stay. Where the edges are equal, or each scan keeps its own, every level
    halves every axis.

    Args:
        network: the project's own, or what `of_family` makes another tool's of.
        spacing: edges of the working voxel, "d h w" in mm; `None`: each scan's own.
        patch: a training patch, "d h w" in voxels.

    Raises:
        UserError: the patch is too small for so many levels.
    """
    if spacing is None or len(set(spacing)) == 1 or network.strides or network.kernels:
        return network
    strides, kernels = unet.plan(spacing, patch, len(network.widths))
    chosen = dataclasses.replace(network, strides=strides, kernels=kernels)
    plain = (network.level_strides, network.level_kernels)
    return network if (strides, kernels) == plain else chosen


def family(config: Network) -> str:
    """Returns the name of a network's kind."""
    if isinstance(config, unet.UNetConfig):
        return UNET
    if isinstance(config, mean.MeanConfig):
        return "mean of " + ", ".join(map(family, config.members))
    return next(name for name, kind in FAMILIES.items() if type(config.network) is kind)


def of_family(name: str, like: unet.UNetConfig) -> adapted.AdaptedConfig:
    """Returns a network of another tool's kind, to be trained in this project's conventions.

    Args:
        name: of `FAMILIES`.
        like: its widths, blocks, strides, kernels, head, output channels and how it computes.

    Raises:
        UserError: there is no such network.
    """
    for key in _OWN_KEYS:
        value, default = getattr(like, key), getattr(unet.UNetConfig(), key)
        if value != default:
            raise UserError(
                f"model.{key} is {value}, which is a choice of the unet's: a {name} has its own "
                f"way. Set --config.model.{key}={default}."
            )
    try:
        network = FAMILIES[name].of_unet(like)
    except UserError as error:
        raise UserError(
            f"model.family is {name} and model.widths is {like.widths}: {error}"
        ) from error
    return adapted.AdaptedConfig(network, like.head, tuple(range(like.out_channels)))


def function(config: Network) -> sharding.Apply:
    """Returns what computes a network's logits and features from its parameters and an input."""
    # Flax does not know what a module returns.
    return typing.cast(sharding.Apply, config.module().apply)


def splits_depth(config: Network) -> bool:
    """Returns whether devices can share the depth of its input; layers must fetch their halos."""
    return isinstance(config, unet.UNetConfig)


def check_space(space: int, config: Network, key: str) -> None:
    """Raises UserError if `space` devices (the value of `key`) cannot share a network's depth."""
    if space > 1 and not splits_depth(config):
        raise UserError(
            f"{key} is {space}, but only the project's own U-Net can be split along its depth; "
            f"this network is a {family(config)}. Set it to 1."
        )


def feature_shapes(
    config: Network, modalities: int, patch: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Returns "d h w c" of each of the features for a patch, by name."""
    x = jax.ShapeDtypeStruct((1, *patch, modalities), jnp.float32)
    (_, features), _ = jax.eval_shape(config.module().init_with_output, jax.random.key(0), x)
    return {name: each.shape[1:] for name, each in features.items()}


def is_head(path: str) -> bool:
    """Returns whether an array, by its path in the parameters, makes logits of features."""
    return _HEAD.search(path) is not None


def native(config: Network) -> Network:
    """Returns the same network with XLA's own convolutions."""
    return computed(config, convolutions="native")


def portable(config: Network) -> Network:
    """Returns the same network in float32 and XLA's own convolutions, for any backend."""
    return computed(config, convolutions="native", bfloat16=False)


def computed(config: Network, **how: str | bool) -> Network:
    """Returns the same network with other `convolutions` or `bfloat16`, see `unet.UNetConfig`."""
    if isinstance(config, unet.UNetConfig):
        return dataclasses.replace(config, **how)
    if isinstance(config, mean.MeanConfig):
        return dataclasses.replace(
            config, members=tuple(computed(each, **how) for each in config.members)
        )
    return dataclasses.replace(config, network=dataclasses.replace(config.network, **how))


def to_json(config: Network) -> typed.Json:
    """Returns a network as JSON: its kind under "family", and its fields."""
    return {"family": family(config)} | dataclasses.asdict(config)


def from_json(values: typed.JsonView) -> Network:
    """Returns the network that `to_json` wrote.

    Raises:
        UserError: it is of no kind that is known here.
        TypeError: its fields are not those of its kind.
    """
    fields = {key: documents.tuples(value) for key, value in values.items() if key != "family"}
    kind = values.get("family")
    if kind == UNET:
        return _make(unet.UNetConfig, fields)
    if kind not in FAMILIES:
        raise UserError(
            f"a network of the kind {kind!r}; known are {', '.join((UNET, *FAMILIES))}. It may be "
            "of a newer version of kdnet_jax."
        )
    inner = fields.pop("network")
    if not isinstance(inner, dict):
        raise UserError(f"the network is {inner!r:.80}; expected its fields by their names.")
    network = _make(FAMILIES[kind], inner)
    return _make(adapted.AdaptedConfig, fields, network=network)


def _make(kind: Callable[..., N], fields: typed.JsonView, **others: object) -> N:
    """Returns an instance of a dataclass, of fields whose types are checked and others."""
    hints = typing.get_type_hints(kind)
    for name, value in fields.items():
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"the network's {name} is {value!r:.80}, which none can have.")
    return kind(**fields, **others)


def _fits(value: object, hint: object) -> bool:
    """Returns whether a value is of an annotated type; of numbers, none below 0."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if typing.get_origin(hint) is typing.Literal:
        return value in args
    if args:  # a union
        return any(_fits(value, each) for each in args)
    if hint in (int, float):
        return type(value) is hint and 0 <= value < math.inf
    return type(value) is hint
