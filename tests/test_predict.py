"""Prediction of scans by a trained run: where masks go, what they hold, what is refused."""

import pathlib
import shutil
import subprocess
import sys
from concurrent import futures

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as mpl_image

from tests.helpers import commands, tiny_cases

ROOT = pathlib.Path(__file__).parents[1]


def _predict(
    env: dict[str, str], checkpoint: pathlib.Path, *words: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdnet_jax.predict", f"--checkpoint={checkpoint}", *map(str, words)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


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
    """Predict and the other commands define the same flags, so it is imported in a process."""
    case = tiny_cases.write_cohort(tmp_path / "scans", 1)
    for path in case.rglob("*_t1ce.nii.gz"):
        path.unlink()
    code = (
        "import pathlib, sys; from kdnet_jax import predict; "
        "predict.find_scans([pathlib.Path(sys.argv[1])], ('t1ce',))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(case)], capture_output=True, text=True, check=False
    )
    assert "no case has t1ce" in done.stderr
    assert "is taken as a scan" not in done.stdout
