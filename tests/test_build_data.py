"""The build_data command, as a user runs it."""

import pathlib
import subprocess

import nibabel
import numpy as np
import pytest

from tests.helpers import commands

SIZE = 20


def run(folder: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with `folder` as the current folder."""
    return commands.run("build_data", *options, cwd=folder)


def write_scans(folder: pathlib.Path, count: int) -> None:
    """Writes cases in the layout of BraTS 2021."""
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for index in range(count):
        name = f"BraTS2021_{index:05d}"
        (folder / name).mkdir(parents=True)
        for sequence in ("t1", "t1ce", "t2", "flair", "seg"):
            data = np.zeros((SIZE,) * 3, np.int16)
            inner = data[5:-5, 5:-5, 5:-5]
            inner[:] = rng.choice([0, 1, 2, 4], inner.shape, p=[0.7, 0.1, 0.1, 0.1])
            if sequence != "seg":
                inner += 100
            image = nibabel.Nifti1Image(data, affine)
            nibabel.save(image, folder / name / f"{name}_{sequence}.nii.gz")


def test_scans_become_a_dataset_in_the_default_folder(tmp_path: pathlib.Path) -> None:
    write_scans(tmp_path / "scans", 3)
    options = ("--data_dir=scans", "--modalities=flair,t1ce", "--spacing=2")
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "datasets" / "brats").glob("brats2021-t1ce_flair-2mm-*/1.0.0")
    assert f"3 cases are in {folder.relative_to(tmp_path)}" in done.stdout
    assert "3/3" in done.stderr
    again = run(tmp_path, *options)
    assert again.stdout == done.stdout
    assert "preparing" not in again.stderr


@pytest.mark.once
def test_synthetic_cases_become_a_dataset_or_scans(tmp_path: pathlib.Path) -> None:
    options = ("--phantom", "--cases=2", "--seed=3", "--spacing=4")
    built = run(tmp_path, *options, "--output=here")
    assert built.returncode == 0, built.stderr
    assert "2 cases are in here" in built.stdout
    written = run(tmp_path, *options, "--scans=scans")
    assert written.returncode == 0, written.stderr
    assert len(list((tmp_path / "scans").rglob("*_t1ce.nii.gz"))) == 2
    read = run(tmp_path, "--data_dir=scans", "--spacing=native")
    assert read.returncode == 0, read.stderr
    assert "2 cases are in" in read.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --data_dir"),
        (("--phantom", "--data_dir=scans"), "give either --data_dir"),
        (("--data_dir=nowhere",), "nowhere"),
        (("--data_dir=.", "--modalities=t1,flare"), "'flare'; did you mean 'flair'?"),
        (("--data_dir=.", "--spacing=1mm"), "--spacing=1mm: expected a size in mm"),
        (("--phantom", "--spacing=native"), "the phantom needs one number"),
        (("--data_dir=.", "--scans=x"), "--scans: needs --phantom"),
        (("--phantom", "scans"), "'scans' belongs to no flag"),
    ],
)
def test_mistakes_are_told_in_one_message(
    tmp_path: pathlib.Path, options: tuple[str, ...], message: str
) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
