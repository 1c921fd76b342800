"""A study: teacher, baseline and student over folds and seeds, each a run of its own."""

import functools
import json
import logging
import pathlib
import statistics

import jax

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import study
from kdnet_jax.core import documents, files, provenance
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.evaluation import comparison, comparison_scores, score_files
from kdnet_jax.experiment import run_data, runner
from kdnet_jax.parallel import processes
from kdnet_jax.reports import arms_report, run_report, study_report
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import teachers, transfer
from kdnet_jax.runs import workdir as workdir_lib

_LOG = logging.getLogger(__name__)


# Of a study of few labels: what its first start has fixed.
FIXED = "study.json"


def run(
    planned: list[study.Part],
    workdir: pathlib.Path,
    primary: study.Endpoint | None,
    least_room: float,
) -> None:
    """Runs every part that is not finished, compares the roles and writes the study's report.

    Args:
        planned: the parts, in the order in which they are run.
        workdir: the study's folder.
        primary: of a study of few labels, its primary endpoint; `None`: the usual study.
        least_room: of a study of few labels, in Dice: where D - A is less, no student is trained,
            and the report says so.

    Raises:
        UserError: for everything that the user can fix, before the first part is trained.
        stopping.Stopped: after SIGINT or SIGTERM, when everything is saved.
    """
    for part in planned:
        workdir_lib.check(part.folder, part.experiment)
    _check_networks(planned)
    if primary:
        _check_primary(planned, workdir, primary)
    _check_cases(planned)
    if primary:
        processes.first_does(lambda: _fix(workdir / FIXED, planned, primary))
    for number, part in enumerate(planned, 1):
        if primary and part.role == "student":
            before = planned[: number - 1]
            if processes.first_does(functools.partial(_lacks_room, before, part, least_room)):
                planned = before
                break
        _LOG.info(f"--- {number} of {len(planned)}: {part.folder}")
        if processes.first_does(functools.partial(is_finished, part)):
            _LOG.info(f"{part.folder}: finished")
            continue
        runner.run(part.experiment, part.folder)
        jax.clear_caches()  # The programs of a part serve no other.
    processes.first_does(lambda: _report(planned, workdir, primary, least_room))


def _check_networks(planned: list[study.Part]) -> None:
    """Raises UserError for a student that its teacher cannot teach, or a start that does not fit.

    Each run finds that out itself, but a student's comes after hours of others.
    """
    models = {part.folder: model_lib.of_experiment(part.experiment) for part in planned}
    # An arm has the same network in all folds and seeds.
    arms = {part.arm: part.experiment for part in reversed(planned)}.values()
    for experiment in arms:
        if experiment.teacher:
            folder = pathlib.Path(experiment.teacher.checkpoint)
            teachers.check_settings(folder, models[folder], experiment)
    starting = [experiment for experiment in arms if experiment.role != "teacher"]
    processes.together(functools.partial(transfer.load_start, starting))


def _lacks_room(before: list[study.Part], student: study.Part, least: float) -> bool:
    """Says whether the references that A lacks are worth too little for a student to be trained.

    Once one was begun, that is decided.
    """
    means = [_mean_dice([part for part in before if part.arm == arm]) for arm in "AD"]
    baseline, all_labels = means
    if baseline is None or all_labels is None or any(part.role == "student" for part in before):
        return False
    room = all_labels - baseline
    if room >= least or student.folder.exists():
        return False
    _LOG.info(
        f"Room: D - A is {room:+.3f} in mean Dice, below study.least_room, {least:g}. With so "
        "little to recover, no student is trained. Give a new --workdir with fewer labelled cases, "
        "another sequence or more steps; --config.study.least_room=-1 trains them all the same."
    )
    return True


def _mean_dice(parts: list[study.Part]) -> float | None:
    """Returns the mean over regions, cases and seeds; None without a score."""
    summaries = [score_files.summary_of(part.folder) for part in parts]
    scored = [each for each in summaries if each["mean_dice"] is not None]
    if not scored:
        return None
    dice = [each["mean_dice"] for each in scored]
    return statistics.fmean(dice, weights=[each["cases"] for each in scored])


def _check_primary(
    planned: list[study.Part], workdir: pathlib.Path, primary: study.Endpoint
) -> None:
    """Raises UserError for an endpoint that is none, or not the one of the study's start."""
    task = planned[0].experiment.task
    check_choice("study.primary: the metric", primary.metric, comparison.MEASURES)
    check_choice(
        "study.primary: the region",
        primary.region,
        (comparison_scores.MEAN, *task.region_names),
    )
    fixed = workdir / FIXED
    was = documents.read_object(fixed).get("primary") if fixed.is_file() else str(primary)
    # A first start that found a mistake has begun nothing.
    if was != str(primary) and any(part.folder.exists() for part in planned):
        raise UserError(
            f"study.primary is {primary}, but {fixed} says that this study was begun to decide "
            f"{was}. A primary endpoint is named before the first run: keep it, or give a new "
            "--workdir."
        )


