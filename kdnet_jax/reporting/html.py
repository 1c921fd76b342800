"""`report.html`: one self-contained page that says what was run and how well it did."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from matplotlib import figure as mpl_figure

from kdnet_jax import conventions
from kdnet_jax.metrics import surface
from kdnet_jax.reporting import figures

_TEMPLATE: Final = "report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with the text for readers who cannot see it, and a caption."""

    figure: mpl_figure.Figure
    alt: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class CaseView:
    """One case that the report shows.

    Attributes:
      rank: "best", "median" or "worst".
      case_id: The case's id.
      picture: Its overlay.
      facts: Rows of key and value, such as ("Dice ET", "0.812").
    """

    rank: str
    case_id: str
    picture: Picture
    facts: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of the page; every text is escaped.

    Attributes:
      title: The heading.
      summary: Sentences that give the result first.
      facts: What was run: rows of key and value (role, data, split, seed, budget, device...).
      runs: Summaries of `cases.summarise` by the run's name, in the order of the table's rows.
      pictures: Curves and comparisons.
      cases: Cases that are shown one by one.
      commands: Rows of purpose and command line.
      notes: Further sentences that a reader must know.
      synthetic: Whether the data are the phantom's; the page then warns of it at the top.
      tolerance_mm: The tolerance of NSD that `runs` were scored with.
    """

    title: str
    summary: Sequence[str]
    facts: Sequence[tuple[str, str]]
    runs: Mapping[str, Mapping[str, Any]]
    pictures: Sequence[Picture] = ()
    cases: Sequence[CaseView] = ()
    commands: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    synthetic: bool = False
    tolerance_mm: float = surface.DEFAULT_TOLERANCE_MM


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Writes the page beside `path` and renames it; it loads nothing from elsewhere."""
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".part")
    beside.write_text(render(report), encoding="utf-8")
    os.replace(beside, path)


def render(report: Report) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["data_uri"] = figures.to_data_uri
    return environment.get_template(_TEMPLATE).render(
        report=report, regions=conventions.REGIONS, penalty=surface.EMPTY_PENALTY_MM
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
