"""What tests know of a command that has run."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a command ended, what it said, and where it wrote."""

    code: int
    out: str
    err: str
    folder: pathlib.Path
