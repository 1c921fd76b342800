"""Summary of a collection for `check_data`: a table, and every problem in one line."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import nibabel as nib
from nibabel import affines

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import case_checks, problems
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import counted, first_few

NOT_STATED: Final = "not stated"  # the orientation of a header that says nothing of it
TINY_VOXELS: Final = 50  # BraTS 2023's lesion-wise scores ignore lesions of up to 50 voxels
_LISTED_EACH: Final = 5  # problems of one text that are printed one by one


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """A row of the table: what was found in a case.

    `grid` and `spacing_mm` (per stored axis) are those of the file; `voxels` counts those of each
    class but the background. `notes` are the warnings, `problem` the errors.
    """

    case: str
    patient: str
    grade: str = ""
    grid: str = ""
    spacing_mm: str = ""
    orientation: str = ""
    label_values: str = ""
    voxels: tuple[int, ...] | None = None
    notes: str = ""
    problem: str = ""


def describe(reading: case_checks.Reading, task: task_lib.Task) -> CaseReport:
    """Returns the row of a case, as far as its files could be read."""
    case, classes, affine = reading.case, reading.classes, reading.affine
    report = CaseReport(case.case_id, case.patient_id, case.grade or "")
    if affine is None:
        return report
    numbers = range(1, len(task.classes))
    counts = None if classes is None else tuple(int((classes == k).sum()) for k in numbers)
    return dataclasses.replace(
        report,
        grid="x".join(map(str, reading.shape or ())),
        spacing_mm="x".join(f"{mm:.3g}" for mm in affines.voxel_sizes(affine)),
        orientation="".join(nib.aff2axcodes(affine))
        if reading.space and reading.space.is_known
        else NOT_STATED,
        label_values=" ".join(f"{value:g}" for value in reading.label_values),
        voxels=counts,
    )


def table(
    reports: Sequence[CaseReport], task: task_lib.Task
) -> tuple[list[str], list[tuple[object, ...]]]:
    """Returns the columns and rows of a CSV file; each class has a column, in lower case."""
    names = [field.name for field in dataclasses.fields(CaseReport)]
    place = names.index("voxels")
    classes = [name.lower() for name in task.classes[1:]]
    rows = []
    for report in reports:
        row = [getattr(report, name) for name in names]
        row[place : place + 1] = report.voxels or [None] * len(classes)
        rows.append(tuple(row))
    return [*names[:place], *classes, *names[place + 1 :]], rows


def with_problems(
    reports: Sequence[CaseReport], rows: Sequence[problems.Problem]
) -> list[CaseReport]:
    """Fills in the notes and the problem of each row."""

    def findings(case: str, severity: str) -> str:
        own = [row for row in rows if row.case == case and row.severity == severity]
        return "; ".join(dict.fromkeys(f"{row.file}: {row.finding}" for row in own))

    return [
        dataclasses.replace(
            report,
            notes=findings(report.case, problems.WARNING),
            problem=findings(report.case, problems.ERROR),
        )
        for report in reports
    ]


def summary(
    cohort: cases.Cohort,
    reports: Sequence[CaseReport],
    rows: Sequence[problems.Problem],
    task: task_lib.Task = task_lib.DEFAULT,
) -> str:
    """Returns the text that the command prints: notes, a table, and every problem."""
    bad = {row.case for row in rows if row.severity == problems.ERROR}
    labelled = [report for report in reports if report.voxels is not None]
    lines = {
        "release": cohort.release,
        "cases": f"{len(reports)}, without error {sum(r.case not in bad for r in reports)}",
        "patients": str(len({report.patient for report in reports})),
        "grades": _counted(report.grade or "unknown" for report in reports),
        "grids": _counted(report.grid for report in reports),
        "spacings (mm)": _counted(report.spacing_mm for report in reports),
        "orientations": _counted(report.orientation for report in reports),
        "label values": _counted(report.label_values for report in labelled),
        f"without {task.noun}": _named(r.case for r in labelled if not any(r.voxels or ())),
        **_of_regions(labelled, task),
    }
    text = [f"note: {note}" for note in cohort.notes]
    width = max(22, 2 + max(map(len, lines)))
    text += ["", *(f"{name:<{width}}{value}" for name, value in lines.items()), ""]
    return "\n".join([*text, *_listed(rows), _verdict(rows)])


def _of_regions(labelled: Sequence[CaseReport], task: task_lib.Task) -> dict[str, str]:
    """Names the cases without a region, and those in which it may be too small to be true."""
    doubtful = [region for region in task.regions if region.fallback is not None]
    lines = {}
    for region in doubtful or (task.regions if len(task.regions) > 1 else ()):
        counts = [
            (r.case, sum(r.voxels[k - 1] for k in region.members)) for r in labelled if r.voxels
        ]
        lines[f"without {region.name}"] = _named(case for case, count in counts if not count)
        if region in doubtful:
            lines[f"{region.name} below {TINY_VOXELS} voxels"] = _named(
                case for case, count in counts if 0 < count < TINY_VOXELS
            )
    return lines


def _counted(texts: Iterable[str]) -> str:
    counts = Counter(text or "not readable" for text in texts)
    return ", ".join(f"{text} ({count})" for text, count in counts.most_common())


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)}" + (f" ({', '.join(listed)})" if listed else "")


def _listed(rows: Sequence[problems.Problem]) -> list[str]:
    """Returns the problems, errors first; what many cases share is reported once."""
    groups: dict[tuple[str, str, str], list[problems.Problem]] = {}
    for row in sorted(rows, key=lambda row: row.severity != problems.ERROR):
        groups.setdefault((row.severity, row.finding, row.remedy), []).append(row)
    lines = []
    for (severity, finding, remedy), members in groups.items():
        if len(members) > _LISTED_EACH:
            # Several files of a case may share it.
            names = list(dict.fromkeys(row.case for row in members))
            count = f"{counted(len(names), 'case')} ({first_few(names)})"
            lines.append(f"{severity}: {count}: {finding}. {remedy}")
        else:
            lines += [_line(row) for row in members]
    return lines


def _line(row: problems.Problem) -> str:
    case = f"{row.case}: " if row.case else ""
    return f"{row.severity}: {case}{row.file}: {row.finding}. {row.remedy}"


def _verdict(rows: Sequence[problems.Problem]) -> str:
    errors = [row for row in rows if row.severity == problems.ERROR]
    warnings = f"{len(rows) - len(errors)} to look at (warnings)"
    return f"\n{counted(len(errors), 'problem')} to fix (errors), {warnings}."
