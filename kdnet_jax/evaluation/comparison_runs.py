"""The runs that a comparison reads: what differs between them, and which belong together."""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from kdnet_jax.config import flat_keys, reading
from kdnet_jax.config import keys as keys_lib
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, first_few
from kdnet_jax.evaluation import score_files
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.runs import workdir

# Of students alone, compared among them.
_STUDENTS: Final = ("distillation.", "teacher.", "loader.unlabelled_share")
# What may differ between the runs of a comparison: it is checked by a hash or by the role, is what
# is compared, or changes nothing that is computed.
_FREE: Final = (
    *keys_lib.OPERATIONAL,
    *("role", "preset", "seed"),
    # Guarded by the fingerprint of the data and the hash of the split.
    *("split.", "data.release", "data.phantom.", "data.skip_bad_cases"),
    *_STUDENTS,
)
# A teacher sees more, and may be larger and trained longer.
_DROPOUT: Final = "augment.modality_dropout"
_FREE_TEACHER: Final = ("model.modalities", "model.widths", "train.steps", _DROPOUT)
# A run's thresholds are its own, chosen on its validation cases: the rule is what has to agree.
_SUMMARY_KEYS: Final = ("data_fingerprint", "evaluation_version", "hd95", "post_processing")
_CAVITY: Final = "resection_cavity"
# Relative: headers hold voxel sizes to seven digits, and a table may be rounded.
_SAME_VOLUME: Final = 1e-4


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or the output of `kdnet_jax.evaluate`, as a comparison needs it.

    Attributes:
        side: "baseline", "student" or "teacher".
        folder: where it lies.
        config: its config, flat; `None` if the folder has none.
        summary: the evaluation's.
        scores: (case, region) -> row of `cases.csv`.
    """

    side: str
    folder: pathlib.Path
    config: typed.JsonView | None
    summary: typed.JsonView
    scores: Mapping[tuple[str, str], case_metrics.RegionScore]

    @property
    def cases(self) -> frozenset[str]:
        """The test cases."""
        return frozenset(case for case, _ in self.scores)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that it was scored by, in the order of its task."""
        return tuple(self.summary["regions"])

    @property
    def seed(self) -> int | None:
        """The seed of its training, `None` if unknown."""
        return None if self.config is None else self.config["seed"]

    @property
    def params_hash(self) -> str | None:
        """The hash of its parameters, `None` if unknown."""
        return self.summary.get("params_hash")

    @property
    def teacher_hash(self) -> str | None:
        """The hash of the parameters of the teacher that it learned from."""
        return (self.summary.get("teacher") or {}).get("hash")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A baseline and a student of one fold and, as a rule, one seed; the student's teacher."""

    baseline: Run
    student: Run
    teacher: Run | None


# --- Reading ------------------------------------------------------------------------------------


def read_run(side: str, folder: pathlib.Path, *, postprocessed: bool) -> Run:
    """Reads a run's config and scores.

    Raises:
        UserError: if the folder has no scores, or they cannot be read.
    """
    summary = score_files.read_summary(folder, postprocessed=postprocessed)
    if summary is None:
        what, where = (
            ("post-processed scores", f"{score_files.FOLDER}/{score_files.POSTPROCESSED}")
            if postprocessed
            else ("scores", score_files.FOLDER)
        )
        raise UserError(
            f"--{side}={folder}: there are no {what} ({where}/{score_files.SUMMARY_FILE} is "
            "missing). Give the folder of a finished run (the command that started an unfinished "
            "one resumes it) or the --output of python -m kdnet_jax.evaluate."
        )
    _check_summary(folder, summary)
    rows = score_files.read_scores(folder, postprocessed=postprocessed)
    scores = {(row.case, row.region): row for row in rows}
    _refuse_gaps(f"--{side}={folder}", scores, summary["regions"])
    config = None
    if (folder / workdir.CONFIG).is_file():
        config = flat_keys.explicit(reading.read_document(folder))
        if type(config.get("seed")) is not int or not isinstance(config.get("role"), str):
            raise UserError(
                f"--{side}={folder}: {folder / workdir.CONFIG} is no config of a run (it has no "
                "role or seed). Give the folder that python -m kdnet_jax.main wrote."
            )
        if config["role"] == "student" and _DROPOUT in config:
            config = {**config, _DROPOUT: 0.0}  # what a student's config says is of its teacher
    return Run(side, folder, config, summary, scores)


