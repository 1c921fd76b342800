"""A JSON file whose every value is replaced by wrong ones, and read each time."""

import copy
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from kdnet_jax.errors import UserError

_WRONG = (None, 0, 1, -1.5, "x", "$x", [], [1], ["a", "b"], {}, {"a": 1}, True)


def try_all(
    file: pathlib.Path, read: Callable[[], Any], keys: frozenset[str] | None = None
) -> None:
    """Fails unless each file is read, or refused by a `UserError` that names a file beside it.

    Args:
        file: a good one.
        read: reads it.
        keys: of the file's object; `None` for all, and for another value than an object.
    """
    good = json.loads(file.read_text("utf-8"))
    read()
    refused = []
    for at in _places(good):
        if keys is not None and not (at and at[0] in keys):
            continue
        for new in _WRONG:
            file.write_text(json.dumps(_replaced(good, at, new)), "utf-8")
            try:
                read()
            except UserError as error:
                refused.append(str(error))
            except Exception as error:
                raise AssertionError(f"{file.name}: {at} = {new!r}") from error
    assert len(refused) > len(_WRONG)
    # A bundle's weights lie in a folder beside that of its configs.
    assert [words for words in refused if str(file.parent.parent) not in words] == []


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        # Of numbers and words the ends are enough: those between are read like them.
        nested = any(isinstance(each, dict | list) for each in value)
        keys = sorted(set(range(len(value)) if nested else (0, len(value) - 1))) if value else []
    else:
        return
    for key in keys:
        yield from _places(value[key], (*at, key))


def _replaced(value: Any, at: tuple, new: Any) -> Any:
    if not at:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return value
