"""A study: which runs it is made of, and that it goes on from wherever it was stopped."""

import contextlib
import json
import os
import pathlib
import signal
import time

import pytest
from ml_collections import config_dict

from configs import common, study
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.config import study as study_lib
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import studies
from tests.helpers import commands, compared_runs, forks

pytestmark = pytest.mark.once

ROLES = ("teacher", "baseline", "student")


def _keys(differences: list[tuple]) -> set[str]:
    return {key for key, *_ in differences}


# --- Its parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", common.PRESETS)
def test_a_part_is_the_run_of_its_own_config_file(preset: str) -> None:
    config = study.get_config(preset)
    for part in study_lib.parts(config, pathlib.Path("runs/x")):
        own = reading.read(common.base_config(part.role, preset))
        allowed = {"seed", "split.folds", "split.fold", "teacher.checkpoint"}
        allowed |= {"data.phantom.cases", "split.train", "split.validation", "split.test"}
        if part.arm in study_lib.ARMS:
            allowed |= {"split.labelled", "split.labelled_seed"}
        assert _keys(flat_keys.differences(part.experiment.document, own.document)) <= allowed


def test_student_and_baseline_of_a_part_differ_in_the_teacher_alone() -> None:
    _, baseline, student = study_lib.parts(study.get_config(), pathlib.Path("runs/x"))[:3]
    changed = _keys(
        flat_keys.differences(*(each.experiment.document for each in (baseline, student)))
    ) - {"role"}
    assert {key.split(".")[0] for key in changed} == {"distillation", "teacher"}


def test_sequences_are_dropped_in_the_teacher_s_training_alone() -> None:
    config = study.get_config()
    config.augment.modality_dropout = 0.3
    for part in study_lib.parts(config, pathlib.Path("runs/x"))[:3]:
        dropout = part.experiment.augment.modality_dropout
        assert dropout == (0.3 if part.role == "teacher" else 0.0)


def test_the_student_of_a_fold_and_seed_has_the_teacher_of_the_same() -> None:
    config = study.get_config("smoke")
    config.study.folds, config.study.seeds, config.seed = 3, 2, 7
    parts = study_lib.parts(config, pathlib.Path("runs/x"))
    assert len(parts) == 3 * 2 * 3
    assert len({part.folder for part in parts}) == len(parts)
    teachers = {(part.fold, part.experiment.seed): part for part in parts if part.role == "teacher"}
    assert set(teachers) == {(fold, seed) for fold in range(3) for seed in (7, 8)}
    for part in parts:
        experiment = part.experiment
        assert (experiment.split.folds, experiment.split.fold) == (3, part.fold)
        assert f"seed-{experiment.seed}" in part.folder.parts
        if part.role == "student":
            teacher = teachers[part.fold, experiment.seed]
            assert experiment.teacher.checkpoint == str(teacher.folder)
            # A teacher is finished before its student starts.
            assert parts.index(teacher) < parts.index(part)


def test_more_seeds_leave_the_former_parts_as_they_are() -> None:
    config = study.get_config()
    former = {part.folder: part.experiment for part in study_lib.parts(config, pathlib.Path())}
    config.study.seeds = 5
    now = {part.folder: part.experiment for part in study_lib.parts(config, pathlib.Path())}
    assert former.items() <= now.items()


@pytest.mark.parametrize(("key", "value"), [("seeds", 0), ("folds", 1), ("folds", -2)])
def test_numbers_that_cannot_be_are_refused(key: str, value: int) -> None:
    config = study.get_config()
    config.study[key] = value
    with pytest.raises(UserError, match=rf"study\.{key} is {value}"):
        study_lib.parts(config, pathlib.Path())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split.file": "a.json", "study.folds": 2},
            r"study\.folds is 2 and split\.file is 'a\.json'",
        ),
        (
            {"teacher.checkpoint": "a"},
            r"teacher\.checkpoint is 'a', and a study trains the teacher",
        ),
        ({"teacher.maps": "a"}, r"teacher\.maps is 'a', and a study trains the teacher"),
    ],
)
def test_what_every_part_would_ignore_is_refused(changes: dict[str, object], message: str) -> None:
    config = study.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        study_lib.parts(config, pathlib.Path())


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("phantom", {"teacher.widths": (16, 32, 64)}, "they cannot be compared"),
        ("fewlabels", {"teacher.modalities": "t1,t2"}, r"the student sees t1ce, the teacher \S+E-"),
        ("fewlabels", {"distillation.confidence": "agreement"}, "is one network, with which no"),
        ("phantom", {"train.start": "nowhere"}, "nowhere"),
    ],
)
def test_what_its_last_part_would_refuse_is_refused_before_the_first(
    preset: str, changes: dict[str, object], message: str, tmp_path: pathlib.Path
) -> None:
    config = study.get_config(preset)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        studies.run(study_lib.parts(config, tmp_path), tmp_path, study_lib.primary(config), 0.05)
    assert list(tmp_path.iterdir()) == []


