"""JSON objects in other tools' files, with messages that name the file and the key."""

import math
from collections.abc import Mapping
from typing import Final, TypeVar

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

_T = TypeVar("_T")

# One edge of a voxel in mm, or three along the axes.
Spacing = float | tuple[float, float, float]

_NAMES: Final = {
    dict: "an object {...}",
    list: "a list [...]",
    str: 'a text "..."',
    int: "a whole number",
    bool: "true or false",
}


def need(content: typed.JsonView, key: str, where: object, kind: type[_T]) -> _T:
    """Returns the value of a key.

    Args:
        content: the object.
        key: of the value.
        where: the file and the key of the object, for messages.
        kind: what the value must be.

    Raises:
        UserError: it is missing, or another value.
    """
    if key not in content:
        raise UserError(
            f"{where}: {key!r} is missing (it holds {', '.join(map(str, content)) or 'nothing'})."
        )
    return expect(content[key], kind, f"{where}: {key}")


def expect(value: object, kind: type[_T], where: str) -> _T:
    """Returns a value that is of a kind.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, kind):
        raise UserError(f"{where} is {value!r}; expected {_NAMES[kind]}.")
    return value


def by_number(table: object, where: str) -> list[str]:
    """Returns the values of {"0": ..., "1": ...} in the order of their numbers.

    Raises:
        UserError: it is no such table.
    """
    given = {str(key): value for key, value in table.items()} if isinstance(table, Mapping) else {}
    names = [given.get(str(number)) for number in range(len(given))]
    texts = [name for name in names if isinstance(name, str)]
    if not isinstance(table, Mapping) or len(texts) < len(names):
        raise UserError(f'{where} is {table!r}; expected {{"0": "name", "1": "name", ...}}.')
    return texts


def edges(values: object, where: str) -> tuple[int, int, int]:
    """Returns three positive edges.

    Raises:
        UserError: they are none.
    """
    given = values if isinstance(values, list | tuple) else ()
    found = [value for value in given if type(value) is int and value > 0]
    if len(given) != 3 or len(found) != 3:
        raise UserError(f"{where} is {values!r}; expected three positive whole numbers.")
    return typed.triple(found)


def spacing(values: object, where: str) -> Spacing:
    """Returns the edges of a voxel, mm, from one number or three; one if they agree within 1 %.

    Raises:
        UserError: they are no lengths.
    """
    given = values if isinstance(values, list | tuple) else [values] * 3
    numbers = [float(each) for each in given if type(each) is int or type(each) is float]
    found = [each for each in numbers if 0 < each < math.inf]
    if len(given) != 3 or len(found) != 3:
        raise UserError(
            f"{where} is {values!r}; expected the edge of a voxel in mm, or one for each axis."
        )
    if max(found) <= 1.01 * min(found):
        return round(sum(found) / 3, 6)
    return typed.triple(round(each, 6) for each in found)


def axes(letters: object, where: str) -> str:
    """Returns the three letters to which axes grow.

    Raises:
        UserError: they are none.
    """
    # The line that each runs along: -1 for what is no such letter.
    lines = ["RLAPSI".find(letter) // 2 for letter in str(letters)]
    if sorted(lines) != [0, 1, 2]:
        raise UserError(f"{where} is {letters!r}; expected three letters such as 'RAS'.")
    return str(letters)


def share(value: object, where: str) -> float:
    """Returns a number from 0 to below 1.

    Raises:
        UserError: it is none.
    """
    if not (type(value) is int or type(value) is float) or not 0 <= value < 1:
        raise UserError(f"{where} is {value!r}; expected a share from 0 to below 1.")
    return float(value)
