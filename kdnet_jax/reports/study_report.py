"""The report of a study: the verdict, the comparison behind it, and the way to every run."""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

from kdnet_jax.drawing import html
from kdnet_jax.evaluation import comparison
from kdnet_jax.reports import comparison_figures, comparison_text, run_report

FILE = run_report.FILE
COMPARISON, POSTPROCESSED = "comparison", "comparison_postprocessed"


def write(
    folder: pathlib.Path,
    sides: Mapping[str, Sequence[pathlib.Path]],
    *,
    noun: str,
    facts: Sequence[tuple[str, str]],
    synthetic: bool,
) -> tuple[pathlib.Path, list[str]]:
    """Compares the roles of a study, without and with post-processing, and writes its report.

    Args:
        folder: the study's folder.
        sides: the finished runs of "teacher", "baseline" and "student".
        noun: what the regions are parts of.
        facts: rows of key and value on what was run.
        synthetic: say that the cases are phantoms.

    Returns:
        The report's path, and the verdict without post-processing in sentences. Tables and figures
        lie beside the report as files, in `comparison/` and `comparison_postprocessed/`.
    """
    runs = (sides["baseline"], sides["student"], sides["teacher"])
    plain = comparison.compare(*runs)
    processed = comparison.compare(*runs, postprocessed=True)
    for compared, name in ((plain, COMPARISON), (processed, POSTPROCESSED)):
        comparison_text.write(compared, folder / name)
        comparison_figures.write(compared, folder / name)
    verdict = comparison_text.verdict(plain)
    report = html.Report(
        title="KD-Net study: teacher, baseline and student",
        summary=verdict,
        tables=[_table(plain, "Without post-processing")],
        pictures=_pictures(plain, noun),
        sections=[
            html.Section(
                "With post-processing",
                sentences=comparison_text.verdict(processed),
                tables=[_table(processed, "With post-processing")],
            ),
            html.Section(
                "The runs",
                sentences=["Each run has a report of its own, with its worst cases."],
                links=[link(folder, run) for role in sides for run in sides[role]],
            ),
        ],
        facts=facts,
        commands=[("Repeat this study", dict(facts)["command"])],
        synthetic=synthetic,
    )
    html.write_report(folder / FILE, report)
    return folder / FILE, verdict


def _table(compared: comparison.Comparison, caption: str) -> html.Table:
    """Returns the comparison's table, with the metric as a heading instead of a column."""
    header, rows = comparison_text.rows(compared)
    grouped: list[Sequence[str]] = []
    for metric, own in itertools.groupby(rows, key=lambda row: row[0]):
        # Intervals below their means: the table is wide.
        cells = ([cell.replace(" [", "\n[") for cell in row[1:]] for row in own)
        grouped += [[metric], *cells]
    return html.Table(caption, header[1:], grouped, " ".join(comparison_text.legend(compared)))


def _pictures(compared: comparison.Comparison, noun: str) -> list[html.Picture]:
    return [
        html.Picture(
            comparison_figures.slope(compared),
            "Dice of each case with the baseline and with the student, joined by a line",
            "Each line is a case, its score averaged over the seeds.",
        ),
        html.Picture(
            comparison_figures.by_volume(compared),
            f"Difference student minus baseline of each case against the volume of its {noun}",
            "Difference per case against the volume of the region in the reference.",
        ),
        html.Picture(
            comparison_figures.cumulative(compared),
            "Share of cases with Dice above x, and share with HD95 below x",
            "How many cases are better than x: with Dice above it, with HD95 below it.",
        ),
    ]


def link(folder: pathlib.Path, run: pathlib.Path) -> html.Link:
    """Returns the link from a study's page to a run's."""
    path = os.path.relpath(run / run_report.FILE, folder)
    return html.Link(path, os.path.relpath(run, folder))
