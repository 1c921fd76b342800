"""Prediction of scans by a trained run: where masks go, what they hold, what is refused."""

import csv
import json
import pathlib
import shutil
import subprocess
from concurrent import futures

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as mpl_image

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence, finding_scans, prediction_jobs, prediction_outputs
from kdnet_jax.runs import trained
from tests.helpers import commands, tiny_cases


def _predict(
    env: dict[str, str], checkpoint: pathlib.Path, *words: object
) -> subprocess.CompletedProcess[str]:
    return commands.run("predict", f"--checkpoint={checkpoint}", *words, env=env)


@pytest.fixture
def scan(tiny_cohort: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of one T1ce scan."""
    copy = tmp_path / "scan.nii.gz"
    shutil.copy(tiny_cohort / "BraTS2021_00001" / "BraTS2021_00001_t1ce.nii.gz", copy)
    return copy


def _assert_on_grid(mask: pathlib.Path, scan: pathlib.Path) -> np.ndarray:
    image, source = nib.load(mask), nib.load(scan)
    assert image.shape == source.shape
    np.testing.assert_allclose(image.affine, source.affine)
    return np.asarray(image.dataobj)


@pytest.mark.parametrize(
    ("labels", "values"),
    [("brats2021", {0, 1, 2, 4}), ("brats2023", {0, 1, 2, 3}), ("decathlon", {0, 1, 2, 3})],
)
def test_one_scan(
    smoke_student: commands.Finished,
    scan: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: dict[str, str],
    labels: str,
    values: set,
) -> None:
    mask, picture = tmp_path / "out" / "mask.nii.gz", tmp_path / "out" / "mask.png"
    done = _predict(
        command_env,
        smoke_student.folder,
        f"--input={scan}",
        f"--output={mask}",
        f"--overlay={picture}",
        f"--labels={labels}",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "trained on t1ce" in done.stdout
    assert set(np.unique(_assert_on_grid(mask, scan))) <= values
    pixels = mpl_image.imread(picture)
    assert pixels.std() > 0.05
    assert not list((tmp_path / "out").glob(".*"))


def test_several_scans_and_a_folder(
    smoke_student: commands.Finished,
    tiny_cohort: pathlib.Path,
    scan: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: dict[str, str],
) -> None:
    out = tmp_path / "masks"
    done = _predict(
        command_env, smoke_student.folder, f"--input={scan}", tiny_cohort, f"--output={out}"
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {"scan.nii.gz"} | {f"BraTS2021_{i:05d}.nii.gz" for i in range(1, 9)}
    _assert_on_grid(out / "scan.nii.gz", scan)


def test_the_teacher_takes_the_folder_of_a_case(
    smoke_student: commands.Finished,
    tiny_cohort: pathlib.Path,
    scan: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: dict[str, str],
) -> None:
    case, mask = tiny_cohort / "BraTS2021_00001", tmp_path / "mask.nii.gz"
    teacher = smoke_student.folder / "teacher"
    done = _predict(command_env, teacher, f"--input={case}", f"--output={mask}")
    assert done.returncode == 0, done.stderr
    _assert_on_grid(mask, scan)


# --- Mistakes ------------------------------------------------------------------------------------


def _saved(path: pathlib.Path, data: np.ndarray) -> pathlib.Path:
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), path)
    return path


def _brain() -> np.ndarray:
    data = np.zeros((16, 16, 16), np.float32)
    data[3:13, 3:13, 3:13] = np.random.default_rng(0).uniform(100, 200, (10, 10, 10))
    return data


def _bad_scans(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    holed = _brain()
    holed[5, 5, 5] = np.nan
    text = folder / "text.nii"
    text.write_text("this is no scan", "utf-8")
    return {
        "absent": folder / "absent.nii.gz",
        "text": text,
        "flat": _saved(folder / "flat.nii.gz", _brain()[8]),
        "series": _saved(folder / "series.nii.gz", np.stack([_brain()] * 3, axis=-1)),
        "holed": _saved(folder / "holed.nii.gz", holed),
        "constant": _saved(folder / "constant.nii.gz", np.full((16, 16, 16), 7.0, np.float32)),
    }


def _mistakes(run: pathlib.Path, cohort: pathlib.Path, folder: pathlib.Path) -> dict[str, tuple]:
    """Name -> (checkpoint, inputs, output, what the message must say)."""
    scan, twin = _saved(folder / "scan.nii.gz", _brain()), folder / "twin" / "scan.nii.gz"
    twin.parent.mkdir()
    shutil.copy(scan, twin)
    mask, below = folder / "mask.nii.gz", folder / "text.nii" / "mask.nii.gz"
    bad = _bad_scans(folder)
    return {name: (run, [path], mask, str(path)) for name, path in bad.items()} | {
        "onto itself": (run, [scan], scan, "is the input itself"),
        "one name": (run, [scan, twin], folder / "out", "Several inputs are called 'scan'"),
        "one file": (run, [cohort], mask, f"{mask} is one file, but there are 8 inputs"),
        "below a file": (run, [scan], below, str(below)),
        "four sequences": (run / "teacher", [scan], mask, "needs t1, t1ce, t2, flair"),
        "no run": (folder, [scan], mask, f"{folder} is no run of kdnet_jax"),
    }


_NAMES = ("absent", "text", "flat", "series", "holed", "constant", "onto itself", "one name")
_NAMES += ("one file", "below a file", "four sequences", "no run")

# Name -> (how the command ended, what it must say)
Refused = dict[str, tuple[subprocess.CompletedProcess[str], str]]


@pytest.fixture(scope="module")
def refused(
    smoke_student: commands.Finished,
    tiny_cohort: pathlib.Path,
    command_env: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Refused:
    """Every mistake's end and the words it must say; two commands at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    mistakes = _mistakes(smoke_student.folder, tiny_cohort, folder)

    def end(mistake: tuple) -> tuple[subprocess.CompletedProcess[str], str]:
        run, inputs, output, words = mistake
        options = [*(f"--input={path}" for path in inputs), f"--output={output}"]
        return _predict(command_env, run, *options), words

    with futures.ThreadPoolExecutor(2) as pool:
        ended = dict(zip(mistakes, pool.map(end, mistakes.values()), strict=True))
    assert not (folder / "mask.nii.gz").exists()
    assert not (folder / "out").exists()
    np.testing.assert_array_equal(nib.load(folder / "scan.nii.gz").get_fdata(), _brain())
    return ended


@pytest.mark.parametrize("name", _NAMES)
def test_a_mistake_is_one_plain_message(refused: Refused, name: str) -> None:
    done, words = refused[name]
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr


def test_a_case_without_the_sequence_is_refused_and_not_guessed(tmp_path: pathlib.Path) -> None:
    case = tiny_cases.write_cohort(tmp_path / "scans", 1)
    for path in case.rglob("*_t1ce.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match="no case has t1ce"):
        finding_scans.find_scans([case], ("t1ce",), task_lib.GLIOMA)
    for sequences in (("t1ce",), ("t1", "t1ce")):
        with pytest.raises(UserError, match="no such file"):
            finding_scans.find_scans([tmp_path / "absent.nii.gz"], sequences, task_lib.GLIOMA)


def _plan(tmp_path: pathlib.Path, names: list[str], output: str, **options: object) -> list:
    scans = [(name, {"t1ce": tmp_path / f"{name}.nii.gz"}) for name in names]
    return prediction_jobs.plan(scans, tmp_path / output, **options)


def test_where_the_files_go(tmp_path: pathlib.Path) -> None:
    everything = {"probabilities": True, "uncertainty": True}
    (job,) = _plan(tmp_path, ["scan"], "mask.nii.gz", **everything)
    assert [path.name for path in job.outputs] == [
        "mask.nii.gz",
        "mask_prob.nii.gz",
        "mask_prob.json",
        "mask_entropy.nii.gz",
        "mask_mutual_information.nii.gz",
    ]
    first, second = _plan(tmp_path, ["a", "b"], "out", overlay=tmp_path / "png", **everything)
    assert first.probabilities == tmp_path / "out" / "a_prob.nii.gz"
    assert second.overlay == tmp_path / "png" / "b.png"
    (tmp_path / "old.png").mkdir()
    for folder in ("run.v2", "old.png"):
        (job,) = _plan(tmp_path, ["scan"], folder)
        assert job.output == tmp_path / folder / "scan.nii.gz"


@pytest.mark.parametrize(
    ("names", "output", "options", "words"),
    [
        (["a", "a_prob"], "out", {"probabilities": True}, "a_prob.nii.gz would be written twice"),
        (["a"], "a.nii.gz", {}, "is the input itself"),
        (["a_prob"], ".", {"probabilities": True}, "is the input itself"),
        (["x"], "m.nii.gz", {"volumes": pathlib.Path("v.txt")}, "ends in .csv or .json"),
        (["x"], "m.png", {}, "ends in .png, which no mask is written as"),
        (["x"], "m.MHA", {}, "ends in .MHA"),
        (["a", "b"], "m.gz", {}, "ends in .gz"),
        (["a", "b"], "m.nii.gz", {}, "is one file, but there are 2 inputs"),
        (["a", "b"], "out", {"overlay": pathlib.Path("o.png")}, "a folder for several"),
    ],
)
def test_outputs_that_collide_are_refused_before_the_first(
    tmp_path: pathlib.Path, names: list[str], output: str, options: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        _plan(tmp_path, names, output, **options)


# --- What is written beside the mask --------------------------------------------------------------


def test_probabilities_on_the_scans_grid(tmp_path: pathlib.Path) -> None:
    affine = np.array([[-2.0, 0, 0, 5], [0, 0, 1, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    way = geometry.make_geometry((6, 8, 10), affine, box=((1, 7), (2, 9), (0, 5)))
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), way.working_shape).astype(np.float32)
    path = tmp_path / "new" / "x_prob.nii.gz"
    prediction_outputs.write_probabilities(path, probs, way, heads.Head(task_lib.GLIOMA))
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_allclose(image.header.get_qform(), affine, atol=1e-5)
    for channel in range(4):
        expected = geometry.map_to_scan(probs[..., channel], way, outside=float(channel == 0))
        np.testing.assert_allclose(image.dataobj[..., channel], expected, atol=1e-5)
    assert [each.name for each in path.parent.iterdir()] == ["x_prob.nii.gz"]


def test_volumes_as_csv_and_json(tmp_path: pathlib.Path) -> None:
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[0], classes[1, 0], classes[1, 1] = 2, 1, 3  # 16 ED, 4 NCR, 4 ET
    ml = prediction_outputs.volumes_ml(classes, np.diag([-2.0, 5.0, 5.0, 1]), task=task_lib.GLIOMA)
    assert ml == pytest.approx({"ET": 0.2, "TC": 0.4, "WT": 1.2})
    told = {name: confidence.Confidence(0.75, 2.0, None, None) for name in ml}
    told["ET"] = confidence.Confidence(0.5, 0.3, 0.1, 1.23456)
    row = prediction_outputs.ScanVolumes("s,1", ml, told, (2.0, 5.0, 5.0), "m.nii", ("odd", "old"))
    about = {"kdnet_jax": "1", "checkpoints": ["a", "b"]}
    table, document = tmp_path / "v.csv", tmp_path / "v.json"
    prediction_outputs.write_volumes(table, [row, row], about)
    prediction_outputs.write_volumes(document, [row], about)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert float(rows[1]["wt_ml"]) == pytest.approx(1.2)
    assert rows[0]["scan"] == "s,1"
    assert [rows[0][f"et_{name}"] for name in ("dice_expected", "ml_low", "ml_high")] == [
        *("0.5", "0.1", "1.2346")
    ]
    assert (rows[0]["wt_ml_expected"], rows[0]["wt_ml_low"]) == ("2.0", "")
    assert rows[0]["checkpoints"] == "a;b"
    content = json.loads(document.read_text())
    assert content["checkpoints"] == ["a", "b"]
    assert content["scans"][0]["ml"]["ET"] == pytest.approx(0.2)
    assert content["scans"][0]["confidence"]["ET"]["ml_high"] == 1.23456
    assert content["scans"][0]["confidence"]["WT"]["ml_high"] is None
    assert content["scans"][0]["warnings"] == ["odd", "old"]


def test_everything_at_once_and_a_head_with_its_skull(
    smoke_student: commands.Finished,
    scan: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: dict[str, str],
) -> None:
    head = tmp_path / "head.nii.gz"
    image = nib.load(scan)
    noise = np.random.default_rng(0).integers(1, 50, image.shape)
    odd = nib.Nifti1Image((image.get_fdata() + noise).astype(np.int16), image.affine)
    odd.set_sform(image.affine, "mni")
    odd.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), "scanner")  # and pixdim, unlike the sform
    nib.save(odd, head)
    out, table = tmp_path / "out", tmp_path / "volumes.csv"
    done = _predict(
        command_env,
        smoke_student.folder,
        *(f"--input={scan}", f"--input={head}", f"--output={out}", f"--volumes={table}"),
        *("--mirror", "--uncertainty", "--probabilities", "--window_batch=2"),
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING: head: " in done.stdout
    assert "HD-BET or SynthStrip" in done.stdout
    assert "WARNING: scan: head" not in done.stdout
    assert done.stdout.count("network compiled in") == 1
    assert done.stdout.count("prepare ") >= 2
    names = {path.name for path in out.iterdir()}
    suffixes = (".nii.gz", "_prob.nii.gz", "_prob.json", "_entropy.nii.gz")
    suffixes += ("_mutual_information.nii.gz",)
    assert names == {f"{name}{suffix}" for name in ("scan", "head") for suffix in suffixes}
    for suffix in set(suffixes) - {"_prob.json"}:
        written, given = (nib.load(path).header for path in (out / f"head{suffix}", head))
        for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "qoffset_x"):
            np.testing.assert_array_equal(written[field], given[field])
        np.testing.assert_array_equal(written["pixdim"][:4], given["pixdim"][:4])
        np.testing.assert_array_equal(written.get_qform(), given.get_qform())
    assert "WARNING: head: head: the header contradicts itself: by its sform" in done.stdout
    mask = _assert_on_grid(out / "scan.nii.gz", scan)
    model = trained.load_run(smoke_student.folder).model
    calibrated = nib.load(out / "scan_prob.nii.gz").get_fdata()
    likely = model.calibration.undo(model.head, calibrated).argmax(-1)
    # The mask keeps the volumes of the working grid, which linearly interpolated maps do not.
    assert (np.array([0, 1, 2, 4])[likely] == mask).mean() > 0.95
    entropy = nib.load(out / "scan_entropy.nii.gz").get_fdata()
    disagreement = nib.load(out / "scan_mutual_information.nii.gz").get_fdata()
    assert 0 < entropy.max() <= np.log(4) + 1e-6
    assert (disagreement <= entropy + 1e-6).all()
    with table.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["scan"] for row in rows] == ["scan", "head"]
    # Two validation cases give no range.
    assert rows[0]["wt_ml_low"] == rows[0]["wt_ml_high"] == ""
    assert float(rows[0]["wt_ml_expected"]) > 0
    assert f"expected Dice {float(rows[0]['wt_dice_expected']):.2f}" in done.stdout


def test_a_list_of_what_is_segmented(
    smoke_student: commands.Finished, command_env: dict[str, str]
) -> None:
    done = _predict(command_env, smoke_student.folder, "--list", "--labels=brats2023")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["task"], found["input"], found["labels"]) == ("glioma", ["t1ce"], "brats2023")
    assert [(each["value"], each["name"]) for each in found["classes"]] == [
        (1, "NCR"),
        (2, "ED"),
        (3, "ET"),
    ]
    regions = {each["name"]: (each["description"], each["values"]) for each in found["regions"]}
    assert regions == {
        "ET": ("enhancing tumour", [3]),
        "TC": ("tumour core", [1, 3]),
        "WT": ("whole tumour", [1, 2, 3]),
    }
    digest = trained.load_run(smoke_student.folder).params_hash
    assert found["networks"][0]["parameters_sha256"] == digest


def test_without_a_scan_the_flags_that_miss_are_named(
    smoke_student: commands.Finished, command_env: dict[str, str]
) -> None:
    done = _predict(command_env, smoke_student.folder)
    assert done.returncode == 2
    assert done.stderr == "error: --input, --output are missing; --help says what to give\n"


def test_uncertainty_needs_several_answers(
    smoke_student: commands.Finished,
    scan: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: dict[str, str],
) -> None:
    words = (f"--input={scan}", f"--output={tmp_path / 'm.nii'}", "--uncertainty")
    done = _predict(command_env, smoke_student.folder, *words)
    assert done.returncode == 2
    assert "give --mirror, or several checkpoints" in done.stderr
