"""Types that many modules share."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

# What a JSON file of this project holds: nested values, known by their keys.
Json = dict[str, Any]
JsonView = Mapping[str, Any]
# Any value that JSON can hold.
JsonValue = Any

# A `jax.Device`, which type checkers take for a variable.
Device = Any

_T = TypeVar("_T")


def triple(values: Iterable[_T]) -> tuple[_T, _T, _T]:
    """Returns three values, as of the three axes of a volume."""
    first, second, third = values
    return first, second, third
