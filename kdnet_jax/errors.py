"""The exception for mistakes that the user can fix, and how a command reports it."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

_Choice = TypeVar("_Choice", bound=str)

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in files, flags or settings.

    The message is one plain text: which file or key, what was found, what was expected, what to
    do. Commands print it on standard error without a traceback and exit with 2.
    """


class UnknownLayoutError(UserError):
    """A folder of scans in which no layout is recognised."""


def nearest(name: str, known: Iterable[str], meaning: Mapping[str, str] | None = None) -> str:
    """Returns "; did you mean 'x'?" for the known name closest to `name`, else an empty text.

    Args:
        name: what was given.
        known: what could have been.
        meaning: the name that is shown in the place of a known one, if it is another.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    shown = [(meaning or {}).get(match, match) for match in matches]
    return f"; did you mean {shown[0]!r}?" if shown else ""


def first_few(texts: Sequence[str], most: int = 5) -> str:
    """Returns the first texts with commas between them, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def counted(number: int, noun: str) -> str:
    """Returns "1 case" or "2 cases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_choice(key: str, value: object, choices: Iterable[_Choice]) -> _Choice:
    """Returns the value of `key`; raises UserError unless it is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise UserError(
            f"{key} is {value!r}: choose one of {', '.join(choices)}{nearest(str(value), choices)}"
        )
    return choices[choices.index(value)]


def exit_on_user_error(command: Callable[[], object]) -> None:
    """Runs a command; a `UserError` becomes its message on standard error and exit code 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
