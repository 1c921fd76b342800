import csv
import pathlib
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import check_data
from kdnet_jax.data import cases

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (24, 20, 16)


def write_case(
    root: pathlib.Path, number: int, et: int = 100, affine: np.ndarray = LPS
) -> pathlib.Path:
    """Writes a BraTS 2021 case: a box of noise, 60 voxels of edema and `et` of enhancing tumour."""
    folder = root / f"BraTS2021_{number:05}"
    folder.mkdir()
    rng = np.random.default_rng(number)
    brain = np.zeros(SHAPE, np.float32)
    brain[3:-3, 3:-3, 3:-3] = rng.uniform(100, 200, (18, 14, 10))
    label = np.zeros(SHAPE, np.uint8)
    label[5:8, 5:9, 5:10] = 2
    box = np.zeros((5, 4, 5), np.uint8)
    box.reshape(-1)[:et] = 4
    label[10:15, 5:9, 5:10] = box
    for sequence in ("t1", "t1ce", "t2", "flair"):
        nib.save(nib.Nifti1Image(brain, affine), folder / f"{folder.name}_{sequence}.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / f"{folder.name}_seg.nii.gz")
    return folder


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three good cases (ET 100, none and 7 voxels) and one whose header is turned over."""
    root = tmp_path / "data"
    root.mkdir()
    for number, et in enumerate((100, 0, 7)):
        write_case(root, number, et)
    write_case(root, 3, affine=np.eye(4) + np.diag([0, 0, 1.0, 0]))
    return root


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdnet_jax.check_data", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
    )


def test_counts_and_odd_header(data: pathlib.Path) -> None:
    cohort = cases.find_cases(data)
    reports = check_data.check_cases(cohort.cases)
    assert [(r.ncr, r.ed, r.et) for r in reports] == [
        (0, 60, 100),
        (0, 60, 0),
        (0, 60, 7),
        (0, 60, 100),
    ]
    assert reports[0].grid == "24x20x16"
    assert reports[0].spacing_mm == "1x1x1"
    assert reports[3].spacing_mm == "1x1x2"
    assert check_data.odd_orientations(reports) == {"BraTS2021_00003": "RAS"}
    text = check_data.summary(cohort, reports)
    assert "LPS (3), RAS (1)" in text
    assert "without ET            1 (BraTS2021_00001)" in text
    assert "ET below 50 voxels    1 (BraTS2021_00002)" in text
    assert "odd: BraTS2021_00003" in text
    assert "unusable" not in text


def test_the_command_lists_every_problem_and_exits_with_2(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for number in (0, 2):
        path = data / f"BraTS2021_{number:05}" / f"BraTS2021_{number:05}_t2.nii.gz"
        path.write_bytes(path.read_bytes()[:500])
    output = tmp_path / "report.csv"
    done = command(f"--data_dir={data}", f"--output={output}")
    assert done.returncode == 2
    assert "unusable: BraTS2021_00000" in done.stdout
    assert "unusable: BraTS2021_00002" in done.stdout
    assert "4, usable 2" in done.stdout
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader(output.open()))
    assert [bool(row["problem"]) for row in rows] == [True, False, True, False]
    assert rows[1]["ed"] == "60"


def test_the_command_on_clean_data_and_on_a_missing_folder(data: pathlib.Path) -> None:
    assert command(f"--data_dir={data}", "--modalities=t1ce,flair").returncode == 0
    done = command(f"--data_dir={data}/missing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no such folder" in done.stderr


def test_an_unwritable_table_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(check_data.UserError, match="cannot be written"):
        check_data.write_csv([], tmp_path / "missing" / "report.csv")
