"""A student of nnU-Net's folds: trained, and gone on with when the folds are no longer there."""

import json
import pathlib
import shutil

import pytest

pytest.importorskip("torch")

from tests.helpers import commands, foreign_folders

SIZES = {"spacing": [6.0, 6.0, 6.0], "patch_size": [16, 16, 16]}


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("nnUNet_results")
    foreign_folders.results(folder, folds=(0, 1), plan_changes=SIZES)
    return folder


def _words(
    tiny_cohort: pathlib.Path, built: pathlib.Path, teacher: pathlib.Path, run: pathlib.Path
) -> list[str]:
    words = ["--config=configs/student.py:smoke", f"--config.data.data_dir={tiny_cohort}"]
    words += [f"--config.data.root={built}", f"--config.teacher.checkpoint={teacher}"]
    return [*words, "--config.model.head=regions", f"--workdir={run}"]


def test_folds_teach_a_student_that_outlives_them(
    folds: pathlib.Path,
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    report_free_env: dict[str, str],
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    shutil.copytree(folds, copy)
    words = _words(tiny_cohort, built, copy, run)
    refused = commands.run("main", *words, env=report_free_env)
    assert refused.returncode == 2
    assert "no bottleneck" in refused.stderr
    assert "--config.distillation.latent_weight=0" in refused.stderr
    assert not run.exists()

    words.append("--config.distillation.latent_weight=0")
    done = commands.run("main", *words, env=report_free_env)
    assert done.returncode == 0, done.stderr
    assert "2 network(s) of t1, t1ce, t2, flair" in done.stdout
    kept = json.loads((run / "teacher_model/model.json").read_text("utf-8"))
    assert kept["network"]["members"] == 2
    assert (run / "teacher_evaluation/evaluation/summary.json").is_file()

    # The same folds elsewhere.
    moved = copy.rename(tmp_path / "moved")
    elsewhere = [word.replace(str(copy), str(moved)) for word in words]
    again = commands.run("main", *elsewhere, env=report_free_env)
    assert again.returncode == 0, again.stderr
    others = foreign_folders.results(tmp_path / "others", folds=(0, 1, 2), plan_changes=SIZES)
    elsewhere = [word.replace(str(copy), str(others)) for word in words]
    refused = commands.run("main", *elsewhere, env=report_free_env)
    assert refused.returncode == 2
    assert "was begun with another teacher" in refused.stderr

    shutil.rmtree(moved)
    # Without its last checkpoint the run has something to do again.
    newest = max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    log = (run / "metrics.jsonl").read_text("utf-8")
    again = commands.run("main", *words, env=report_free_env)
    assert again.returncode == 0, again.stderr
    assert "resuming from step 3" in again.stdout
    assert commands.losses((run / "metrics.jsonl").read_text("utf-8")) == commands.losses(log)

    other = [*words, "--config.teacher.folds=0"]
    refused = commands.run("main", *other, env=report_free_env)
    assert refused.returncode == 2
    assert "teacher.folds" in refused.stderr


def test_a_folder_of_nnunet_s_is_no_checkpoint_to_predict_with(
    folds: pathlib.Path, tiny_cohort: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = [f"--checkpoint={folds}", f"--input={tiny_cohort}", "--output=masks"]
    done = commands.run("predict", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert f"python -m kdnet_jax.export --checkpoint={folds}" in done.stderr
    words = [f"--checkpoint={folds}", "--folds=1", "--output=model", "--formats=pytorch"]
    done = commands.run("export", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "model/model.json").read_text("utf-8")
    document = json.loads(text)
    # The name of its folder, but not where that lay.
    assert document["source"] == {"path": folds.name, "folds": ["1"]}
    assert str(folds.parent) not in text
    card = (tmp_path / "model/MODEL_CARD.md").read_text("utf-8")
    assert "Licence of the parameters: see the challenge." in card
    written = json.loads((tmp_path / "model/pytorch/foreign.json").read_text("utf-8"))
    assert written["licence"] == "see the challenge"
    assert written["about"]["parameters_sha256"] == document["parameters_sha256"]
    words = ["--checkpoint=model", f"--input={tiny_cohort}", "--output=masks"]
    done = commands.run("predict", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").iterdir())) == len(list(tiny_cohort.iterdir()))
