"""Kinds of values: what a key of a config accepts, and how a value that it refuses is reported."""

import dataclasses
import math
from typing import Protocol, runtime_checkable

from kdnet_jax.errors import UserError, check_choice


@runtime_checkable
class Kind(Protocol):
    """What a value must be."""

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind."""
        ...

    @property
    def words(self) -> str:
        """What to give."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind; true and false are no numbers."""
        return type(value) is int and self.low <= value <= self.high

    @property
    def words(self) -> str:
        """What to give."""
        return f"a whole number from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, perhaps without one of these themselves."""

    low: float
    high: float
    without_low: bool = False
    without_high: bool = False

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind; NaN is not."""
        if not (type(value) is int or type(value) is float) or not self.low <= value <= self.high:
            return False
        at_end = (self.without_low and value == self.low) or (
            self.without_high and value == self.high
        )
        return math.isfinite(value) and not at_end

    @property
    def words(self) -> str:
        """What to give."""
        start = "above" if self.without_low else "from"
        end = "to below" if self.without_high else "to"
        return f"a number {start} {self.low:g} {end} {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Several:
    """So many values of one kind."""

    kind: Kind
    least: int
    most: int

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind."""
        if not isinstance(value, (tuple, list)) or not self.least <= len(value) <= self.most:
            return False
        return all(map(self.kind.fits, value))

    @property
    def words(self) -> str:
        """What to give."""
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{count} values with commas, each {self.kind.words}"


@dataclasses.dataclass(frozen=True)
class OneOr:
    """One value, or several of its kind."""

    several: Several

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind."""
        return self.several.kind.fits(value) or self.several.fits(value)

    @property
    def words(self) -> str:
        """What to give."""
        return f"{self.several.kind.words}, or {self.several.words}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text."""

    words: str = "a text"

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind; no file's name holds a NUL."""
        return isinstance(value, str) and "\0" not in value


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several names."""

    names: tuple[str, ...]

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind."""
        return value in self.names

    @property
    def words(self) -> str:
        """What to give."""
        return ", ".join(self.names)


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or false."""

    words: str = "true or false"

    def fits(self, value: object) -> bool:
        """Says whether a value is of this kind."""
        return isinstance(value, bool)


def check(key: str, value: object, kind: Kind) -> None:
    """Raises UserError for the value of a key that is not of its kind."""
    if isinstance(kind, Choice):
        check_choice(key, value, kind.names)
    elif not kind.fits(value):
        raise UserError(f"{key} is {value!r:.80}: give {kind.words}.")