def _check_summary(folder: pathlib.Path, summary: typed.JsonView) -> None:
    task = summary.get("task")
    if not (isinstance(task, dict) and "name" in task and isinstance(task.get("regions"), dict)):
        raise UserError(
            f"{folder / score_files.FOLDER / score_files.SUMMARY_FILE} is damaged: its task is "
            f"{task!r:.80}. Evaluate again."
        )
    teacher = summary.get("teacher") or {}
    known = isinstance(teacher, dict)
    hashes = [summary.get("params_hash"), teacher.get("hash") if known else None]
    if not known or not all(each is None or isinstance(each, str) for each in hashes):
        raise UserError(
            f"{folder / score_files.FOLDER / score_files.SUMMARY_FILE} is damaged: its teacher is "
            f"{teacher!r:.80}, its params_hash {hashes[0]!r:.80}. Evaluate again."
        )


def _refuse_gaps(where: str, scores: Collection[tuple[str, str]], regions: Iterable[str]) -> None:
    for case in sorted({case for case, _ in scores}):
        for region in regions:
            if (case, region) not in scores:
                raise UserError(
                    f"{where}: {score_files.CASES_FILE} has no row of {case}, {region}. Evaluate "
                    "again: each case needs a row per region."
                )


def refuse_doubles(runs: Sequence[Run]) -> None:
    """Raises UserError if a folder, or a network in two folders, is a duplicate.

    A given teacher is one network in all folds: it is so with the same test cases alone.
    """

    def scored(run: Run) -> tuple[str, frozenset[str]] | None:
        return (run.params_hash, run.cases) if run.params_hash else None

    def trained(run: Run) -> str | None:
        return None if run.side == "teacher" else run.params_hash

    for key in (_place, scored, trained):
        groups = collections.defaultdict(list)
        for run in runs:
            groups[key(run)].append(f"--{run.side}={run.folder}")
        for value, members in groups.items():
            if value is not None and len(members) > 1:
                raise UserError(
                    f"the same network is given {len(members)} times: {', '.join(members)}. "
                    "Give each run once."
                )


def refuse_other_tasks(runs: Sequence[Run]) -> None:
    """Raises UserError if the runs were not scored for one task."""
    first = runs[0]
    for run in runs[1:]:
        if run.summary["task"] != first.summary["task"]:
            raise UserError(
                f"--{first.side}={first.folder} and --{run.side}={run.folder} were scored for "
                f"different tasks: {_task_text(first)}, and {_task_text(run)}. Give runs of one "
                "task."
            )


def _task_text(run: Run) -> str:
    task = run.summary["task"]
    parts = [f"{name} ({', '.join(classes)})" for name, classes in task["regions"].items()]
    return f"{task['name']} with the regions {', '.join(parts)}"


def _place(run: Run) -> str:
    return os.path.realpath(run.folder)


# --- What differs -------------------------------------------------------------------------------


def differences(runs: Sequence[Run]) -> list[str]:
    """Returns what makes the runs incomparable, a line per key: each value and who has it."""
    sides = {name: [run for run in runs if run.side == name] for name in keys_lib.ROLES}
    compared = sides["baseline"] + sides["student"]
    found = _roles(runs)
    for fold in folds(runs):
        found += _disagree("split_hash", fold, lambda run: run.summary.get("split_hash"))
    for key in _SUMMARY_KEYS:
        found += _disagree(key, runs, lambda run, key=key: run.summary.get(key))
    # Written as the flag was: NCR and ncr are one class.
    found += _disagree(
        _CAVITY, runs, lambda run: str(run.summary.get(_CAVITY) or "").lower() or None
    )
    found += _config_differences(compared, lambda key: not key.startswith(_FREE))
    found += _config_differences(
        sides["student"],
        lambda key: key.startswith(_STUDENTS) and key not in keys_lib.OPERATIONAL,
    )
    found += _config_differences(
        [*compared[-1:], *sides["teacher"]],
        lambda key: not key.startswith(_FREE) and key not in _FREE_TEACHER,
    )
    return list(dict.fromkeys(found + _foreign_teachers(sides["student"], sides["teacher"])))


