"""Arguments that a file gives for a class: each is read once, and an unread one is refused."""

from collections.abc import Mapping
from typing import NoReturn

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

Triples = tuple[tuple[int, int, int], ...]


class Arguments:
    """The arguments of a class, each to be taken once; what is left at the end is not known."""

    def __init__(self, given: typed.JsonView, where: str) -> None:
        self._left = dict(given)
        self._where = where

    def take(self, name: str, default: object = None) -> typed.JsonValue:
        """Returns an argument's value, and counts it as understood."""
        return self._left.pop(name, default)

    def need(self, name: str) -> typed.JsonValue:
        """Returns the value of an argument that has no default."""
        if name not in self._left:
            raise UserError(f"{self._where}: {name} is missing.")
        return self._left.pop(name)

    def expect(self, name: str, default: object, *allowed: object) -> None:
        """Takes an argument that must have one of these values."""
        value = self.take(name, default)
        if value not in allowed:
            self.refuse(name, value, " or ".join(map(repr, allowed)))

    def refuse(self, name: str, value: object, expected: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(
            f"{self._where}: {name} is {value!r}; only {expected} can be read here. A network with "
            "it has no counterpart in kdnet_jax."
        )

    def inside(self, name: str, values: object) -> "Arguments":
        """Returns arguments that are the value of one of these; none of them where it is null."""
        given = values or {}
        if not isinstance(given, Mapping):
            self.refuse(name, values, "arguments by name")
        return Arguments(given, f"{self._where}.{name}")

    def finish(self) -> None:
        """Raises UserError if an argument was not taken."""
        if self._left:
            raise UserError(
                f"{self._where}: {', '.join(map(repr, self._left))} not known, so the network "
                "is unknown. It may be of a newer version of the tool."
            )

    # ---------------------------------------------------------------- values of several forms

    def numbers(self, name: str, value: object, count: int) -> tuple[int, ...]:
        """Returns one number per stage, of a list or of one number for all."""
        found = [value] * count if isinstance(value, int) else _integers(value)
        if len(found) != count:
            self.refuse(name, value, f"{count} whole numbers")
        return tuple(found)

    def triples(self, name: str, value: object, count: int | None = None) -> Triples:
        """Returns one edge per axis and stage; a number counts for all axes, or all stages."""
        given = [value] * count if isinstance(value, int) and count else value
        found = [
            [each] * 3 if isinstance(each, int) else _integers(each)
            for each in (given if isinstance(given, list | tuple) else [None])
        ]
        if any(len(each) != 3 for each in found) or (count is not None and len(found) != count):
            self.refuse(name, value, f"{count or 'as many'} edges of three axes")
        return tuple(typed.triple(each) for each in found)

    def named(self, name: str, default: object) -> tuple[str, typed.Json]:
        """Returns MONAI's word for a layer in small letters, and its arguments."""
        value: object = self.take(name, default)
        parts = [value] if isinstance(value, str) else value
        word, *options = parts if isinstance(parts, list | tuple) and parts else [None]
        given = options[0] if options else {}
        if not isinstance(word, str) or not isinstance(given, dict):
            self.refuse(name, value, "a name, or a name with arguments")
        return word.lower(), dict(given)


def _integers(value: object) -> list[int]:
    """Returns a list of whole numbers as it is, and no number for anything else."""
    given = value if isinstance(value, list | tuple) else ()
    found = [each for each in given if type(each) is int]
    return found if len(found) == len(given) else []
