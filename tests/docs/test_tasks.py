"""docs/tasks.md from top to bottom, on a made-up task; and a task of overlapping regions."""

import json
import pathlib

import nibabel as nib
import numpy as np
import pytest

import kdnet_jax
from tests.docs import doc_commands
from tests.helpers import commands, made_tasks

pytestmark = pytest.mark.once

ROOT = doc_commands.ROOT
SMALL = (
    "--config.split.train=0.5 --config.split.validation=0.25 --config.split.test=0.25 "
    "--config.inference.patch=8,32,32"
)


@pytest.fixture(scope="module")
def prostate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder in which the commands of docs/tasks.md were run, in their order."""
    folder = tmp_path_factory.mktemp("prostate")
    made_tasks.write_plain(folder / "Dataset005_Prostate", 8)
    smaller = {
        "prostate_00": "made_00",
        ":brats": ":smoke",
        "--config.loader.patch=32,128,128": f"--config.loader.patch=8,16,16 {SMALL}",
        "--config.inference.patch=32,128,128": "",
    }
    for line in doc_commands.shell_lines(ROOT / "docs" / "tasks.md"):
        words = doc_commands.replaced(line, smaller).split()[2:]
        done = commands.run(words[0].removeprefix("kdnet_jax."), *words[1:], cwd=folder)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return folder


def test_the_scores_are_of_the_classes_of_the_task(prostate: pathlib.Path) -> None:
    run = prostate / "runs" / "student"
    summary = json.loads((run / "evaluation" / "summary.json").read_text("utf-8"))
    assert list(summary["regions"]) == ["PZ", "TZ"]
    assert summary["modalities"] == ["t2"]
    rows = (run / "evaluation" / "cases.csv").read_text("utf-8").splitlines()
    assert {row.split(",")[1] for row in rows[1:]} == {"PZ", "TZ"}
    rescored = (prostate / "scores" / "evaluation" / "cases.csv").read_text("utf-8").splitlines()
    assert rescored == rows
    report = (run / "report.html").read_text("utf-8")
    assert ">PZ<" in report
    assert ">TC<" not in report


def test_the_mask_lies_on_the_scan(prostate: pathlib.Path) -> None:
    mask = nib.load(prostate / "mask.nii.gz")
    scan = nib.load(prostate / "Dataset005_Prostate" / "imagesTr" / "made_00_0000.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    assert (prostate / "mask.png").is_file()


def test_the_exported_student_knows_its_task(prostate: pathlib.Path) -> None:
    scan = prostate / "Dataset005_Prostate" / "imagesTr" / "made_00_0000.nii.gz"
    found = kdnet_jax.load(prostate / "exported").segment(scan)
    assert list(found.volumes_ml) == ["PZ", "TZ"]
    np.testing.assert_array_equal(
        found.mask, np.asarray(nib.load(prostate / "mask.nii.gz").dataobj)
    )


def test_thick_slices_are_not_halved(prostate: pathlib.Path) -> None:
    """3 x 1 x 1 mm, two levels: only the plane is halved, with kernels of one slice at first."""
    model = json.loads((prostate / "exported" / "model.json").read_text("utf-8"))
    assert model["network"]["strides"] == [[1, 2, 2]]
    assert model["network"]["kernels"][0] == [1, 3, 3]


def test_a_task_of_overlapping_regions(
    tmp_path: pathlib.Path, report_free_env: dict[str, str]
) -> None:
    folder = made_tasks.write_regions(tmp_path / "liver", 8)
    words = ["--config=configs/student.py:smoke", f"--config.task={folder}", *SMALL.split()[:-1]]
    words += [f"--config.data.data_dir={folder}", "--config.data.spacing=4"]
    words += ["--config.model.head=regions", f"--workdir={tmp_path / 'run'}"]
    words += [f"--config.data.root={tmp_path / 'built'}"]
    done = commands.run("main", *words, env=report_free_env)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text("utf-8"))
    assert list(summary["regions"]) == ["organ", "sick", "vessel"]
    assert summary["modalities"] == ["venous"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("--config.model.modalities=dwi", "dwi"),
        ("--config.task=nowhere", "nowhere"),
        ("--config.model.modalities=", "names no channel for a student"),
        ("--config.data.spacing=3,1", "3 values"),
    ],
)
def test_mistakes_are_one_message(
    prostate: pathlib.Path, changed: str, expected: str, tmp_path: pathlib.Path
) -> None:
    data = prostate / "Dataset005_Prostate"
    words = ["--config=configs/student.py:smoke", f"--config.task={data}"]
    words += [f"--config.data.data_dir={data}", "--config.model.modalities=t2", changed]
    done = commands.run("main", *words, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_task_and_a_teacher_of_one_are_refused(
    prostate: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = made_tasks.write_plain(tmp_path / "other", 4)
    document = dict(made_tasks.PLAIN) | {"labels": {"background": 0, "inner": 2, "outer": 1}}
    (other / "dataset.json").write_text(json.dumps(document), "utf-8")
    words = ["--config=configs/student.py:smoke", f"--config.task={other}"]
    words += [f"--config.data.data_dir={other}", "--config.model.modalities=t2"]
    mixed = commands.run("main", *words, f"--workdir={prostate / 'runs' / 'student'}")
    assert mixed.returncode == 2
    assert "holds a run of the task made prostate" in mixed.stderr
    teacher = f"--config.teacher.checkpoint={prostate / 'runs' / 'student' / 'teacher'}"
    taught = commands.run("main", *words, teacher, f"--workdir={tmp_path / 'run'}")
    assert taught.returncode == 2
    assert "is of the task made prostate" in taught.stderr
