"""One thing that is wrong with data, and what to do with it: refuse at once, or collect."""

import dataclasses
import re
from collections.abc import Callable
from typing import Final

from kdnet_jax.errors import UserError

# Training refuses the case, or its scores would be wrong; or somebody should look at it.
ERROR: Final = "error"
WARNING: Final = "warning"
_SENTENCE_END: Final = re.compile(r"\.\s(?=[A-Z])")
_REMEDY: Final = "Repair the file, or remove the case"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A row of the list of problems.

    Attributes:
        case: the case id; empty where the folder as a whole is meant.
        file: the file or folder.
        severity: `ERROR` or `WARNING`.
        finding: what was found and what was expected.
        remedy: what to do.
    """

    case: str
    file: str
    severity: str
    finding: str
    remedy: str


# Called with an error, and the case and the file or folder that it is about.
Report = Callable[[UserError, str, object], None]


def refuse(error: UserError, case: str, file: object) -> None:
    """The `Report` of training: the first problem ends it."""
    del case, file  # The message names them.
    raise error


def from_error(error: UserError, case: str, file: object) -> Problem:
    """Returns the error as a row: its last sentences, from the second on, are the remedy."""
    text = str(error).removeprefix(f"{file}: ")
    finding, *rest = _SENTENCE_END.split(text, maxsplit=1)
    return Problem(case, str(file), ERROR, finding.rstrip("."), rest[0] if rest else _REMEDY)
