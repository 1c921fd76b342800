"""Teacher of a student: where it lies, and whether it can teach this student on these cases."""

import logging
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading, students
from kdnet_jax.data import splits
from kdnet_jax.data.sources import patients
from kdnet_jax.errors import UserError, counted
from kdnet_jax.losses import distillation, features, objective
from kdnet_jax.models import adapted, networks
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import model_folder, workdir

_LOG = logging.getLogger(__name__)

_ITS_TASK = (
    "Give a teacher of the same task, or the teacher's own task: --config.task=DIR with the folder "
    "of its run, or with what python -m kdnet_jax.export makes of another tool's."
)
# Where a run keeps a teacher that it had to train, and one that came from another tool.
OWN, CONVERTED = students.TEACHER, "teacher_model"


def find_folders(
    experiment: experiment_lib.Experiment, run: pathlib.Path
) -> tuple[pathlib.Path, ...]:
    """Returns where the teacher's networks lie, to be trained or given; none without a network."""
    if experiment.teacher is None or experiment.teacher.maps:
        return ()
    if experiment.teacher.to_train:
        return (run / OWN,)
    converted = run / CONVERTED
    return (converted,) if converted.is_dir() else experiment.teacher.folders


def check_settings(
    where: pathlib.Path, teacher: model_lib.Model, student: experiment_lib.Experiment
) -> None:
    """Raises UserError for a teacher that cannot teach this student, from their settings alone."""
    data = student.data
    if different := teacher.task.difference(student.task):
        raise UserError(
            f"the teacher {where} is of the task {teacher.task.name}, the student of "
            f"{student.task.name}; {different}. {_ITS_TASK}"
        )
    absent = [name for name in teacher.modalities if name not in data.modalities]
    if absent:
        raise UserError(
            f"the teacher {where} needs {', '.join(absent)}, but data.modalities is "
            f"{','.join(data.modalities)}. Add it to --config.data.modalities."
        )
    unseen = [name for name in student.modalities if name not in teacher.modalities]
    if unseen:
        raise UserError(
            f"the student sees {', '.join(unseen)}, the teacher {where} only "
            f"{', '.join(teacher.modalities)}. Set --config.model.modalities to channels of the "
            "teacher, or give a teacher (--config.teacher.checkpoint; one to be trained: "
            "--config.teacher.modalities) that sees them all."
        )
    if teacher.head.kind != student.head.kind:
        raise UserError(
            f"the teacher {where} predicts {', '.join(teacher.outputs)}, the student "
            f"{', '.join(student.head.outputs)}. Set --config.model.head={teacher.head.kind}."
        )
    _check_patch(where, teacher, student.loader.patch)
    if student.distillation:
        _check_distillation(where, teacher, student, student.distillation)
    if teacher.spacing != data.spacing:
        given = ",".join(map(str, np.atleast_1d(teacher.spacing or 0).tolist()))
        raise UserError(
            f"the teacher {where} was trained at data.spacing {teacher.spacing}, the student is to "
            f"be at {data.spacing}. Set --config.data.spacing={given}."
        )
    if student.task.unscored and teacher.resection_cavity != data.resection_cavity:
        raise UserError(
            f"the teacher {where} took a resection cavity as {teacher.resection_cavity}, the "
            f"student is to take it as {data.resection_cavity}. Set "
            f"--config.data.resection_cavity={teacher.resection_cavity}."
        )
    networks.check_space(student.mesh.space, teacher.network, "mesh.space")


def check_incomplete(
    where: pathlib.Path, teacher: model_lib.Model, student: experiment_lib.Experiment
) -> None:
    """Raises UserError if scans may lack what a given teacher sees, and it did not train so.

    Every scan has the student's channels. Where the teacher sees others, one of those has to be
    among its own, and it has to know gaps from its training.
    """
    others = [name for name in teacher.modalities if name not in student.modalities]
    if not (student.data.incomplete and others):
        return
    if len(others) == len(teacher.modalities) or not knows_gaps(where):
        raise UserError(
            f"data.incomplete is true, so that cases may lack {', '.join(others)}, and nothing "
            f"says that the teacher {where} can do without: it was trained without modality "
            "dropout, or sees none of the student's channels. Give one that was trained with "
            "--config.augment.modality_dropout above 0, or set --config.data.incomplete=false."
        )


def knows_gaps(folder: pathlib.Path) -> bool:
    """Returns whether a run or model was trained with modality dropout."""
    if model_folder.is_model(folder):
        training = model_folder.read(folder).document.get("training", {})
        return training.get("modality_dropout", 0) > 0
    # What another tool has trained has no config.
    if not (folder / reading.CONFIG).is_file():
        return False
    return reading.read_run(folder).modality_dropout > 0


def check_statistics(where: pathlib.Path, teacher: task_lib.Task, data: task_lib.Task) -> None:
    """Raises UserError if CT is scaled by other numbers than those that the teacher has learnt."""
    if teacher.statistics != data.statistics:
        raise UserError(
            f"the teacher {where} was trained with the intensity statistics {teacher.statistics}, "
            f"these cases are scaled with {data.statistics}. {_ITS_TASK}"
        )


