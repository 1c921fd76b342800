"""Checker of array annotations that pytest's jaxtyping plugin applies to the whole package.

In pyproject.toml's `addopts`, `-p` imports it before any conftest.py, and `--jaxtyping-packages`
applies it to each function and to the `__init__` of each dataclass.
"""

import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks a function that takes or returns arrays; returns any other as it is.

    An int passes for a float. Options and settings are left to the package's own checks, whose
    UserError names the key.
    """
    hints = getattr(function, "__annotations__", {}).values()
    return _CHECK(function) if any(map(_has_array, hints)) else function


def _has_array(hint: Any) -> bool:
    """Whether the annotation is an array of jaxtyping, or holds one."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if isinstance(hint, type) and issubclass(hint, jaxtyping.PyTree):
        return _has_array(getattr(hint, "leaftype", None))
    parts = (p for arg in typing.get_args(hint) for p in (arg if isinstance(arg, list) else [arg]))
    return any(map(_has_array, parts))
