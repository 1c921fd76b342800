"""What a benchmark reports: its rows, in words and as JSON, with what is needed to repeat them."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kdnet_jax.errors import UserError

# Cores that other processes may use before the figures are called disturbed.
BUSY_CORES = 0.1
_PEERS = ("torch", "monai", "onednn-cpu-gomp")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the row.
        unit: of `ours` and `peer`.
        ours: median of our side.
        peer: median of the peer's, None where the goal is a figure of its own.
        ratio: ours / peer.
        goal: of `goal_of`; None for a row without one.
        goal_of: "ratio" or "ours".
        at_least: the goal is the least and not the most.
        met: whether it is.
        peer_name: what `peer` is.
        ours_all: every measurement of ours, in order.
        peer_all: every measurement of the peer's.
        other_cores: cores that other processes used meanwhile, on average.
        notes: what else a reader needs.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    goal: float | None
    goal_of: Literal["ratio", "ours"]
    at_least: bool
    met: bool | None
    peer_name: str | None
    ours_all: tuple[float, ...]
    peer_all: tuple[float, ...]
    other_cores: float
    notes: Mapping[str, Any]


def make_row(
    name: str,
    unit: str,
    goal: float | None,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    *,
    goal_of: Literal["ratio", "ours"] = "ratio",
    at_least: bool = False,
    peer_name: str | None = None,
    others: Sequence[float] = (),
    notes: Mapping[str, Any] | None = None,
) -> Row:
    """Returns the row of these measurements; see `Row`."""
    middle = statistics.median(ours)
    other = statistics.median(peer) if peer else None
    ratio = middle / other if other else None
    judged = ratio if goal_of == "ratio" else middle
    met = None
    if goal is not None and judged is not None:
        met = judged >= goal if at_least else judged <= goal
    return Row(
        name=name,
        unit=unit,
        ours=middle,
        peer=other,
        ratio=ratio,
        goal=goal,
        goal_of=goal_of,
        at_least=at_least,
        met=met,
        peer_name=peer_name,
        ours_all=tuple(ours),
        peer_all=tuple(peer),
        other_cores=statistics.fmean(others) if others else 0.0,
        notes=notes or {},
    )


def spread(values: Sequence[float]) -> str:
    """Returns such as "0.41 (0.40 to 0.45)": the median, least and most."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def text(row: Row) -> str:
    """Returns a row in words, for the terminal."""
    said = f"{row.name}: ours {spread(row.ours_all)} {row.unit}"
    if row.peer_all:
        said += f", {row.peer_name} {spread(row.peer_all)} {row.unit}, ratio {row.ratio:.2f}"
    if row.met is not None:
        limit = "at least" if row.at_least else "at most"
        said += f"; goal {row.goal_of} {limit} {row.goal:g}: {'met' if row.met else 'MISSED'}"
    if row.other_cores > BUSY_CORES:
        said += (
            f"\n  WARNING: other processes used {row.other_cores:.1f} cores meanwhile: repeat it "
            "on a quiet machine."
        )
    return said


def facts() -> dict[str, str]:
    """Returns what a reader needs to repeat a figure: see `provenance.collect`, and the peers."""
    # Here, so that a mistake in the flags is reported before JAX is loaded.
    from kdnet_jax.core import provenance

    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in _PEERS if name in installed}
    return provenance.collect() | versions | {"processor": _processor()}


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def to_json(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Returns a list of rows, each with what is needed to repeat it."""
    return json.dumps([dataclasses.asdict(row) | {"about": about} for row in rows], indent=1) + "\n"


def check_writable(path: str | None, flag: str) -> None:
    """Raises UserError if a file cannot be written at `path`; None is no file."""
    if path is None:
        return
    folder = pathlib.Path(path).absolute().parent
    if pathlib.Path(path).is_dir():
        raise UserError(f"{flag} is {path}, a folder: give the name of a file.")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        state = "cannot be written" if folder.is_dir() else "does not exist"
        raise UserError(f"{flag} is {path}, but the folder {folder} {state}.")
