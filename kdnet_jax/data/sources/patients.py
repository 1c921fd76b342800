"""Patients and grades of cases, as far as names and tables hold them."""

import csv
import dataclasses
import pathlib
import re
from typing import TYPE_CHECKING, Final

from kdnet_jax import task as task_lib
from kdnet_jax.data.sources import labels, layouts, own_layouts
from kdnet_jax.errors import UserError, first_few

_WITH_VISITS: Final = re.compile(
    r"(sub-[0-9a-z]+|UCSF-PDGM-\d+|UPENN-GBM-\d+|TCGA-\w{2}-\w{4}|RHUH-\d+|PatientID_\d+)"
    r"(?![0-9a-z])",
    re.IGNORECASE,
)

if TYPE_CHECKING:
    from kdnet_jax.data.sources.cases import Case


def with_patients(
    found: list["Case"],
    release: str,
    root: pathlib.Path,
    notes: list[str],
    *,
    task: task_lib.Task,
) -> list["Case"]:
    """Fills in the patient and the grade, as far as names and tables hold them."""
    if release == "user" or not labels.is_brats(task):
        return _from_patients_csv(found, root, notes, task)
    grades = _name_mapping(found, release, root) if release in layouts.NAMES else {}
    changed = []
    for case in found:
        patient = patient_of(case.case_id)
        grade = grades.get(case.case_id) or _folder_grade(case, root)
        changed.append(dataclasses.replace(case, patient_id=patient, grade=grade))
    return changed


def patient_of(case_id: str) -> str:
    """Returns the patient that a case's name holds, without the visit, or the whole name.

    Known are BraTS 2023, BIDS, and the public sets in whose names a date or visit follows.
    """
    match = layouts.NAMES["brats2023"].fullmatch(case_id)
    if match:
        return case_id[: match.end("patient")]
    match = _WITH_VISITS.match(case_id)
    return match[0] if match else case_id


def _folder_grade(case: "Case", root: pathlib.Path) -> str | None:
    folders = (root.name, *case_files(case)[0].parent.relative_to(root).parts)
    return next((part.upper() for part in folders if part.upper() in layouts.GRADES), None)


def _name_mapping(found: list["Case"], release: str, root: pathlib.Path) -> dict[str, str]:
    """Returns case id -> grade of name_mapping.csv, which lies among the cases or above them."""
    above = {path.parents[1] for case in found for path in case_files(case)[:1]}
    column = f"BraTS_{release.removeprefix('brats')}_subject_ID"
    grades = {}
    for folder in sorted({root, root.parent, *above}):
        path = folder / "name_mapping.csv"
        if path.is_file():
            rows = _read_csv(path)
            grades |= {row.get(column, ""): row.get("Grade", "").upper() for row in rows}
    return {case_id: grade for case_id, grade in grades.items() if grade in layouts.GRADES}


def _from_patients_csv(
    found: list["Case"], root: pathlib.Path, notes: list[str], task: task_lib.Task
) -> list["Case"]:
    path = root / "patients.csv"
    if not path.is_file():
        visits = {case.case_id: _of_visit(case) for case in found}
        changed = [
            dataclasses.replace(case, patient_id=visits[case.case_id] or patient_of(case.case_id))
            for case in found
        ]
        of_visits = [f"{case_id} is of {patient}" for case_id, patient in visits.items() if patient]
        if of_visits:
            notes.append(
                "folders within a patient's are taken as visits, the folder above as the patient: "
                f"{first_few(of_visits)}; {path} can say otherwise"
            )
        alone = [case.case_id for case in changed if case.patient_id == case.case_id]
        if alone:
            who = "every case" if len(alone) == len(found) else first_few(alone)
            notes.append(
                f"{who} is taken as a patient of its own; if patients have several cases, say so "
                f"in {path} (columns case_id, patient_id, grade)"
            )
        return changed
    rows = {row.get("case_id", ""): row for row in _read_csv(path)}
    missing = [case.case_id for case in found if not rows.get(case.case_id, {}).get("patient_id")]
    if missing:
        raise UserError(
            f"{path}: no patient for {first_few(missing)}; expected a row with case_id and "
            "patient_id for every case"
        )
    grades = {case_id: row.get("grade", "").upper() for case_id, row in rows.items()}
    for case_id, grade in grades.items():
        if labels.is_brats(task) and grade not in ("", *layouts.GRADES):
            raise UserError(
                f"{path}: the grade of {case_id} is {grade!r}; expected HGG, LGG or empty"
            )
    return [
        dataclasses.replace(
            case, patient_id=rows[case.case_id]["patient_id"], grade=grades[case.case_id] or None
        )
        for case in found
    ]


def _of_visit(case: "Case") -> str:
    return own_layouts.patient_of_visit(case.case_id, case_files(case)[0])


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); expected CSV") from error
    return [{key: (row[key] or "").strip() for key in row if key} for row in rows]


def case_files(case: "Case") -> list[pathlib.Path]:
    """Returns the files of a case, those of the images first."""
    images = [source[0] if isinstance(source, tuple) else source for source in case.images.values()]
    return images + ([case.label] if case.label else [])
