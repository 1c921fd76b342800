"""Network classes of nnU-Net and MONAI, and the equivalent of each in this package."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from jaxtyping import Num, PyTree

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, nearest
from kdnet_jax.interop import (
    arguments,
    monai_arguments,
    monai_weights,
    nnunet_arguments,
    nnunet_weights,
)
from kdnet_jax.models import adapted, monai, nnunet


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of PyTorch and its counterpart.

    Attributes:
        name: of the class.
        module: where it is.
        config: the class of the raw config.
        channels: the argument that counts the input channels, and its default.
        read: a raw config of the other arguments.
        write: the arguments of a raw config and a number of input channels.
        weights: the module that turns weights into parameters and back.
    """

    name: str
    module: str
    config: type
    channels: tuple[str, int | None]
    read: Callable[[arguments.Arguments], adapted.RawConfig]
    write: Callable[..., typed.Json]
    weights: types.ModuleType


_DNA: Final = "dynamic_network_architectures.architectures.unet"
_NETS: Final = "monai.networks.nets"
# A config belongs to the first kind that it is an instance of.
KINDS: Final = (
    Kind(
        "ResidualEncoderUNet",
        _DNA,
        nnunet.ResidualEncoderConfig,
        ("input_channels", None),
        nnunet_arguments.read_residual,
        nnunet_arguments.write,
        nnunet_weights,
    ),
    Kind(
        "PlainConvUNet",
        _DNA,
        nnunet.PlainConvConfig,
        ("input_channels", None),
        nnunet_arguments.read_plain,
        nnunet_arguments.write,
        nnunet_weights,
    ),
    Kind(
        "DynUNet",
        _NETS,
        monai.DynUNetConfig,
        ("in_channels", None),
        monai_arguments.read_dynunet,
        monai_arguments.write_dynunet,
        monai_weights,
    ),
    Kind(
        "SegResNet",
        _NETS,
        monai.SegResNetConfig,
        ("in_channels", 1),
        monai_arguments.read_segresnet,
        monai_arguments.write_segresnet,
        monai_weights,
    ),
)


def of_class(name: str, where: str) -> Kind:
    """Returns the kind of a class by its name or full path.

    Raises:
        UserError: there is no such network here.
    """
    package, _, last = name.rpartition(".")
    known = {kind.name: kind for kind in KINDS}
    at_home = package.partition(".")[0] in ("", "monai", "dynamic_network_architectures")
    if last not in known or not at_home:
        raise UserError(
            f"{where} is {name!r}; the networks that can be read are {', '.join(sorted(known))} "
            f"of nnU-Net and MONAI{nearest(last, known)}"
        )
    return known[last]


def of_config(config: adapted.RawConfig) -> Kind:
    """Returns the kind of a raw config."""
    return next(kind for kind in KINDS if isinstance(config, kind.config))


def read(kind: Kind, given: typed.JsonView, where: str) -> tuple[adapted.RawConfig, int]:
    """Returns the raw config equivalent to a class's arguments, and its input channels.

    Args:
        kind: the class.
        given: its arguments by name.
        where: the file and key, for messages.

    Raises:
        UserError: an argument is missing, unknown, or makes a network that is not there.
    """
    found = arguments.Arguments(given, where)
    channels = found.take(*kind.channels)
    try:
        config = kind.read(found)
        hash(config)  # not of a list in the place of a number
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error
    except (TypeError, ValueError, LookupError) as error:
        raise UserError(f"{where}: not the arguments of a {kind.name} ({error}).") from error
    found.finish()
    for name, value in ((kind.channels[0], channels), ("output channels", config.out_channels)):
        if type(value) is not int or value < 1:
            found.refuse(name, value, "a whole number")
    return config, channels


def params(
    kind: Kind,
    config: adapted.RawConfig,
    state: Mapping[str, Num[np.ndarray, "..."]],
    channels: int,
    where: str,
) -> PyTree:
    """Returns the parameters {"params": ...} of a state dict.

    Args:
        kind: the class.
        config: the network.
        state: the state dict.
        channels: of the network's input.
        where: the file, for messages.

    Raises:
        UserError: the weights are not those of the network.
    """
    try:
        return kind.weights.from_torch(config, state, channels)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