def _check_patch(
    where: pathlib.Path, teacher: model_lib.Model, patch: tuple[int, int, int]
) -> None:
    divisor = teacher.network.divisor
    if not networks.divides(divisor, patch):
        raise UserError(
            f"the teacher {where} needs patches whose edges are divisible by "
            f"{networks.in_words(divisor)}, but loader.patch is {patch}. Set "
            f"--config.loader.patch={networks.fitting(divisor, patch)}."
        )


def _check_distillation(
    where: pathlib.Path,
    teacher: model_lib.Model,
    student: experiment_lib.Experiment,
    kd: distillation.DistillationOptions,
) -> None:
    kinds = [networks.family(each.network) for each in (teacher, student)]
    if kd.init_from_teacher and kinds[0] != kinds[1]:
        raise UserError(
            f"distillation.init_from_teacher is true, but the teacher {where} is a {kinds[0]} and "
            f"the student a {kinds[1]}, which have no parameters in common. Set "
            "--config.distillation.init_from_teacher=false, or --config.model.family to the "
            "teacher's."
        )
    compared = objective.features_of(kd)
    by_agreement = kd.confidence == "agreement"
    if not (compared or by_agreement):
        return
    theirs, ours = (
        networks.feature_shapes(each.network, len(each.modalities), student.loader.patch)
        for each in (teacher, student)
    )
    if by_agreement and adapted.AGREEMENT not in theirs:
        raise UserError(
            f"distillation.confidence is agreement, but the teacher {where} is one network, with "
            "which no other can agree. Name several, with ; between them, as "
            "--config.teacher.checkpoint, or set --config.distillation.confidence=probability."
        )
    for name, keys in compared.items():
        if name not in theirs:
            off = " ".join(f"--config.{key}=0" for key in keys)
            raise UserError(
                f"the teacher {where} is an average of several networks, which has no {name} to "
                f"compare the student's with. Set {off}."
            )
    # All others may differ in width or grid.
    name = features.BOTTLENECK
    if kd.latent_weight and theirs[name] != ours[name]:
        words = [" x ".join(map(str, shapes[name])) for shapes in (theirs, ours)]
        raise UserError(
            f"the bottleneck of the teacher {where} is {words[0]} for a patch (depth, height, "
            f"width, channels), the student's {words[1]}: they cannot be compared. Give the "
            "student as many levels and the same last width (--config.model.widths), or set "
            "--config.distillation.latent_weight=0."
        )


def check_split(
    teacher: pathlib.Path,
    patient: Mapping[str, str],
    test: Iterable[str],
    who: str = "the teacher",
) -> None:
    """Raises UserError if the teacher knows a patient on whom this run is tested.

    Where that is unknown, a note says so.

    Args:
        teacher: its folder.
        patient: case to patient, of all cases of the run.
        test: the run's test cases.
        who: it is, where it is not the teacher but the network's start.
    """
    known = known_cases(teacher)
    if not known.complete:
        _LOG.info(
            f"note: {teacher} does not say on all cases that it, or its own teacher, was trained "
            "on. If this run's test cases are among them, the teacher's scores, and perhaps the "
            "student's, are too good."
        )
    seen = {patient.get(name, patients.patient_of(name)) for name in known.ids}
    if seen and not seen & set(patient.values()):
        _LOG.info(
            f"note: of the {counted(len(known.ids), 'case')} that {teacher} was trained or "
            "selected on none has the name of a case of this run. If they are the same patients "
            "under other names, the scores on the test cases are too good."
        )
    leaked = seen & {patient[name] for name in test}
    if leaked:
        split = teacher / workdir.SPLIT
        remedy = (
            f"Use its split: --config.split.file={split}"
            if split.is_file()
            else "Give a split that keeps them out of the test part: --config.split.file=FILE"
        )
        raise UserError(
            f"{who} {teacher} was trained or selected on {len(leaked)} patients of this "
            f"run's test cases (such as {min(leaked)}). {remedy}"
        )


def known_cases(folder: pathlib.Path) -> model_lib.KnownCases:
    """Returns the cases that a run or model, its teacher or its start was trained or chosen on.

    Raises:
        UserError: the folder is neither, or its split cannot be read.
    """
    if model_folder.is_model(folder):
        return model_folder.read(folder).known
    split = splits.load_split(folder / workdir.SPLIT)
    experiment = reading.read_run(folder)
    own = (*split.train, *split.validation)
    if experiment.uses_unlabelled:
        own += split.unlabelled
    # Nothing says who made a folder of maps, and of what.
    complete = not (experiment.teacher and experiment.teacher.maps)
    others = find_folders(experiment, folder)
    if experiment.train.start:
        others += (pathlib.Path(experiment.train.start),)
    for teacher in others:
        if not (model_folder.is_model(teacher) or (teacher / workdir.SPLIT).is_file()):
            complete = False  # it was moved away
            continue
        its = known_cases(teacher)
        own, complete = (*own, *its.ids), complete and its.complete
    return model_lib.KnownCases(tuple(dict.fromkeys(own)), complete)
