"""The arguments that a file gives for a class, each taken once and none left over."""

from collections.abc import Mapping
from typing import Any

from kdnet_jax.errors import UserError

Triples = tuple[tuple[int, int, int], ...]


class Arguments:
    """The arguments of a class, each to be taken once; what is left at the end is not known."""

    def __init__(self, given: Mapping[str, Any], where: str) -> None:
        self._left = dict(given)
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        """Returns an argument's value, and counts it as understood."""
        return self._left.pop(name, default)

    def need(self, name: str) -> Any:
        """Returns the value of an argument that has no default."""
        if name not in self._left:
            raise UserError(f"{self._where}: {name} is missing.")
        return self._left.pop(name)

    def expect(self, name: str, default: Any, *allowed: Any) -> None:
        """Takes an argument that must have one of these values."""
        value = self.take(name, default)
        if value not in allowed:
            self.refuse(name, value, " or ".join(map(repr, allowed)))

    def refuse(self, name: str, value: Any, expected: str) -> None:
        """Raises UserError."""
        raise UserError(
            f"{self._where}: {name} is {value!r}; only {expected} can be read here. A network with "
            "it has no counterpart in kdnet_jax."
        )

    def inside(self, name: str, values: Any) -> "Arguments":
        """Returns arguments that are the value of one of these; none of them where it is null."""
        if not isinstance(values or {}, Mapping):
            self.refuse(name, values, "arguments by name")
        return Arguments(values or {}, f"{self._where}.{name}")

    def finish(self) -> None:
        """Raises UserError if an argument was not taken."""
        if self._left:
            raise UserError(
                f"{self._where}: {', '.join(map(repr, self._left))} not known, so the network "
                "cannot be told. It may be of a newer version of the tool."
            )

    # ---------------------------------------------------------------- values of several forms

    def numbers(self, name: str, value: Any, count: int) -> tuple[int, ...]:
        """Returns one number per stage, of a list or of one number for all."""
        found = (value,) * count if isinstance(value, int) else value
        if not _is_list(found, int) or len(found) != count:
            self.refuse(name, value, f"{count} whole numbers")
        return tuple(found)

    def triples(self, name: str, value: Any, count: int | None = None) -> Triples:
        """Returns one edge per axis and stage; a number counts for all axes, or all stages."""
        found = [value] * count if isinstance(value, int) and count else value
        if isinstance(found, list | tuple):
            found = [[each] * 3 if isinstance(each, int) else each for each in found]
        good = isinstance(found, list | tuple) and all(
            _is_list(each, int) and len(each) == 3 for each in found
        )
        if not good or (count is not None and len(found) != count):
            self.refuse(name, value, f"{count or 'as many'} edges of three axes")
        return tuple((a, b, c) for a, b, c in found)

    def named(self, name: str, default: Any) -> tuple[str, dict[str, Any]]:
        """Returns MONAI's word for a layer in small letters, and its arguments."""
        value = self.take(name, default)
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not parts or not isinstance(parts[0], str):
            self.refuse(name, value, "a name, or a name with arguments")
        return parts[0].lower(), dict(parts[1]) if len(parts) > 1 else {}


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(each) is kind for each in value)
