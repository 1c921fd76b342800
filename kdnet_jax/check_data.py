"""Reads every case of a folder and says what is there and what is wrong.

    python -m kdnet_jax.check_data --data_dir=DIR [--release=auto] [--output=FILE.csv]

Exits with 0 if every case can be used and with 2 if one cannot.
"""

import csv
import dataclasses
import io
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Final

import nibabel as nib
import numpy as np
import tqdm
from absl import flags

from kdnet_jax import cli, conventions
from kdnet_jax.data import cases, geometry, layouts, nifti, prepare
from kdnet_jax.errors import EXIT_USER_ERROR, UserError

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans.", required=True)
_RELEASE = flags.DEFINE_enum(
    "release",
    layouts.AUTO,
    [layouts.AUTO, *layouts.RELEASES],
    "Layout and labels; auto recognises them.",
)
_MODALITIES = flags.DEFINE_string(
    "modalities", ",".join(conventions.MODALITIES), "Sequences that every case must have."
)
_ORIENTATION = flags.DEFINE_string(
    "orientation", geometry.HEADER, "Of the stored axes, such as LPS, where the headers are wrong."
)
_LABEL_CONVENTION = flags.DEFINE_string(
    "label_convention", None, "Meaning of the label values; by default that of the release."
)
_ALLOW_SKULL = flags.DEFINE_bool("allow_skull", False, "Take scans that are not skull-stripped.")
_OUTPUT = flags.DEFINE_string("output", None, "CSV file for a row per case.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Cases read at once.", lower_bound=1)

TINY_ET_VOXELS: Final = 50  # BraTS 2023's lesion-wise scores ignore lesions of up to 50 voxels


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """A row of the table: what was found in a case, or why it cannot be used (`problem`).

    `grid` and `spacing_mm` (per stored axis) are those of the file; `ncr`, `ed`, `et` count voxels.
    """

    case: str
    patient: str
    grade: str = ""
    grid: str = ""
    spacing_mm: str = ""
    orientation: str = ""
    label_values: str = ""
    ncr: int | None = None
    ed: int | None = None
    et: int | None = None
    notes: str = ""
    problem: str = ""


def check_case(
    case: cases.Case, orientation: str = geometry.HEADER, allow_skull: bool = False
) -> CaseReport:
    """Reads one case as training would; a `UserError` becomes its `problem`."""
    report = CaseReport(case.case_id, case.patient_id, case.grade or "")
    try:
        prepared, notes = prepare.prepare_case(
            case, spacing=None, orientation=orientation, allow_skull=allow_skull
        )
        values = np.unique(nifti.read_labels(case.label).data) if case.label else []
    except UserError as error:
        return dataclasses.replace(report, problem=str(error))
    way = prepared.geometry
    voxels = np.bincount(prepared.reference.ravel(), minlength=4) if case.label else [0] * 4
    return dataclasses.replace(
        report,
        grid="x".join(map(str, way.shape)),
        spacing_mm="x".join(f"{mm:.3g}" for mm in nib.affines.voxel_sizes(way.affine)),
        orientation="".join(nib.aff2axcodes(way.affine)),
        label_values=" ".join(f"{value:g}" for value in values),
        notes="; ".join(notes),
        **dict(zip(("ncr", "ed", "et"), map(int, voxels[1:4]), strict=True)),
    )


def check_cases(
    found: Sequence[cases.Case],
    orientation: str = geometry.HEADER,
    *,
    allow_skull: bool = False,
    workers: int = 2,
) -> list[CaseReport]:
    """Reads all cases, `workers` at a time, with a progress bar; in the order of `found`."""
    with futures.ThreadPoolExecutor(workers) as pool:
        reports = pool.map(lambda case: check_case(case, orientation, allow_skull), found)
        return list(tqdm.tqdm(reports, total=len(found), desc="checking", unit="case"))


def odd_orientations(reports: Iterable[CaseReport]) -> dict[str, str]:
    """Returns case -> orientation of the cases whose header differs from that of most."""
    stated = {report.case: report.orientation for report in reports if report.orientation}
    if not stated:
        return {}
    usual, _ = Counter(stated.values()).most_common(1)[0]
    return {case: code for case, code in stated.items() if code != usual}


def summary(cohort: cases.Cohort, reports: Sequence[CaseReport]) -> str:
    """Returns the text that the command prints: notes, a table, and every problem by case."""
    usable = [report for report in reports if not report.problem]
    rows = {
        "release": cohort.release,
        "cases": f"{len(reports)}, usable {len(usable)}",
        "patients": str(len({report.patient for report in reports})),
        "grades": _counted(report.grade or "unknown" for report in reports),
        "grids": _counted(report.grid for report in usable),
        "spacings (mm)": _counted(report.spacing_mm for report in usable),
        "orientations": _counted(report.orientation for report in usable),
        "label values": _counted(report.label_values for report in usable),
        "without tumour": _named(r.case for r in usable if not (r.ncr or r.ed or r.et)),
        "without ET": _named(r.case for r in usable if not r.et),
        f"ET below {TINY_ET_VOXELS} voxels": _named(
            r.case for r in usable if r.et and r.et < TINY_ET_VOXELS
        ),
    }
    lines = [f"note: {note}" for note in cohort.notes]
    lines += [f"note: {report.notes}" for report in usable if report.notes]
    lines += ["", *(f"{name:<22}{text}" for name, text in rows.items()), ""]
    lines += [
        f"odd: {case}: its header says {code}, unlike most cases. If its voxels are stored like "
        "those of the others, the header is wrong: repair it, or set "
        "--config.data.orientation=LPS for all"
        for case, code in odd_orientations(reports).items()
    ]
    lines += [f"unusable: {report.case}: {report.problem}" for report in reports if report.problem]
    return "\n".join(lines)


def _counted(texts: Iterable[str]) -> str:
    return ", ".join(f"{text} ({count})" for text, count in Counter(texts).most_common())


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)}" + (f" ({', '.join(listed)})" if listed else "")


def write_csv(reports: Sequence[CaseReport], path: str | os.PathLike[str]) -> None:
    """Writes a row per case, beside the file and then renamed.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(CaseReport)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(report) for report in reports)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); see --output") from error


def main(argv: list[str]) -> None:
    """Checks the data that the flags name."""
    cli.refuse_arguments(argv)
    geometry.check_orientation(_ORIENTATION.value)
    cohort = cases.find_cases(
        _DATA_DIR.value,
        _RELEASE.value,
        conventions.read_modalities(_MODALITIES.value, "--modalities"),
        label_convention=_LABEL_CONVENTION.value,
    )
    reports = check_cases(
        cohort.cases,
        _ORIENTATION.value,
        allow_skull=_ALLOW_SKULL.value,
        workers=_WORKERS.value,
    )
    print(summary(cohort, reports))
    if _OUTPUT.value:
        write_csv(reports, _OUTPUT.value)
    if any(report.problem for report in reports):
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    cli.run(main)
