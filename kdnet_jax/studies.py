"""A study: teacher, baseline and student over folds and seeds, each a run of its own."""

import dataclasses
import functools
import logging
import pathlib

import jax
from ml_collections import config_dict

from kdnet_jax import (
    config_values,
    dataset_json,
    evaluation,
    experiment,
    processes,
    provenance,
    settings,
)
from kdnet_jax import workdir as workdir_lib
from kdnet_jax.errors import UserError
from kdnet_jax.reporting import run_report, study_report

_LOG = logging.getLogger(__name__)

# The order in which the parts of a fold and seed are run: the student needs its teacher.
ROLES = settings.ROLES


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of a study.

    Attributes:
        role: "teacher", "baseline" or "student".
        fold: which fold is tested; `None` in a study with one split.
        seed: of its training.
        folder: where it lies.
        config: its config, that of the role's own file with the study's values.
    """

    role: str
    fold: int | None
    seed: int
    folder: pathlib.Path
    config: config_dict.ConfigDict


def parts(config: config_dict.ConfigDict, workdir: pathlib.Path) -> list[Part]:
    """Returns the runs of a study, in the order in which they are run.

    Raises:
        UserError: for a number of seeds or folds that cannot be.
    """
    config_values.check(settings.flatten(config))
    if config.study.folds == 1:
        raise UserError(
            f"study.folds is {config.study.folds}: give 2 or more, or 0 for the one split of "
            "--config.split."
        )
    folds = range(config.study.folds) if config.study.folds else [None]
    return [
        _part(config, workdir, role, fold, config.seed + offset)
        # All seeds of one fold, then the next: a study that is stopped early compares something.
        for fold in folds
        for offset in range(config.study.seeds)
        for role in ROLES
    ]


def _part(
    config: config_dict.ConfigDict, workdir: pathlib.Path, role: str, fold: int | None, seed: int
) -> Part:
    folder = workdir if fold is None else workdir / f"fold-{fold}"
    folder = folder / f"seed-{seed}"
    student = config_dict.ConfigDict(config.to_dict())
    del student["study"]
    student.role, student.seed = "student", seed
    if fold is not None:
        student.split.folds, student.split.fold = config.study.folds, fold
    student.teacher.checkpoint = str(folder / "teacher")
    return Part(role, fold, seed, folder / role, _of_role(student, role))


def _of_role(student: config_dict.ConfigDict, role: str) -> config_dict.ConfigDict:
    if role == "teacher":
        return settings.teacher_config(student)
    if role == "student":
        return student
    baseline = config_dict.ConfigDict(student.to_dict())
    del baseline["distillation"]
    del baseline["teacher"]
    baseline.role = "baseline"
    return baseline


def run(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs every part that is not finished, compares the roles and writes the study's report.

    Raises:
        UserError: for everything that the user can mend, before the first part is trained.
        stopping.Stopped: after SIGINT or SIGTERM, when everything is saved.
    """
    config = settings.completed(config)
    planned = parts(config, workdir)
    for part in planned:
        values = settings.read_settings(part.config)
        workdir_lib.check(part.folder, part.config, values.task)
    for number, part in enumerate(planned, 1):
        _LOG.info(f"--- {number} of {len(planned)}: {part.folder}")
        if processes.first_does(functools.partial(is_finished, part)):
            _LOG.info(f"{part.folder}: finished")
            continue
        experiment.run(part.config, part.folder)
        jax.clear_caches()  # The programs of a part serve no other.
    sides = {role: [part.folder for part in planned if part.role == role] for role in ROLES}
    processes.first_does(lambda: _report(config, workdir, planned, sides))


def _report(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    planned: list[Part],
    sides: dict[str, list[pathlib.Path]],
) -> None:
    report, verdict = study_report.write(
        workdir,
        sides,
        noun=dataset_json.read(config.task).noun,
        facts=_facts(config, planned),
        synthetic=not config.data.data_dir,
    )
    _LOG.info("\n\n".join(["", *verdict, f"Report: {report}"]))


def is_finished(part: Part) -> bool:
    """Says whether a part is trained, evaluated by this version, and reported.

    A student is so only with the teacher that lies there now.
    """
    if not (evaluation.is_complete(part.folder) and (part.folder / run_report.FILE).is_file()):
        return False
    if part.role != "student":
        return True
    teacher = evaluation.read_summary(part.folder.parent / "teacher") or {}
    taught_by = evaluation.read_summary(part.folder)["teacher"]["hash"]
    return taught_by == teacher.get("params_hash")


def _facts(config: config_dict.ConfigDict, planned: list[Part]) -> list[tuple[str, str]]:
    summaries = [evaluation.read_summary(part.folder) for part in planned]
    hours = sum(each["train_seconds"] + each["evaluate_seconds"] for each in summaries) / 3600
    splits = dict.fromkeys(each["split_hash"][:16] for each in summaries)
    return [
        ("Config", f"configs/study.py:{config.preset}"),
        ("Folds", str(config.study.folds) if config.study.folds else "one split"),
        ("Seeds", ", ".join(dict.fromkeys(str(part.seed) for part in planned))),
        ("Runs", str(len(planned))),
        ("Cases", config.data.data_dir or "synthetic cohort brats_phantom"),
        ("Student's sequence", config.model.modalities),
        ("Steps, teacher / student", f"{config.teacher.steps} / {config.train.steps}"),
        ("Training and evaluation, together", f"{hours:.2f} h"),
        ("Splits", ", ".join(splits)),
        *provenance.collect().items(),
    ]
