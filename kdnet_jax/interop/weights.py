"""Parameters between this project's trees and PyTorch's state dicts, by one table for both ways.

NumPy arrays on both sides: PyTorch is not needed.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Num, PyTree

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, first_few
from kdnet_jax.models import adapted

State = Mapping[str, Num[np.ndarray, "..."]]
Layout = Literal["conv", "transposed", "vector"]
# The axes of PyTorch's array that become ours: "d h w in out".
_AXES: dict[Layout, tuple[int, ...]] = {
    "conv": (2, 3, 4, 1, 0),
    "transposed": (2, 3, 4, 0, 1),
    "vector": (0,),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array.

    Attributes:
        path: in our tree, under "params", joined by "/".
        names: in the state dict, which may hold it several times.
        layout: how its axes lie.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout


def convolution(
    path: str, names: Sequence[str], *, bias: bool, layout: Layout = "conv"
) -> list[Entry]:
    """Returns the entries of a convolution whose module has these names."""
    found = [Entry(f"{path}/kernel", tuple(f"{name}.weight" for name in names), layout)]
    if bias:
        found.append(Entry(f"{path}/bias", tuple(f"{name}.bias" for name in names), "vector"))
    return found


def norm(path: str, names: Sequence[str], *, affine: bool = True) -> list[Entry]:
    """Returns the entries of a norm whose module has these names."""
    if not affine:
        return []
    return [
        Entry(f"{path}/{ours}", tuple(f"{name}.{theirs}" for name in names), "vector")
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ]


def from_torch(
    config: adapted.RawConfig, entries: Iterable[Entry], state: State, channels: int
) -> PyTree:
    """Returns our parameters from a state dict.

    An array that the state dict could hold several times may also be there once, as a file without
    shared arrays has it.

    Args:
        config: the network.
        entries: what it consists of.
        state: the state dict.
        channels: of the network's input.

    Raises:
        UserError: an array is missing, surplus, of another shape, not finite, or a duplicate
            that differs.
    """
    entries = list(entries)
    _check_names(entries, state)
    expected = _shapes(config, channels)
    flat = {}
    for entry in entries:
        arrays = {name: np.asarray(state[name]) for name in entry.names if name in state}
        for name, array in arrays.items():
            _check(name, array, entry, expected[entry.path].shape, channels)
        found = _only(arrays)
        flat[entry.path] = found.transpose(_AXES[entry.layout]).astype(np.float32)
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def to_torch(entries: Iterable[Entry], params: PyTree) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns the state dict from our parameters."""
    flat, state = traverse_util.flatten_dict(params["params"], sep="/"), {}
    for entry in entries:
        axes = np.argsort(_AXES[entry.layout])
        array = np.ascontiguousarray(np.asarray(flat[entry.path], np.float32).transpose(axes))
        state.update(dict.fromkeys(entry.names, array))
    return state


def _check_names(entries: Sequence[Entry], state: State) -> None:
    missing = [each.names[0] for each in entries if not any(name in state for name in each.names)]
    surplus = sorted(set(state) - {name for entry in entries for name in entry.names})
    if missing or surplus:
        found = [f"lack {first_few(missing, 3)}"] * bool(missing)
        found += [f"have {first_few(surplus, 3)}, which it does not"] * bool(surplus)
        raise UserError(
            f"the weights are not of the network that is described: they {' and '.join(found)}."
        )


@functools.lru_cache(maxsize=4)  # The members of an ensemble are one network.
def _shapes(config: adapted.RawConfig, channels: int) -> typed.Json:
    """Returns the shapes of our arrays by their paths."""
    x = jax.ShapeDtypeStruct((1, *config.divisor, channels), np.float32)
    tree = jax.eval_shape(config.module().init, jax.random.key(0), x)
    return traverse_util.flatten_dict(tree["params"], sep="/")


def _check(
    name: str, array: Num[np.ndarray, "..."], entry: Entry, shape: Sequence[int], channels: int
) -> None:
    inverse = np.argsort(_AXES[entry.layout])
    wanted = tuple(shape[axis] for axis in inverse)
    if array.shape != wanted:
        raise UserError(
            f"the weights {name} have the shape {array.shape}, expected {wanted}: they are not of "
            f"the network that is described, which sees {channels} sequences."
        )
    if not np.isfinite(array).all():
        raise UserError(f"the weights {name} hold NaN or infinity.")


def _only(arrays: State) -> Num[np.ndarray, "..."]:
    """Returns the array that has all these names."""
    (first, found), *others = arrays.items()
    for name, array in others:
        if not np.array_equal(array, found):
            raise UserError(
                f"the weights {first} and {name} are one array of the network, but differ: the "
                "file is damaged, or was put together from two."
            )
    return found
