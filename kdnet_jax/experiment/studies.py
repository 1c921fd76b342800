"""A study: teacher, baseline and student over folds and seeds, each a run of its own."""

import functools
import logging
import pathlib

import jax

from kdnet_jax.config import keys, study
from kdnet_jax.core import provenance
from kdnet_jax.evaluation import evaluation
from kdnet_jax.experiment import runner
from kdnet_jax.parallel import processes
from kdnet_jax.reports import run_report, study_report
from kdnet_jax.runs import workdir as workdir_lib

_LOG = logging.getLogger(__name__)


def run(planned: list[study.Part], workdir: pathlib.Path) -> None:
    """Runs every part that is not finished, compares the roles and writes the study's report.

    Args:
        planned: the parts, in the order in which they are run.
        workdir: the study's folder.

    Raises:
        UserError: for everything that the user can fix, before the first part is trained.
        stopping.Stopped: after SIGINT or SIGTERM, when everything is saved.
    """
    for part in planned:
        workdir_lib.check(part.folder, part.experiment)
    for number, part in enumerate(planned, 1):
        _LOG.info(f"--- {number} of {len(planned)}: {part.folder}")
        if processes.first_does(functools.partial(is_finished, part)):
            _LOG.info(f"{part.folder}: finished")
            continue
        runner.run(part.experiment, part.folder)
        jax.clear_caches()  # The programs of a part serve no other.
    processes.first_does(lambda: _report(planned, workdir))


def _report(planned: list[study.Part], workdir: pathlib.Path) -> None:
    first = planned[0].experiment
    report, verdict = study_report.write(
        workdir,
        {role: [part.folder for part in planned if part.role == role] for role in keys.ROLES},
        noun=first.task.noun,
        facts=_facts(planned),
        synthetic=not first.data.data_dir,
    )
    _LOG.info("\n\n".join(["", *verdict, f"Report: {report}"]))


def is_finished(part: study.Part) -> bool:
    """Says whether a part is trained, evaluated by this version, and reported.

    A student is so only with the teacher that lies there now.
    """
    if not (evaluation.is_complete(part.folder) and (part.folder / run_report.FILE).is_file()):
        return False
    if part.role != "student":
        return True
    teacher = evaluation.read_summary(part.folder.parent / "teacher") or {}
    taught_by = evaluation.summary_of(part.folder)["teacher"]["hash"]
    return taught_by == teacher.get("params_hash")


def _facts(planned: list[study.Part]) -> list[tuple[str, str]]:
    summaries = [evaluation.summary_of(part.folder) for part in planned]
    hours = sum(each["train_seconds"] + each["evaluate_seconds"] for each in summaries) / 3600
    splits = dict.fromkeys(each["split_hash"][:16] for each in summaries)
    of_role = {part.role: part.experiment for part in planned}
    student = of_role["student"]
    steps = [of_role[role].train.steps for role in ("teacher", "student")]
    folds = {part.fold for part in planned if part.fold is not None}
    return [
        ("Config", f"configs/study.py:{student.preset}"),
        ("Folds", str(len(folds)) if folds else "one split"),
        ("Seeds", ", ".join(dict.fromkeys(str(part.experiment.seed) for part in planned))),
        ("Runs", str(len(planned))),
        ("Cases", student.data.data_dir or "synthetic cohort brats_phantom"),
        ("Student's sequence", ",".join(student.modalities)),
        ("Steps, teacher / student", " / ".join(map(str, steps))),
        ("Training and evaluation, together", f"{hours:.2f} h"),
        ("Splits", ", ".join(splits)),
        *provenance.collect().items(),
    ]