# --- Arms of few labels ----------------------------------------------------------------------


def few_labels(**changes: object) -> config_dict.ConfigDict:
    config = study.get_config("fewlabels")
    config.update_from_flattened_dict(changes)
    return config


def test_the_arms_of_a_seed_differ_in_what_they_are_named_for() -> None:
    parts = study_lib.parts(few_labels(**{"study.seeds": 2, "seed": 3}), pathlib.Path("x"))
    # Whether there is room is known before a student is trained.
    assert "".join(part.arm for part in parts) == "EADEAD" + "BCBC"
    parts = [*parts[:3], *parts[6:8], *parts[3:6], *parts[8:]]
    folders = ["E-teacher", "A-baseline", "D-all-labels", "B-self-training", "C-student"]
    assert [str(part.folder) for part in parts[5:]] == [f"x/seed-4/{name}" for name in folders]
    e, a, d, b, c = (part.experiment.document for part in parts[5:])
    assert _keys(flat_keys.differences(a, e)) == {"role", "model.modalities", "train.steps"}
    assert flat_keys.differences(a, d) == [("split.labelled", 8, 0)]
    assert flat_keys.differences(b, c) == [
        ("teacher.checkpoint", "x/seed-4/A-baseline", "x/seed-4/E-teacher")
    ]
    changed = {key.split(".")[0] for key in _keys(flat_keys.differences(a, c))}
    assert changed == {"role", "distillation", "teacher"}
    # The labelled cases are drawn anew for each seed, the other parts are not.
    assert [each["split"]["labelled_seed"] for each in (e, a, d, b, c)] == [4] * 5
    before = parts[1].experiment.document
    assert _keys(flat_keys.differences(before, a)) == {"seed", "split.labelled_seed"}


