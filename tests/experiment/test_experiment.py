"""A run from the command to its report, on tiny cases; and the mistakes that stop one."""

import csv
import errno
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import nibabel as nib
import numpy as np
import pytest
from ml_collections import config_dict

from configs import common, pretrain
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import runner
from kdnet_jax.runs import teachers, trained
from tests.helpers import commands, tiny_cases

COLUMNS = (
    "case,region,dice,hd95_mm,nsd,sensitivity,specificity,volume_ref_mm3,volume_pred_mm3,"
    "ref_empty,pred_empty,nsd_2mm,lesion_dice,lesion_hd95_mm,lesions_ref,lesions_pred,"
    "lesions_missed,lesions_false"
)
NOISE = ("warning", "error", "traceback", "orbax", "absl", "xla", "tensorflow")


# --- A whole run ---------------------------------------------------------------------------------


def test_the_student_runs_and_says_nothing_odd(smoke_student: commands.Finished) -> None:
    assert smoke_student.code == 0, smoke_student.err
    said = (smoke_student.out + smoke_student.err).lower()
    assert not [word for word in NOISE if word in said.replace(str(smoke_student.folder), "")]
    assert "report" in said


@pytest.mark.parametrize("part", ["", "teacher"])
def test_a_run_s_folder(smoke_student: commands.Finished, part: str) -> None:
    folder = smoke_student.folder / part
    for name in (
        "config.json",
        "split.json",
        "training_data.json",
        "starts.jsonl",
        "metrics.jsonl",
        "calibration.json",
        "evaluation/summary.json",
        "evaluation/calibration.json",
        "evaluation/postprocessed/summary.json",
    ):
        assert (folder / name).is_file(), name
    assert list(folder.glob("events.out.tfevents.*"))
    assert any(path.name.isdigit() for path in (folder / "checkpoints").iterdir())
    lines = (folder / "evaluation" / "cases.csv").read_text("utf-8").splitlines()
    assert lines[0] == COLUMNS
    rows = list(csv.DictReader(lines))
    test = json.loads((folder / "split.json").read_text("utf-8"))["test"]
    expected = [(case, region) for case in test for region in ("ET", "TC", "WT")]
    assert sorted((row["case"], row["region"]) for row in rows) == sorted(expected)
    leftovers = [path for path in folder.rglob("*") if path.name.endswith(".part")]
    assert not leftovers


@pytest.mark.once
def test_thresholds_and_the_decision_without_them(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    report_free_env: dict[str, str],
) -> None:
    """The same parameters twice: what the fixed decision comes to is what it came to alone."""
    summaries = {}
    for decision in ("fixed", "validation"):
        words = ["--config=configs/baseline.py:smoke", f"--config.data.data_dir={tiny_cohort}"]
        words += [f"--config.data.root={built}", f"--workdir={tmp_path / decision}"]
        # One validation, so that the best checkpoint is the same.
        words += [f"--config.inference.thresholds={decision}", "--config.train.validate_every=6"]
        done = commands.run("main", *words, env=report_free_env)
        assert done.returncode == 0, done.stderr
        summary = (tmp_path / decision / "evaluation/summary.json").read_text("utf-8")
        summaries[decision] = json.loads(summary)
    fixed, chosen = summaries.values()
    assert fixed["params_hash"] == chosen["params_hash"]
    alone = {name: row["dice"]["mean"] for name, row in fixed["regions"].items()}
    assert chosen["decision"]["fixed_dice"] == pytest.approx(alone, abs=1e-3)
    thresholds = json.loads((tmp_path / "validation/thresholds.json").read_text("utf-8"))
    assert chosen["decision"]["thresholds"] == thresholds["thresholds"]
    # The second start repeats nothing.
    again = commands.run("main", *words, env=report_free_env)
    assert "already evaluated" in again.stdout
    # Another calibration, other scores of the probabilities.
    (tmp_path / "validation" / "calibration.json").unlink()
    calibrated = commands.run("main", *words, env=report_free_env)
    assert calibrated.returncode == 0, calibrated.stderr
    assert "already evaluated" not in calibrated.stdout
    assert (tmp_path / "validation" / "calibration.json").is_file()