def _check_cases(planned: list[study.Part]) -> None:
    """Raises UserError if the cases that the parts will find cannot make a study."""
    for fold in dict.fromkeys(part.fold for part in planned):
        own = [part for part in planned if part.fold == fold]
        few_labels = own[0].arm in study.ARMS
        # Every fold tests a case or more, so that two folds have enough.
        if (few_labels or fold is None) and not processes.first_does(
            lambda own=own: all(map(is_finished, own))
        ):
            # The number of labelled cases is the same for all seeds, but arm D has all.
            part = next((part for part in own if part.experiment.split.labelled), own[0])
            _check_split(part.experiment, few_labels)


def _check_split(experiment: experiment_lib.Experiment, few_labels: bool) -> None:
    split = run_data.open_data(experiment).split
    if not experiment.split.folds and len(split.test) < 2:
        raise UserError(
            f"the split has one test case, {', '.join(split.test)}: a study compares its runs "
            "over two test cases or more. Give a larger --config.split.test, more cases, folds "
            "(--config.study.folds), or a --config.split.file with more in its test part."
        )
    if few_labels and not split.unlabelled:
        raise UserError(
            f"split.labelled is {experiment.split.labelled}, and all {len(split.train)} "
            "training cases are labelled then: no scan is left to learn from without a reference. "
            "Give a smaller --config.split.labelled, or a larger --config.split.train."
        )


def _fix(path: pathlib.Path, planned: list[study.Part], primary: study.Endpoint) -> None:
    """Writes the primary endpoint, unless that was done and runs have followed."""
    if not (path.is_file() and any(part.folder.exists() for part in planned)):
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"primary": str(primary), "provenance": provenance.collect()}
        files.write_text(path, json.dumps(about, indent=2) + "\n")


def _report(
    planned: list[study.Part],
    workdir: pathlib.Path,
    primary: study.Endpoint | None,
    least_room: float,
) -> None:
    task, synthetic = planned[0].experiment.task, not planned[0].experiment.data.data_dir
    runs: dict[str, list[pathlib.Path]] = {}
    for part in planned:
        runs.setdefault(part.arm, []).append(part.folder)
    facts = _facts(planned)
    if primary:
        cases = ("Labelled / unlabelled training cases", _case_counts(planned))
        report, verdict = arms_report.write(
            workdir,
            runs,
            primary=primary,
            least_room=least_room,
            facts=[("Primary endpoint", str(primary)), cases, *facts],
            synthetic=synthetic,
        )
    else:
        report, verdict = study_report.write(
            workdir, runs, noun=task.noun, facts=facts, synthetic=synthetic
        )
    _LOG.info("\n\n".join(["", *verdict, f"Report: {report}"]))


def _case_counts(planned: list[study.Part]) -> str:
    """Returns how many training cases have a label, and how many have none, of each fold."""
    counts = [
        f"{len(split.train)} / {len(split.unlabelled)}"
        for part in planned
        if not study.ARMS[part.arm].all_labels
        for split in [splits.load_split(part.folder / workdir_lib.SPLIT)]
    ]
    return ", ".join(dict.fromkeys(counts))


def is_finished(part: study.Part) -> bool:
    """Says whether a part is trained, evaluated by this version, and reported.

    A student is so only with the teacher that lies there now.
    """
    if not (score_files.is_complete(part.folder) and (part.folder / run_report.FILE).is_file()):
        return False
    if part.role != "student":
        return True
    assert part.experiment.teacher
    teacher = score_files.read_summary(pathlib.Path(part.experiment.teacher.checkpoint)) or {}
    taught_by = score_files.summary_of(part.folder)["teacher"]["hash"]
    return taught_by == teacher.get("params_hash")


def _facts(planned: list[study.Part]) -> list[tuple[str, str]]:
    summaries = [score_files.summary_of(part.folder) for part in planned]
    hours = sum(each["train_seconds"] + each["evaluate_seconds"] for each in summaries) / 3600
    splits_of = dict.fromkeys(each["split_hash"][:16] for each in summaries)
    experiments = [part.experiment for part in planned]
    steps = {each.role: each.train.steps for each in experiments}
    # A student, or where none was run, a baseline.
    own = next(each for each in reversed(experiments) if each.role != "teacher")
    roles = [role for role in ("teacher", own.role) if role in steps]
    folds = {part.fold for part in planned if part.fold is not None}
    return [
        ("Preset", own.preset),
        ("Folds", str(len(folds)) if folds else "one split"),
        ("Seeds", ", ".join(dict.fromkeys(str(each.seed) for each in experiments))),
        ("Runs", str(len(planned))),
        ("Cases", own.data.data_dir or "synthetic cohort brats_phantom"),
        ("Student's sequence", ",".join(own.modalities)),
        (f"Steps, {' / '.join(roles)}", " / ".join(str(steps[role]) for role in roles)),
        ("Training and evaluation, together", f"{hours:.2f} h"),
        ("Splits", ", ".join(splits_of)),
        *provenance.collect().items(),
    ]