def test_arms_may_be_added_later() -> None:
    everything = study_lib.parts(few_labels(), pathlib.Path())
    first = study_lib.parts(few_labels(**{"study.arms": "D, A,E"}), pathlib.Path())
    assert [part.arm for part in first] == list("EAD") * 5
    assert all(part in everything for part in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study.arms": "A,F"}, r"study\.arms is 'F': choose one of E, A, D, B, C"),
        ({"study.arms": "A,C"}, r"study\.arms is A,C: the teacher of C is E, which is not named"),
        ({"study.arms": "B,D"}, r"the teacher of B is A"),
        ({"study.arms": "E,A"}, r"study\.arms is E,A: there is nothing to compare"),
        ({"split.labelled": 0}, r"split\.labelled is 0, .*arm D would repeat arm A"),
    ],
)
def test_arms_that_make_no_study_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study_lib.parts(few_labels(**changes), pathlib.Path())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("C-A", r"study\.primary is 'C-A': give"),
        ("C-D:dice:mean", r"the difference is 'C-D': choose one of C-A"),
        ("C-A:dise:mean", r"the metric is 'dise': choose one of dice"),
        ("C-A:dice:XT", r"the region is 'XT': choose one of mean, ET"),
    ],
)
def test_an_endpoint_that_is_none_is_refused(
    given: str, message: str, tmp_path: pathlib.Path
) -> None:
    config = few_labels(**{"study.primary": given})
    with pytest.raises(UserError, match=message):
        studies.run(study_lib.parts(config, tmp_path), tmp_path, study_lib.primary(config), 0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_primary_endpoint_stays_once_a_run_was_begun(tmp_path: pathlib.Path) -> None:
    config = few_labels(**{"study.primary": "C-B:dice:mean"})
    (tmp_path / "study.json").write_text('{"primary": "C-A:dice:mean"}', "utf-8")
    (tmp_path / "seed-0" / "E-teacher").mkdir(parents=True)
    with pytest.raises(UserError, match="was begun to decide C-A:dice:mean"):
        studies.run(study_lib.parts(config, tmp_path), tmp_path, study_lib.primary(config), 0.05)


@pytest.mark.parametrize(("labelled", "says"), [(4, "no scan is left"), (5, "has 4 cases")])
def test_labels_for_all_or_more_are_refused_before_a_run(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    labelled: int,
    says: str,
) -> None:
    config = study.get_config("smoke")
    config.update_from_flattened_dict(
        {"data.data_dir": str(tiny_cohort), "data.root": str(built), "study.folds": 0}
        | {"study.arms": "A,D", "split.labelled": labelled}
    )
    with pytest.raises(UserError, match=rf"split\.labelled is {labelled}.*{says}"):
        studies.run(study_lib.parts(config, tmp_path), tmp_path, study_lib.primary(config), 0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arms", ["", "A,D"])
@pytest.mark.parametrize("by_file", [False, True])
def test_one_test_case_is_refused_before_a_run(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    arms: str,
    by_file: bool,
) -> None:
    config = study.get_config("smoke")
    config.update_from_flattened_dict(
        {"data.data_dir": str(tiny_cohort), "data.root": str(built), "study.folds": 0}
        # Of eight patients one is tested.
        | {"split.train": 0.75, "split.validation": 0.125, "split.test": 0.125}
        | {"study.arms": arms, "split.labelled": 2 if arms else 0}
    )
    workdir = tmp_path / "study"
    if by_file:
        first, second, third, *_ = sorted(each.name for each in tiny_cohort.iterdir())
        parts = {"train": [first], "validation": [second], "test": [third]}
        (tmp_path / "split.json").write_text(json.dumps(parts), "utf-8")
        config.split.file, config.split.labelled = str(tmp_path / "split.json"), int(bool(arms))
    with pytest.raises(UserError, match=r"has one test case, \S+: a study compares"):
        studies.run(study_lib.parts(config, workdir), workdir, study_lib.primary(config), 0.05)
    assert not workdir.exists()


# Dice of the baselines is 0.3; that of arm D, and whether a student is then trained.
@pytest.mark.parametrize(
    ("of_all_labels", "changes", "trained"),
    [
        (0.34, {}, False),
        (0.34, {"study.least_room": 0.15}, False),
        (0.36, {}, True),
        (0.34, {"study.least_room": 0.03}, True),
        (0.2, {"study.least_room": -1.0}, True),
    ],
)
def test_students_are_trained_where_there_is_room(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    of_all_labels: float,
    changes: dict[str, object],
    trained: bool,
) -> None:
    config = study.get_config("smoke")
    config.update_from_flattened_dict(
        {"data.data_dir": str(tiny_cohort), "data.root": str(built), "study.folds": 0}
        | {"study.arms": "E,A,D,B,C", "split.labelled": 2}
        | changes
    )
    planned = study_lib.parts(config, tmp_path)
    for part in planned:
        if part.role != "student":
            # Of D, the seeds differ by another number.
            level = of_all_labels + 0.02 * part.experiment.seed - 0.01 if part.arm == "D" else 0.3
            compared_runs.write_finished(part, [level - 0.02, level, level + 0.02])
    begun: list[pathlib.Path] = []

    def begin(experiment: object, folder: pathlib.Path) -> None:
        begun.append(folder)
        raise InterruptedError

    monkeypatch.setattr(studies.runner, "run", begin)
    context = pytest.raises(InterruptedError) if trained else contextlib.nullcontext()
    with caplog.at_level("INFO"), context:
        studies.run(planned, tmp_path, study_lib.primary(config), config.study.least_room)
    assert begun == ([tmp_path / "seed-0" / "B-self-training"] if trained else [])
    assert ("D - A is +0.040 in mean Dice, below" in caplog.text) != trained
    assert (tmp_path / "report.html").is_file() != trained
    if not trained:
        said = f"Room: D - A is below {config.study.least_room}."
        assert said in (tmp_path / "report.html").read_text("utf-8")


# --- The real thing --------------------------------------------------------------------------


def test_a_stopped_study_goes_on_and_compares(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    report_free_env: dict[str, str],
    tmp_path: pathlib.Path,
) -> None:
    words = [
        "--config=configs/study.py:smoke",
        f"--config.data.data_dir={tiny_cohort}",
        f"--config.data.root={built}",
        "--config.study.seeds=1",
        f"--workdir={tmp_path / 'study'}",
    ]
    first = tmp_path / "study" / "fold-0" / "seed-0" / "teacher"
    started = ["-m", "kdnet_jax.main", *words]
    env = forks.with_packages(report_free_env)
    with forks.started(started, cwd=commands.ROOT, env=env, limit_s=200) as process:
        while not process.is_over() and not (first / "report.html").exists():
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait().code == 143
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert before

    done = commands.run("main", *words, env=report_free_env)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    assert f"{first}: finished" in done.stdout
    assert "The student differs from the baseline by" in done.stdout
    _check_folds(tmp_path / "study")
    text = (tmp_path / "study" / "report.html").read_text("utf-8")
    for role in ROLES:
        assert f"fold-1/seed-0/{role}/report.html" in text
    assert (tmp_path / "study" / "comparison" / "comparison.json").is_file()


def _check_folds(folder: pathlib.Path) -> None:
    """Each case is tested in one fold; the roles of a fold share its split."""
    tested = []
    for fold in (0, 1):
        parts = [folder / f"fold-{fold}" / "seed-0" / role for role in ROLES]
        splits = [json.loads((part / "split.json").read_text("utf-8")) for part in parts]
        assert splits[0] == splits[1] == splits[2]
        assert not set(splits[0]["test"]) & {*splits[0]["train"], *splits[0]["validation"]}
        tested += splits[0]["test"]
        summary = json.loads((parts[2] / "evaluation" / "summary.json").read_text("utf-8"))
        assert summary["teacher"]["path"] == str(parts[0])
    assert len(tested) == len(set(tested)) == 8
