"""JSON objects in other tools' files, with messages that name the file and the key."""

import math
from collections.abc import Mapping
from typing import Any, Final

from kdnet_jax.errors import UserError

# One edge of a voxel in mm, or three along the axes.
Spacing = float | tuple[float, float, float]

_NAMES: Final = {
    dict: "an object {...}",
    list: "a list [...]",
    str: 'a text "..."',
    int: "a whole number",
    bool: "true or false",
}


def need(content: Mapping[str, Any], key: str, where: object, kind: type = object) -> Any:
    """Returns the value of a key.

    Args:
        content: the object.
        key: of the value.
        where: the file and the key of the object, for messages.
        kind: what the value must be.

    Raises:
        UserError: there is none, or another than that.
    """
    if key not in content:
        raise UserError(
            f"{where}: {key!r} is missing (it holds {', '.join(map(str, content)) or 'nothing'})."
        )
    return expect(content[key], kind, f"{where}: {key}")


def expect(value: Any, kind: type, where: str) -> Any:
    """Returns a value that is of a kind.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, kind):
        raise UserError(f"{where} is {value!r}; expected {_NAMES[kind]}.")
    return value


def by_number(table: Any, where: str) -> list[str]:
    """Returns the values of {"0": ..., "1": ...} in the order of their numbers.

    Raises:
        UserError: it is no such table.
    """
    good = isinstance(table, Mapping) and sorted(map(str, table)) == sorted(
        map(str, range(len(table)))
    )
    if not good or not all(isinstance(value, str) for value in table.values()):
        raise UserError(f'{where} is {table!r}; expected {{"0": "name", "1": "name", ...}}.')
    return [value for _, value in sorted(table.items(), key=lambda item: int(item[0]))]


def edges(values: Any, where: str) -> tuple[int, int, int]:
    """Returns three positive edges.

    Raises:
        UserError: they are none.
    """
    good = isinstance(values, list | tuple) and len(values) == 3
    if not good or not all(type(value) is int and value > 0 for value in values):
        raise UserError(f"{where} is {values!r}; expected three positive whole numbers.")
    a, b, c = values
    return a, b, c


def spacing(values: Any, where: str) -> Spacing:
    """Returns the edges of a voxel, mm, from one number or three; one if they agree within 1 %.

    Raises:
        UserError: they are no lengths.
    """
    found = values if isinstance(values, list | tuple) else [values] * 3
    good = all(type(each) in (int, float) and 0 < each < math.inf for each in found)
    if len(found) != 3 or not good:
        raise UserError(
            f"{where} is {values!r}; expected the edge of a voxel in mm, or one for each axis."
        )
    if max(found) <= 1.01 * min(found):
        return round(sum(found) / 3, 6)
    a, b, c = (round(float(each), 6) for each in found)
    return a, b, c


def axes(letters: Any, where: str) -> str:
    """Returns the three letters to which axes grow.

    Raises:
        UserError: they are none.
    """
    # The line that each runs along: -1 for what is no such letter.
    lines = ["RLAPSI".find(letter) // 2 for letter in str(letters)]
    if sorted(lines) != [0, 1, 2]:
        raise UserError(f"{where} is {letters!r}; expected three letters such as 'RAS'.")
    return str(letters)


def share(value: Any, where: str) -> float:
    """Returns a number from 0 to below 1.

    Raises:
        UserError: it is none.
    """
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(f"{where} is {value!r}; expected a share from 0 to below 1.")
    return float(value)
