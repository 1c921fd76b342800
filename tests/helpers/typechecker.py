"""Checker of array annotations that pytest's jaxtyping plugin applies to the whole package.

In pyproject.toml's `addopts`, `-p` imports it before any conftest.py, and `--jaxtyping-packages`
applies it to each function and to the `__init__` of each dataclass. It imports no JAX, which would
then not see what conftest.py sets, and which the tests of metrics do without.
"""

import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping
import numpy as np

_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks a function that takes or returns arrays; returns any other as it is.

    An int passes for a float, and a NumPy array for JAX's, as in JAX's own functions. Options,
    settings and what users give to `kdnet_jax.api` are left to the package's own checks, whose
    UserError names the key.
    """
    hints = getattr(function, "__annotations__", {})
    if function.__module__ == "kdnet_jax.api" or not any(map(_has_array, hints.values())):
        return function
    # It is jaxtyping's own copy of the signature.
    function.__annotations__ = {name: _with_numpy(hint) for name, hint in hints.items()}
    return _CHECK(function)


def _with_numpy(hint: Any) -> Any:
    """Returns the annotation of a JAX array, or of a union with one, widened to NumPy's."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.Union[tuple(map(_with_numpy, typing.get_args(hint)))]  # noqa: UP007
    # Where JAX is not imported, no annotation is of its arrays.
    array = getattr(sys.modules.get("jax"), "Array", None)
    if array is None:
        return hint
    if hint is array:
        return array | np.ndarray
    if _is_array(hint) and hint.array_type is array:
        return hint.dtype[array | np.ndarray, hint.dim_str]
    return hint


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _has_array(hint: Any) -> bool:
    """Whether the annotation is an array of jaxtyping, or holds one."""
    if _is_array(hint):
        return True
    if "jax" in sys.modules and isinstance(hint, type) and issubclass(hint, jaxtyping.PyTree):
        return _has_array(getattr(hint, "leaftype", None))
    parts = (p for arg in typing.get_args(hint) for p in (arg if isinstance(arg, list) else [arg]))
    return any(map(_has_array, parts))
