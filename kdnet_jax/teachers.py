"""Where a student's teacher lies, and whether it can teach this student on these cases."""

import pathlib

from ml_collections import config_dict

from kdnet_jax import run_data, settings
from kdnet_jax.data import patients, splits
from kdnet_jax.errors import UserError


def find_folder(config: config_dict.ConfigDict, workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the teacher's run, to be trained or given; `None` without a teacher."""
    if config.role != "student":
        return None
    if not config.teacher.checkpoint:
        return workdir / "teacher"
    return pathlib.Path(config.teacher.checkpoint)


def check_settings(
    where: pathlib.Path, teacher: config_dict.ConfigDict, student: config_dict.ConfigDict
) -> None:
    """Raises UserError for a teacher that cannot teach this student, from the two configs alone."""
    theirs, ours = settings.read_settings(teacher), settings.read_settings(student)
    absent = [name for name in theirs.modalities if name not in ours.data_modalities]
    if absent:
        raise UserError(
            f"the teacher {where} needs {', '.join(absent)}, but data.modalities is "
            f"{','.join(ours.data_modalities)}. Add it to --config.data.modalities."
        )
    if theirs.network.outputs != ours.network.outputs:
        raise UserError(
            f"the teacher {where} predicts {', '.join(theirs.network.outputs)}, the student "
            f"{', '.join(ours.network.outputs)}. Set --config.model.head={theirs.network.head}."
        )
    bottlenecks = [(len(each.network.widths), each.network.widths[-1]) for each in (theirs, ours)]
    if ours.distillation.latent_weight and bottlenecks[0] != bottlenecks[1]:
        raise UserError(
            f"the teacher {where} has widths {theirs.network.widths}, the student "
            f"{ours.network.widths}: their bottlenecks cannot be compared. Give the student as "
            "many levels and the same last width, or set "
            "--config.distillation.latent_weight=0."
        )
    if theirs.spacing != ours.spacing:
        raise UserError(
            f"the teacher {where} was trained at data.spacing {theirs.spacing}, the student is to "
            f"be at {ours.spacing}. Set --config.data.spacing={theirs.spacing or 0}."
        )
    cavities = (teacher.data.resection_cavity, student.data.resection_cavity)
    if cavities[0] != cavities[1]:
        raise UserError(
            f"the teacher {where} took a resection cavity as {cavities[0]}, the student is to take "
            f"it as {cavities[1]}. Set --config.data.resection_cavity={cavities[0]}."
        )


def check_split(teacher: pathlib.Path, data: run_data.Data) -> None:
    """Raises UserError if the teacher knows a patient on whom this run is tested."""
    patient = {summary.case_id: summary.patient_id for summary in data.cases.summaries}
    theirs = splits.load_split(teacher / "split.json")
    seen = {patient.get(name, patients.patient_of(name)) for name in theirs.train}
    seen |= {patient.get(name, patients.patient_of(name)) for name in theirs.validation}
    leaked = seen & {patient[name] for name in data.split.test}
    if leaked:
        raise UserError(
            f"the teacher {teacher} was trained or selected on {len(leaked)} patients of this "
            f"run's test cases (such as {min(leaked)}). Use its split: "
            f"--config.split.file={teacher / 'split.json'}"
        )