def folds(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the runs by the cases that they were tested on, in the order of the runs."""
    groups: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cases, []).append(run)
    return list(groups.values())


def _roles(runs: Sequence[Run]) -> list[str]:
    return [
        f"role: {run.folder} was given as --{run.side} and is a {run.config['role']}"
        for run in runs
        if run.config is not None and run.config["role"] != run.side
    ]


def _config_differences(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[str]:
    known = [run for run in runs if run.config is not None]
    keys = sorted({key for run in known for key in run.config or {} if wanted(key)})
    return [
        line
        for key in keys
        for line in _disagree(
            key, known, lambda run, key=key: (run.config or {}).get(key, "absent")
        )
    ]


def _disagree(key: str, runs: Sequence[Run], value: Callable[[Run], object]) -> list[str]:
    """Returns a line if the runs do not all have one value; what is unknown (None) is no value."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        if value(run) is not None:
            groups.setdefault(str(value(run)), []).append(str(run.folder))
    if len(groups) < 2:
        return []
    return [f"{key}: " + "; ".join(f"{said} in {', '.join(who)}" for said, who in groups.items())]


def _foreign_teachers(students: Sequence[Run], teachers: Sequence[Run]) -> list[str]:
    if not teachers:
        return []
    given = {run.params_hash for run in teachers}
    return [
        f"teacher: {run.folder} learned from {run.summary['teacher'].get('path')} (parameters "
        f"{run.teacher_hash[:12]}), which is not among --teacher"
        for run in students
        if run.teacher_hash is not None and run.teacher_hash not in given
    ]


# --- Who belongs to whom ------------------------------------------------------------------------


def pair_up(runs: Sequence[Run]) -> tuple[list[list[Pair]], list[str], list[str]]:
    """Returns the pairs per fold, what is not as it should be, and what a reader has to know.

    Runs are paired by the seed within the fold; where seeds are unknown or differ, in their order.

    Raises:
        UserError: if a fold lacks one of the sides, a seed is duplicated, or it is unknown which
            teacher is whose.
    """
    blocks, wrong, notes = [], _overlaps(runs), []
    teachers = [run for run in runs if run.side == "teacher"]
    for fold in folds([run for run in runs if run.side != "teacher"]):
        sides = {
            side: [run for run in fold if run.side == side] for side in ("baseline", "student")
        }
        _refuse_lonely(fold, sides, runs)
        known = [_by_seed(side) for side in sides.values()]
        if all(run.seed is not None for run in fold) and known[0].keys() == known[1].keys():
            couples = [(known[0][seed], known[1][seed]) for seed in sorted(known[0])]
        else:
            couples = list(zip(sides["baseline"], sides["student"], strict=False))
            pairs = ", ".join(f"{a.folder} with {b.folder}" for a, b in couples)
            if all(run.seed is not None for run in fold):
                seeds = [f"{side} {sorted(_by_seed(of))}" for side, of in sides.items()]
                wrong.append(f"seed: {', '.join(seeds)}; paired in the order given: {pairs}")
            else:
                notes.append(f"Some runs have no known seed; paired in the order given: {pairs}.")
            left = [run for of in sides.values() for run in of[len(couples) :]]
            wrong += [f"runs: {run.folder} has no partner and is left out" for run in left]
        # In the order given, which pairs by seed need not have.
        students = [run for run in sides["student"] if any(run is b for _, b in couples)]
        own, said = _teachers_of(students, teachers)
        taught_by = {b.folder: run for b, run in zip(students, own, strict=True)}
        blocks.append([Pair(a, b, taught_by[b.folder]) for a, b in couples])
        notes += said
        wrong += _other_references(blocks[-1])
    used = {pair.teacher.folder for pairs in blocks for pair in pairs if pair.teacher}
    notes += [
        f"--teacher={run.folder} is no pair's teacher and is left out."
        for run in teachers
        if run.folder not in used
    ]
    return blocks, wrong, notes


def _overlaps(runs: Sequence[Run]) -> list[str]:
    """Returns a line if a case is tested in several folds: it would be counted several times."""
    counts = collections.Counter(case for cases in {run.cases for run in runs} for case in cases)
    doubled = frozenset(case for case, count in counts.items() if count > 1)
    if not doubled:
        return []
    return [f"test cases: {_named(doubled)} are in several folds; folds should share none"]


def _other_references(pairs: Sequence[Pair]) -> list[str]:
    """Returns a line if a case was scored against different references, of the first such case."""
    runs = [run for pair in pairs for run in (pair.baseline, pair.student, pair.teacher) if run]
    for key in runs[0].scores:
        volumes = [run.scores[key].volume_ref_mm3 for run in runs]
        if not math.isclose(min(volumes), max(volumes), rel_tol=_SAME_VOLUME):
            return _disagree(
                f"reference of {', '.join(key)} (volume_ref_mm3 in {score_files.CASES_FILE})",
                runs,
                lambda run, key=key: run.scores[key].volume_ref_mm3,
            )
    return []


def _by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    found: dict[int, Run] = {}
    for run in runs:
        if run.seed is None:
            continue
        if run.seed in found:
            raise UserError(
                f"--{run.side}: {found[run.seed].folder} and {run.folder} are both seed {run.seed} "
                "of the same split. Give one of them."
            )
        found[run.seed] = run
    return found


def _refuse_lonely(fold: list[Run], sides: Mapping[str, list[Run]], runs: Sequence[Run]) -> None:
    for side, members in sides.items():
        if members:
            continue
        others = [run for run in runs if run.side == side]
        nearest = max(others, key=lambda run: len(run.cases & fold[0].cases))
        lacks, has = fold[0].cases - nearest.cases, nearest.cases - fold[0].cases
        raise UserError(
            f"{fold[0].folder} has no {side} that was tested on the same {len(fold[0].cases)} "
            f"cases. The nearest, {nearest.folder}, lacks {_named(lacks)} and has {_named(has)} "
            "besides. The case sets must be equal: give runs of one split."
        )


def _named(cases: frozenset[str]) -> str:
    return f"{len(cases)} ({first_few(sorted(cases))})" if cases else "none"


def _teachers_of(
    students: Sequence[Run], teachers: Sequence[Run]
) -> tuple[list[Run | None], list[str]]:
    """Returns a fold's teachers, one per student, and what a reader has to know.

    A student has the teacher that it names by its hash, else the one of its seed; what is left is
    paired in its order.

    Args:
        students: of one fold, in the order given.
        teachers: all, in the order given.

    Raises:
        UserError: no teacher was tested on the cases, or it is unknown which is whose.
    """
    if not teachers:
        return [None] * len(students), []
    tested = [run for run in teachers if run.cases == students[0].cases]
    if not tested:
        raise UserError(
            f"no --teacher was tested on the cases of {students[0].folder}. Give the student's own "
            "teacher (its folder teacher/ or teacher_evaluation/)."
        )
    if len(tested) == 1:
        return [tested[0]] * len(students), []
    # What is unknown (None) is no key: it would fit all that is unknown.
    named: dict[str | None, Run] = {run.params_hash: run for run in tested if run.params_hash}
    counts = collections.Counter(run.seed for run in tested if run.seed is not None)
    seeded: dict[int | None, Run] = {
        seed: run for run in tested for seed in [run.seed] if seed is not None and counts[seed] == 1
    }
    found = [named.get(run.teacher_hash) or seeded.get(run.seed) for run in students]
    taken = {run.folder for run in found if run}
    left = [run for run in tested if run.folder not in taken]
    lacking = [student for student, run in zip(students, found, strict=True) if run is None]
    if not lacking:
        return list(found), []
    if len(left) != len(lacking):
        raise UserError(
            f"--teacher: {_folders(tested)} were tested on the same cases, and which of them "
            f"taught {_folders(lacking)} is unknown. Give one teacher of all students, or one per "
            "student in the order of --student."
        )
    pairs = ", ".join(
        f"{run.folder} with {student.folder}" for run, student in zip(left, lacking, strict=True)
    )
    rest = iter(left)
    return [run or next(rest) for run in found], [
        f"Who taught some students is unknown or not given; paired in the order given: {pairs}."
    ]


def _folders(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.folder) for run in runs)
