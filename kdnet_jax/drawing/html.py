"""`report.html`: one self-contained page that says what was run and how well it did."""

import base64
import dataclasses
import hashlib
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Final

import jinja2
import markupsafe
from matplotlib import figure as mpl_figure

from kdnet_jax.core import files, typed
from kdnet_jax.drawing import figures, planes

_FOLDER: Final = pathlib.Path(__file__).parent
_TEMPLATE: Final = "report.html.jinja"
_STYLE: Final = "report.css"
_SCRIPT: Final = "viewer.js"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with the text for readers who cannot see it, and a caption."""

    figure: mpl_figure.Figure
    alt: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      caption: What it shows.
      header: The columns' names.
      rows: Cells. The first of a row is its heading; the second and further lines of a cell are
        drawn smaller; a row of one cell is a heading of those below it.
      note: What a reader must know to read it.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Link:
    """A file beside the page: its path relative to it, and what it is."""

    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a heading, sentences, tables and links, in this order."""

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    links: Sequence[Link] = ()


@dataclasses.dataclass(frozen=True)
class CaseView:
    """One case that the report shows.

    Attributes:
      rank: Why it is shown, such as "worst 1", "median" or "best".
      case_id: The case's id.
      picture: Its overlay.
      table: Its scores.
      slices: What `viewer.build` made of it; without it, the page shows the picture alone.
    """

    rank: str
    case_id: str
    picture: Picture
    table: Table
    slices: typed.JsonView | None = None

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.rank[:1].upper()}{self.rank[1:]}: {self.case_id}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of the page, in its order; every text is escaped.

    Attributes:
      title: The heading.
      summary: Sentences that give the result first.
      tables: The results in numbers.
      pictures: Curves and comparisons.
      sections: Further parts of the page.
      cases: Cases that are shown one by one.
      cases_note: What the cases show and how they were chosen.
      regions: Names of the regions in them, in the order of the task.
      noun: What the regions are parts of.
      facts: What was run: rows of key and value (role, data, split, seed, budget, device...).
      commands: Rows of purpose and command line.
      synthetic: Whether the data are the phantom's; the page then warns of it at the top.
    """

    title: str
    summary: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    sections: Sequence[Section] = ()
    cases: Sequence[CaseView] = ()
    cases_note: str = ""
    regions: Sequence[str] = ()
    noun: str = "foreground"
    facts: Sequence[tuple[str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()
    synthetic: bool = False


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Writes the page beside `path` and renames it; it loads nothing from elsewhere."""
    files.write_text(path, render(report))


def render(report: Report) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = figures.to_data_uri
    # Known before the picture is decoded: the page does not jump while it loads.
    environment.filters["pixels"] = figures.pixels
    # A folder's name may hold a space or "#"; a full address becomes a harmless file name.
    environment.filters["relative"] = lambda path: urllib.parse.quote(f"./{path}")
    script = _bundled(_SCRIPT)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        style=markupsafe.Markup(_bundled(_STYLE)),
        script=markupsafe.Markup(script),
        policy=_policy(script),
        looks=planes.looks(report.regions),
        has_slices=any(case.slices for case in report.cases),
    )


def _bundled(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _policy(script: str) -> str:
    """Returns what a browser allows the page: its own script and styles, no network at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
