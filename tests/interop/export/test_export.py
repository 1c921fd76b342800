"""`export`: what is handed over is the run's best network, alone, and stands by itself."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.evaluation import score_files
from kdnet_jax.interop.export import artifact
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.prediction import inference
from kdnet_jax.runs import trained
from tests.helpers import commands, forks

# Nothing of the project, of Flax or of Orbax: JAX and NumPy alone.
_JAX_ALONE = """
import sys
import numpy as np
from jax import export
network = export.deserialize(open(sys.argv[1], "rb").read())
np.save(sys.argv[3], np.asarray(network.call(np.load(sys.argv[2]))))
assert not {name.partition(".")[0] for name in sys.modules} & {"kdnet_jax", "flax", "orbax"}
print(",".join(network.platforms))
"""


@pytest.fixture(scope="module")
def exported(
    smoke_student: commands.Finished, tmp_path_factory: pytest.TempPathFactory
) -> commands.Finished:
    folder = tmp_path_factory.mktemp("exports") / "new/student"
    words = [f"--checkpoint={smoke_student.folder}", f"--output={folder}", "--licence=CC-BY-4.0"]
    done = commands.run_anew("export", *words)
    return commands.Finished(done.returncode, done.stdout, done.stderr, folder)


def test_everything_is_there(exported: commands.Finished) -> None:
    assert exported.code == 0, exported.err
    assert {path.name for path in exported.folder.iterdir()} == {
        *("model.json", "params", "model.jaxexport", "MODEL_CARD.md", "training_data.json")
    }
    assert [path.name for path in exported.folder.parent.iterdir()] == ["student"]


def test_it_predicts_what_the_run_predicts(
    exported: commands.Finished,
    smoke_student: commands.Finished,
    sample_dir: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    scan = min(sample_dir.glob("*/*_t1ce.nii.gz"))
    masks = []
    for folder in (smoke_student.folder, exported.folder):
        output = tmp_path / f"{len(masks)}.nii.gz"
        words = [f"--checkpoint={folder}", f"--input={scan}", f"--output={output}"]
        done = commands.run("predict", *words)
        assert done.returncode == 0, done.stderr
        masks.append(np.asarray(nib.load(output).dataobj))
        # The statistics of the training's scans came along.
        assert "it is not checked whether a scan looks as in training" not in done.stdout
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def test_jax_alone_runs_it_on_a_real_case(
    exported: commands.Finished, sample_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = trained.load_run(exported.folder)
    scan = prepare.unlabelled_case({"t1ce": min(sample_dir.glob("*/*_t1ce.nii.gz"))})
    case, _ = prepare.prepare_case(scan, spacing=run.model.spacing)
    divisor = run.model.network.divisor
    d, h, w = (
        edge // unit * unit for edge, unit in zip(case.image.shape[:3], divisor, strict=True)
    )
    image = case.image[None, :d, :h, :w].astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    paths = [exported.folder / "model.jaxexport", tmp_path / "image.npy", tmp_path / "found.npy"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _JAX_ALONE, *map(str, paths)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "cpu,cuda,tpu"
    network = run.model.network.module()
    expected = inference.make_predict(network.apply, run.model.head, mirror=False)
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, expected(run.params, image), atol=1e-4)
    assert np.ptp(found) > 0.1


@pytest.mark.once
def test_it_holds_no_teacher(exported: commands.Finished, smoke_student: commands.Finished) -> None:
    document = json.loads((exported.folder / "model.json").read_text("utf-8"))
    own = trained.load_run(smoke_student.folder)
    teacher = trained.load_run(smoke_student.folder / "teacher")
    count = sum(x.size for x in jax.tree.leaves(own.params))
    assert document["parameters"] == count
    held = (exported.folder / "model.jaxexport").read_bytes()
    for leaf in jax.tree.leaves(own.params):
        assert np.asarray(leaf).tobytes()[:64] in held
    for leaf in jax.tree.leaves(teacher.params):
        if np.ptp(leaf) > 0:
            assert np.asarray(leaf).tobytes()[:64] not in held
    stored = sum(path.stat().st_size for path in (exported.folder / "params").rglob("*"))
    assert stored < 8 * count + 50_000
    assert document["teacher"] == {"hash": teacher.params_hash}


def test_the_document_says_where_it_comes_from(
    exported: commands.Finished, smoke_student: commands.Finished
) -> None:
    document = json.loads((exported.folder / "model.json").read_text("utf-8"))
    summary = json.loads((smoke_student.folder / "evaluation/summary.json").read_text("utf-8"))
    split = json.loads((smoke_student.folder / "split.json").read_text("utf-8"))
    measured = score_files.read_calibration(smoke_student.folder)
    assert document["parameters_sha256"] == summary["params_hash"]
    assert document["test"]["mean_dice"] == summary["mean_dice"]
    for region, row in summary["regions"].items():
        told = document["test"]["regions"][region]
        assert {key: told[key] for key in row if key not in ("dice", "nsd", "hd95_mm")} == {
            key: row[key] for key in row if key not in ("dice", "nsd", "hd95_mm")
        }
        assert told["dice"].items() >= row["dice"].items()
        calibrated = document["test"]["calibration"][region]
        assert calibrated["ece_after"] is not None
        assert measured["regions"][region].items() >= calibrated.items()
    assert document["region_classes"]["TC"] == [1, 3]
    assert document["licence"] == "CC-BY-4.0"
    assert set(document["known_cases"]) == {*split["train"], *split["validation"]}
    assert document["provenance"]["jax"] == jax.__version__


def test_another_mesh_reads_it(exported: commands.Finished) -> None:
    script = (
        "import pathlib, sys; from kdnet_jax.runs import trained; import jax;"
        "from kdnet_jax.parallel import sharding;"
        "run = trained.load_run(pathlib.Path(sys.argv[1])); mesh = sharding.make_mesh(2, 2);"
        "jax.block_until_ready(sharding.replicate(run.params, mesh)); print(run.params_hash)"
    )
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    done = commands.python("-c", script, exported.folder, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == trained.load_run(exported.folder).params_hash


def test_a_model_folder_is_exported_again(
    exported: commands.Finished, tmp_path: pathlib.Path
) -> None:
    words = [f"--checkpoint={exported.folder}", f"--output={tmp_path / 'again'}", "--formats="]
    done = commands.run("export", *words)
    assert done.returncode == 0, done.stderr
    again, first = (trained.load_run(folder) for folder in (tmp_path / "again", exported.folder))
    assert (again.params_hash, again.model) == (first.params_hash, first.model)
    assert not (tmp_path / "again/model.jaxexport").exists()
    cards = [(each / "MODEL_CARD.md").read_text("utf-8") for each in (again.folder, first.folder)]
    ours, theirs = ([line for line in card.splitlines() if "`" not in line] for card in cards)
    assert ours[1:] == theirs[1:]
    assert "CC-BY-4.0" in cards[0]
    assert "| WT | " in cards[0]


def test_an_exported_teacher_teaches(
    smoke_student: commands.Finished,
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    report_free_env: dict[str, str],
) -> None:
    teacher = tmp_path / "teacher"
    words = [f"--checkpoint={smoke_student.folder / 'teacher'}", f"--output={teacher}"]
    assert commands.run("export", *words, "--formats=").returncode == 0
    words = ["--config=configs/student.py:smoke", f"--config.data.data_dir={tiny_cohort}"]
    words += [f"--config.data.root={built}", f"--config.teacher.checkpoint={teacher}"]
    done = commands.run("main", *words, f"--workdir={tmp_path / 'run'}", env=report_free_env)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        (folder / "metrics.jsonl").read_text("utf-8")
        for folder in (tmp_path / "run", smoke_student.folder)
    )
    assert commands.losses(ours) == commands.losses(theirs)
    # With other test cases the teacher would have seen them.
    words = [*words, "--config.split.seed=5", f"--workdir={tmp_path / 'other'}"]
    done = commands.run("main", *words, env=report_free_env)
    assert done.returncode == 2
    assert "was trained or selected on" in done.stderr
    assert "--config.split.file=FILE" in done.stderr


@pytest.mark.once
def test_mistakes_are_told(smoke_student: commands.Finished, tmp_path: pathlib.Path) -> None:
    run = f"--checkpoint={smoke_student.folder}"
    mistakes = [
        (("--checkpoint=gone", "--output=new"), "gone is no run of kdnet_jax"),
        (("--checkpoint=gone", "--output=."), "--output=. is there already"),
        ((run, "--output=new", "--formats=tflite"), "--formats is 'tflite'"),
        ((run, "--output=new", "--licence=CC\udce9"), "--licence is 'CC\\udce9': give one line"),
        ((run, "--output=new", "--folds=0"), "has no folds to choose"),
        ((run, "--output=new", "--formats=pytorch"), "has no class in nnU-Net"),
        ((run,), "--output"),
    ]
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    lines = [forks.Line("export", words, cwd) for words, _ in mistakes]
    for (_, message), done in zip(mistakes, forks.run(lines), strict=True):
        assert done.code == 2
        assert message in done.err
        assert "Traceback" not in done.err
    assert list(cwd.iterdir()) == []


@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["unet", "plain_conv_unet", "residual_encoder_unet", "dynunet", "segresnet"]
)
def test_every_kind_of_network_becomes_an_artifact_of_any_size(
    tmp_path: pathlib.Path, name: str
) -> None:
    if name == "unet":
        network = unet.UNetConfig(widths=(4, 8), down="strided", up="learned")
    else:
        deep = name != "segresnet"
        widths = (8, 16, 32, 64) if deep else (8, 16)
        like = unet.UNetConfig(widths=widths, head="regions", out_channels=3, deep_supervision=deep)
        network = networks.of_family(name, like)
    params = networks.init_params(network, 2, jax.random.key(0))
    head = heads.Head(task_lib.DEFAULT, network.head)
    artifact.write(tmp_path / "a", network, params, head=head, modalities=2)
    predict = inference.make_predict(networks.portable(network).module().apply, head, mirror=False)
    for batch, *counts in ((1, 2, 2, 2), (3, 2, 4, 3)):
        edges = (unit * count for unit, count in zip(network.divisor, counts, strict=True))
        shape = (batch, *edges, 2)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(artifact.run(tmp_path / "a", x), predict(params, x), atol=1e-5)