def test_predictions_lie_on_the_scan_s_grid(
    smoke_student: commands.Finished, tiny_cohort: pathlib.Path
) -> None:
    masks = sorted((smoke_student.folder / "predictions").iterdir())
    assert len(masks) == 2
    for path in masks:
        case = path.name.removesuffix(".nii.gz")
        mask = nib.load(path)
        scan = nib.load(tiny_cohort / case / f"{case}_t1ce.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}


def test_the_report_shows_teacher_and_student(smoke_student: commands.Finished) -> None:
    text = (smoke_student.folder / "report.html").read_text("utf-8")
    assert "The teacher (t1, t1ce, t2, flair) reaches a mean test Dice of" in text
    assert "The student (t1ce) reaches a mean test Dice of" in text
    assert "python -m kdnet_jax.predict" in text


def test_the_student_holds_no_teacher(smoke_student: commands.Finished) -> None:
    student = trained.load_run(smoke_student.folder)
    stored = "".join(
        path.read_text("utf-8", errors="ignore")
        for path in (smoke_student.folder / "checkpoints").rglob("_METADATA")
    )
    assert stored
    assert "teacher" not in stored
    assert student.model.role == "student"


@pytest.mark.once
def test_the_same_command_again_repeats_nothing(
    smoke_student: commands.Finished,
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    report_free_env: dict[str, str],
) -> None:
    before = (smoke_student.folder / "evaluation" / "cases.csv").stat().st_mtime_ns
    done = commands.run(
        "main",
        "--config=configs/student.py:smoke",
        f"--config.data.data_dir={tiny_cohort}",
        f"--config.data.root={built}",
        f"--workdir={smoke_student.folder}",
        env=report_free_env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already evaluated") == 2
    assert (smoke_student.folder / "evaluation" / "cases.csv").stat().st_mtime_ns == before


@pytest.mark.once
def test_sigterm_saves_and_the_same_command_goes_on(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    command_env: dict[str, str],
    report_free_env: dict[str, str],
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "run"
    words = [
        "--config=configs/baseline.py:smoke",
        f"--config.data.data_dir={tiny_cohort}",
        f"--config.data.root={built}",
        f"--workdir={folder}",
        "--config.train.steps=300",
        "--config.train.validate_every=300",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "kdnet_jax.main", *words],
        cwd=commands.ROOT,
        env=command_env,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        log, limit = folder / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < limit and not (log.is_file() and log.stat().st_size):
            time.sleep(0.1)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "the same command resumes from there" in said
    assert "Traceback" not in said
    again = commands.run("main", *words, env=report_free_env)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    steps = [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 300


# --- Teachers that are given ---------------------------------------------------------------------


@pytest.fixture
def config(tiny_cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    """A baseline on the tiny cohort."""
    return _on(common.base_config("baseline", "smoke"), tiny_cohort, built)


@pytest.fixture
def student(
    tiny_cohort: pathlib.Path, built: pathlib.Path, smoke_student: commands.Finished
) -> config_dict.ConfigDict:
    """A student of the teacher that `smoke_student` trained."""
    config = _on(common.base_config("student", "smoke"), tiny_cohort, built)
    config.teacher.checkpoint = str(smoke_student.folder / "teacher")
    return config


def _on(
    config: config_dict.ConfigDict, data_dir: str | pathlib.Path, root: str | pathlib.Path
) -> config_dict.ConfigDict:
    config.data.data_dir, config.data.root = str(data_dir), str(root)
    return config


@pytest.mark.once
@pytest.mark.usefixtures("without_report")
def test_a_given_teacher_is_used_and_must_stay_the_same(
    student: config_dict.ConfigDict, smoke_student: commands.Finished, tmp_path: pathlib.Path
) -> None:
    folder, teacher = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(smoke_student.folder / "teacher", teacher)
    student.teacher.checkpoint = str(teacher)
    student.train.steps, student.train.validate_every = 2, 2
    runner.run(reading.read(student), folder)
    assert not (folder / "teacher").exists()
    summary = json.loads((folder / "evaluation" / "summary.json").read_text("utf-8"))
    assert summary["teacher"]["hash"] == trained.load_run(teacher).params_hash

    # It is not forgotten: another one would be trained first.
    student.teacher.checkpoint = ""
    with pytest.raises(UserError, match=f"Give --config.teacher.checkpoint={teacher}"):
        runner.run(reading.read(student), folder)
    assert not (folder / "teacher").exists()
    student.teacher.checkpoint = str(teacher)

    # Another network of the same form takes the teacher's place.
    other = _on(common.base_config("teacher", "smoke"), student.data.data_dir, student.data.root)
    other.seed = 1
    other.train.steps = other.train.validate_every = 1
    shutil.rmtree(teacher)
    runner.run(reading.read(other), teacher)
    with pytest.raises(UserError, match="was trained with teacher"):
        runner.run(reading.read(student), folder)


@pytest.mark.once
@pytest.mark.usefixtures("without_report")
def test_a_network_starts_from_one_that_was_pretrained(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _on(pretrain.get_config("smoke"), tiny_cohort, built)
    config.train.steps, config.train.validate_every, config.split.labelled = 2, 1, 1
    folder, run = tmp_path / "pretrained", tmp_path / "run"
    runner.run(reading.read(config), folder)
    assert "explained_t1ce" in (folder / "metrics.jsonl").read_text("utf-8")
    assert not (folder / "evaluation").exists()
    with pytest.raises(UserError, match=r"and segments nothing.*--config.train.start="):
        trained.load_run(folder)
    # All training cases are known, with a reference in use and without.
    split = json.loads((folder / "split.json").read_text("utf-8"))
    seen = {*split["train"], *split["unlabelled"], *split["validation"]}
    assert {*teachers.known_cases(folder).ids} == seen

    config = _on(common.base_config("baseline", "smoke"), tiny_cohort, built)
    config.train.start, config.optimizer.learning_rate = str(folder), 1e-12
    config.train.steps = config.train.validate_every = 1
    runner.run(reading.read(config), run)
    start, reached = (trained.load_run(each, pretrained=True) for each in (folder, run))
    same = jax.tree.map(np.allclose, start.params["params"], reached.params["params"])
    del same["head"]
    assert all(jax.tree.leaves(same))
    assert {*teachers.known_cases(run).ids} == seen
    # Others test here.
    config.split.seed = 3
    with pytest.raises(UserError, match=r"train.start .* was trained or selected on \d patients"):
        runner.run(reading.read(config), tmp_path / "leak")


@pytest.mark.once
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.modalities", "t1,t1ce,t2", "needs flair"),
        ("model.head", "regions", "--config.model.head=softmax"),
        ("model.widths", (4, 6), "they cannot be compared"),
        ("data.spacing", 5.0, "was trained at data.spacing 6.0"),
        ("split.seed", 3, "test cases"),
    ],
)
def test_a_teacher_that_cannot_teach(
    student: config_dict.ConfigDict, tmp_path: pathlib.Path, key: str, value: object, words: str
) -> None:
    with student.unlocked():
        student.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        runner.run(reading.read(student), tmp_path / "run")


# --- Mistakes ------------------------------------------------------------------------------------


def _cut(case: pathlib.Path) -> None:
    path = case / f"{case.name}_t1ce.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop(case: pathlib.Path) -> None:
    (case / f"{case.name}_t1ce.nii.gz").unlink()


def _text(case: pathlib.Path) -> None:
    with gzip.open(case / f"{case.name}_t1ce.nii.gz", "wt") as file:
        file.write("this is no scan\n" * 100)


def _shift(case: pathlib.Path) -> None:
    path = case / f"{case.name}_t1ce.nii.gz"
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 40
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def _label(case: pathlib.Path) -> None:
    path = case / f"{case.name}_seg.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[values == 4] = 7
    nib.save(nib.Nifti1Image(values, image.affine), path)


@pytest.mark.once
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_cut, "t1ce"), (_drop, "t1ce"), (_text, "t1ce"), (_shift, "t1ce"), (_label, "7")],
    ids=["truncated", "missing sequence", "text", "grids", "labels"],
)
def test_spoilt_cases_are_named(
    config: config_dict.ConfigDict,
    tmp_path: pathlib.Path,
    spoil: Callable[[pathlib.Path], None],
    words: str,
) -> None:
    tiny_cases.write_cohort(tmp_path / "data", 4, edge=16, radius=4.0, spacing=8.0)
    spoil(tmp_path / "data" / "BraTS2021_00003")
    config.data.data_dir, config.data.root = str(tmp_path / "data"), str(tmp_path / "built")
    with pytest.raises(UserError, match=words) as error:
        runner.run(reading.read(config), tmp_path / "run")
    assert "BraTS2021_00003" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_folders_without_cases(config: config_dict.ConfigDict, tmp_path: pathlib.Path) -> None:
    for name, content in (("absent", None), ("empty", ""), ("unknown", "scan.txt")):
        folder = tmp_path / name
        if content is not None:
            folder.mkdir()
        if content:
            (folder / content).write_text("x", "utf-8")
        config.data.data_dir = str(folder)
        with pytest.raises(UserError, match=name):
            runner.run(reading.read(config), tmp_path / "run")


@pytest.mark.once
def test_a_folder_of_another_config(
    config: config_dict.ConfigDict, smoke_student: commands.Finished
) -> None:
    with pytest.raises(UserError, match="holds a run of another config: role was 'student'"):
        runner.run(reading.read(config), smoke_student.folder)


@pytest.mark.once
def test_a_teacher_that_is_no_run(student: config_dict.ConfigDict, tmp_path: pathlib.Path) -> None:
    absent = tmp_path / "absent"
    student.teacher.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r"^teacher.checkpoint: .* is no run of kdnet_jax: it has"):
        runner.run(reading.read(student), tmp_path / "run")
    for checkpoint in (str(absent), f"{absent};{absent}2"):
        student.teacher.checkpoint = checkpoint
        with pytest.raises(UserError, match=rf"^teacher.checkpoint: {absent} .*no such folder"):
            runner.run(reading.read(student), tmp_path / "run")


@pytest.mark.once
def test_a_start_that_is_not_there(config: config_dict.ConfigDict, tmp_path: pathlib.Path) -> None:
    config.train.start = str(tmp_path / "absent")
    with pytest.raises(UserError, match=rf"^train.start: {tmp_path}/absent .*no such folder"):
        runner.run(reading.read(config), tmp_path / "run")


@pytest.mark.once
def test_a_workdir_below_a_file(config: config_dict.ConfigDict, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(UserError, match="file"):
        runner.run(reading.read(config), tmp_path / "file" / "run")


@pytest.mark.once
def test_a_full_disk(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*unused: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"[Nn]o space left|disk is full"):
        runner.run(reading.read(config), tmp_path / "run")
