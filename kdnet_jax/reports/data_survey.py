"""One pass over the cases of a cohort: rows, problems and the contact sheet of `check_data`."""

import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Final

import numpy as np
from jaxtyping import Shaped
from matplotlib import figure as mpl_figure

from kdnet_jax import task as task_lib
from kdnet_jax.core import console, files
from kdnet_jax.data.checks import case_checks, cohort_checks, problems
from kdnet_jax.data.scans import geometry
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from kdnet_jax.reports import contact_sheet, data_summary

SHEET_CASES: Final = 24  # on the contact sheet


def check_cases(
    found: Sequence[cases.Case],
    orientation: str = geometry.HEADER,
    *,
    allow_skull: bool = False,
    workers: int = 2,
    task: task_lib.Task = task_lib.DEFAULT,
) -> tuple[list[data_summary.CaseReport], list[problems.Problem]]:
    """Reads all cases, `workers` at a time, with a progress bar.

    Returns:
        A row per case in the order of `found`, and the problems of the files and of the cases
        beside each other. The rows do not have the problems yet (see `data_summary.with_problems`).
    """

    def check(
        case: cases.Case,
    ) -> tuple[data_summary.CaseReport, list[problems.Problem], cohort_checks.Content]:
        reading = case_checks.read_case(case, orientation, allow_skull, task=task)
        content = case_checks.content(reading, orientation, task=task)
        return data_summary.describe(reading, task), reading.problems, content

    with futures.ThreadPoolExecutor(workers) as pool:
        checked = list(console.bar(pool.map(check, found), "checking", len(found), unit="case"))
    reports = [report for report, _, _ in checked]
    rows = list(itertools.chain.from_iterable(own for _, own, _ in checked))
    rows += cohort_checks.doubled([content for _, _, content in checked], task=task)
    return reports, rows + _odd_orientations(reports, found, orientation)


def _odd_orientations(
    reports: Sequence[data_summary.CaseReport], found: Sequence[cases.Case], orientation: str
) -> list[problems.Problem]:
    """Returns a warning for each case whose header is not that of most, unless it is overridden."""
    if orientation != geometry.HEADER:
        return []
    unsaid = data_summary.NOT_STATED
    stated = ["" if r.orientation == unsaid else r.orientation for r in reports]
    return [
        problems.Problem(
            found[place].case_id,
            str(case_checks.folder_of(found[place])),
            problems.WARNING,
            f"its header says {stated[place]}, most cases have {usual}",
            "Look at it in a viewer. If its voxels are stored like those of the others, the header "
            "is wrong: repair it, or set --orientation for all (--config.data.orientation)",
        )
        for place, usual in cohort_checks.odd_orientations(stated).items()
    ]


def sheet(
    found: Sequence[cases.Case],
    rows: Sequence[problems.Problem],
    title: str,
    orientation: str = geometry.HEADER,
    workers: int = 2,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> mpl_figure.Figure:
    """Reads up to `SHEET_CASES` cases again, those with errors and warnings first; draws them."""
    own = {case.case_id: [row for row in rows if row.case == case.case_id] for case in found}
    ranks = {"error": 0, "warning": 1, "": 2}
    ordered = sorted(found, key=lambda case: ranks[_worst(own[case.case_id])])[:SHEET_CASES]

    def draw(case: cases.Case) -> contact_sheet.Row:
        reading = case_checks.read_case(case, orientation, True, task=task)
        return _sheet_row(reading, own[case.case_id], orientation, task)

    with futures.ThreadPoolExecutor(workers) as pool:
        drawn = list(console.bar(pool.map(draw, ordered), "drawing", len(ordered), unit="case"))
    names = [name for name in task.modalities if any(name in c.images for c in found)]
    return contact_sheet.draw(drawn, names, len(found), title, task=task)


def _worst(rows: Iterable[problems.Problem]) -> str:
    return min((row.severity for row in rows), default="")  # "error" sorts before "warning"


def _sheet_row(
    reading: case_checks.Reading,
    rows: Sequence[problems.Problem],
    orientation: str,
    task: task_lib.Task,
) -> contact_sheet.Row:
    affine = np.eye(4) if reading.affine is None else reading.affine

    def spl(volume: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "d h w"]:
        return geometry.orient(volume, affine, orientation)

    return contact_sheet.make_row(
        reading.case.case_id,
        _worst(rows),
        [_short(row) for row in sorted(rows, key=lambda row: row.severity)],
        {name: spl(volume) for name, volume in reading.scores.items()},
        None if reading.classes is None else spl(reading.classes),
        geometry.spacing_spl(affine, orientation),
        task=task,
    )


def _short(row: problems.Problem) -> str:
    """Returns the finding, with the file's name where it is not that of the case's folder."""
    name = pathlib.Path(row.file).name
    return row.finding if name == row.case else f"{name}: {row.finding}"


def write_csv(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    path: str | os.PathLike[str],
    flag: str,
) -> None:
    """Writes a table, beside the file and then renamed; `flag` is named in messages.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        files.write_text(path, files.csv_text(columns, rows))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); see {flag}") from error
