"""JSON files that somebody else may have written."""

import json
import os
import pathlib

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError


def read_json(path: str | os.PathLike[str]) -> typed.JsonValue:
    """Returns the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: str | os.PathLike[str]) -> typed.Json:
    """Returns the object that a JSON file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected an object.")
    return content


def tuples(value: typed.JsonValue) -> typed.JsonValue:
    """Returns a value with tuples in place of JSON's lists: what was written had no lists."""
    if isinstance(value, dict):
        return {key: tuples(each) for key, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value
