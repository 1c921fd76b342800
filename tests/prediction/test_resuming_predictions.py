"""A folder of scans of which one is bad, or that was interrupted; and where nothing can go."""

import csv
import hashlib
import json
import pathlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import (
    confidence,
    manifest,
    prediction_jobs,
    prediction_outputs,
    resuming_predictions,
)
from tests.bad_input import scans, sound
from tests.helpers import forks

HOLED = scans.brain().astype(np.float32)
HOLED[5, 5, 5] = np.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A trained run, and `scans/` of which b has a NaN and the others are sound."""
    folder = sound.write_all(tmp_path_factory.mktemp("resuming"))
    (folder / "scans").mkdir()
    for name in "abc":
        data = HOLED if name == "b" else scans.brain()
        scans.write(folder / "scans" / f"{name}.nii.gz", scans.encode(data))
    return folder


def _predict(base: pathlib.Path, cwd: pathlib.Path, *sets: tuple[str, ...]) -> list[forks.Ended]:
    """Runs `predict` with each set of words, one after the other."""
    words = (f"--checkpoint={base / 'baseline'}", f"--input={base / 'scans'}")
    lines = [forks.Line("predict", (*words, *more), cwd) for more in sets]
    return forks.run(lines, at_once=1)


def _rows(path: pathlib.Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def test_the_others_are_segmented_and_the_command_goes_on(
    base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ("--output=out", "--volumes=v.csv", "--manifest=m.json")
    (first,) = _predict(base, tmp_path, words)
    assert first.code == 2
    assert "1 of 3 scans were not segmented, the others are:" in first.err
    assert "b.nii.gz: 1 of 4096 voxels are NaN or infinite" in first.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.nii.gz", "c.nii.gz"}
    assert list(_rows(tmp_path / "v.csv")) == ["a", "c"]
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["finished"]
    assert record["task"] == "glioma"
    assert record["input"] == ["t1ce"]
    a, b, c = record["scans"]
    assert a["status"] == c["status"] == "segmented"
    assert a["output"] == ["out/a.nii.gz"]
    digest = hashlib.sha256((base / "scans" / "a.nii.gz").read_bytes()).hexdigest()
    assert a["input"]["t1ce"] == {"file": str(base / "scans" / "a.nii.gz"), "sha256": digest}
    assert {*a["seconds"]} == {"read", "prepare", "network", "back", "write"}
    assert (b["scan"], b["status"]) == ("b", "not segmented")
    assert "1 of 4096 voxels are NaN" in b["error"]

    kept = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    scans.write(base / "scans" / "b.nii.gz", scans.encode(scans.brain()))
    again, other = _predict(
        base, tmp_path, (*words, "--resume"), (*words, "--resume", "--labels=brats2023")
    )
    assert again.code == 0, again.err
    assert "2 of 3 scans are finished" in again.out
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == kept
    rows = _rows(tmp_path / "v.csv")
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"]["wt_ml"] == rows["b"]["wt_ml"] == rows["c"]["wt_ml"]
    resumed = json.loads((tmp_path / "m.json").read_text())["scans"]
    assert resumed[0] == a
    assert resumed[2] == c
    assert resumed[1]["status"] == "segmented"
    assert resumed[1]["ml"] == a["ml"]
    assert other.code == 2
    assert "was not made by these checkpoints with these flags" in other.err


def test_bad_headers_are_told_before_the_first_scan(tmp_path: pathlib.Path) -> None:
    paths = [tmp_path / f"{name}.nii" for name in "abc"]
    scans.write(paths[0], scans.encode(scans.brain()))
    scans.write(paths[1], scans.encode(scans.brain(), magic=b"ni1"))
    paths[2].write_bytes(b"")
    with pytest.raises(UserError, match=r"2 problems with the files; no scan was") as told:
        prediction_jobs.check_headers([{"t1ce": path} for path in paths], task_lib.GLIOMA)
    assert str(paths[1]) in str(told.value)
    assert str(paths[2]) in str(told.value)
    with pytest.raises(UserError, match=f"^{paths[2]}: is not a NIfTI file"):
        prediction_jobs.check_headers([{"t1ce": paths[0]}, {"t1ce": paths[2]}], task_lib.GLIOMA)


def _case(folder: pathlib.Path, name: str, t2: bytes) -> dict[str, pathlib.Path]:
    """Writes a case of two sequences, of which the second is given."""
    images = {sequence: folder / f"{name}_{sequence}.nii" for sequence in ("t1", "t2")}
    scans.write(images["t1"], scans.encode(scans.brain()))
    scans.write(images["t2"], t2)
    return images


def _moved(mm: float) -> np.ndarray:
    affine = scans.AFFINE.copy()
    affine[0, 3] += mm
    return affine


def test_sequences_on_two_grids_are_told_before_the_first_scan(tmp_path: pathlib.Path) -> None:
    sound_one = _case(tmp_path, "a", scans.encode(scans.brain()))
    shorter = _case(tmp_path, "b", scans.encode(scans.brain()[:-2]))
    moved = _case(tmp_path, "c", scans.encode(scans.brain(), _moved(4)))
    damaged = _case(tmp_path, "d", b"")
    with pytest.raises(UserError, match=r"^3 problems with the files; no scan was") as told:
        prediction_jobs.check_headers(
            [sound_one, shorter, moved, damaged], task_lib.GLIOMA, "header"
        )
    _, *rows = str(told.value).split("\n  ")
    assert f"{shorter['t2']} has 14 x 16 x 16. Expected one grid: register and" in rows[0]
    assert f"{moved['t2']}: [[-8.0, 0.0, 0.0, 4.0]" in rows[1]
    assert rows[2].startswith(f"{damaged['t2']}: is not a NIfTI file")
    with pytest.raises(UserError, match=r"^the headers of one case place the same voxels diff"):
        prediction_jobs.check_headers([moved], task_lib.GLIOMA, "header")
    prediction_jobs.check_headers([sound_one], task_lib.GLIOMA, "header")


@pytest.mark.parametrize("orientation", ["header", "LPS"])
@pytest.mark.parametrize(
    "affine",
    [
        pytest.param(_moved(0.001), id="rounding"),
        pytest.param(_moved(2), id="a quarter of a voxel"),
        pytest.param(scans.AFFINE @ np.diag([1.0, 1.0, -1.0, 1.0]), id="another direction"),
        pytest.param(
            scans.AFFINE @ np.array([[-1, 0, 0, 15], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            id="stored in another order",
        ),
        pytest.param(np.eye(4), id="lost"),
    ],
)
def test_grids_are_refused_before_as_they_would_be_later(
    tmp_path: pathlib.Path, affine: np.ndarray, orientation: str
) -> None:
    images = _case(tmp_path, "a", scans.encode(np.sqrt(scans.brain()[::-1]), affine))

    def early() -> None:
        prediction_jobs.check_headers([images], task_lib.GLIOMA, orientation)

    def late() -> None:
        prepare.prepare_case(
            prepare.unlabelled_case(images), spacing=None, orientation=orientation, allow_skull=True
        )

    assert _refusal(early) == _refusal(late)


def _refusal(call: Callable[[], None]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def test_a_folder_with_sequences_on_two_grids_is_not_begun(
    base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cohort = sound.copy(base / "cohort", tmp_path / "cohort")
    # The last of its cases: the others would be segmented first.
    bad = cohort / "BraTS2021_00004" / "BraTS2021_00004_t2.nii.gz"
    bad.unlink()
    scans.write(bad, scans.encode(scans.brain(), _moved(scans.SPACING_MM)))
    words = (f"--checkpoint={base / 'teacher'}", f"--input={cohort}", "--output=out")
    (refused,) = forks.run([forks.Line("predict", words, tmp_path)])
    assert refused.code == 2
    assert refused.err.startswith("error: the headers of one case place the same voxels diff")
    assert str(bad) in refused.err
    assert "compiled" not in refused.out
    assert not (tmp_path / "out").exists()


def test_channels_of_one_file_are_one_header(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "four.nii"
    scans.write(path, scans.encode(np.stack([scans.brain()] * 4, -1)))
    images = {"t1": (path, 1), "t2": (path, 3)}
    prediction_jobs.check_headers([images], task_lib.GLIOMA, "header")


def _row(name: str, mask: pathlib.Path, *warnings: str) -> prediction_outputs.ScanVolumes:
    ml = {"ET": 0.25, "TC": 1.5, "WT": 20.125}
    told = {
        "ET": confidence.Confidence(0.7125, 1.5, 0.25, 12.5),
        "TC": confidence.Confidence(None, 0.0, 0.0, 0.5),
        "WT": confidence.Confidence(0.9, 33.0, None, None),
    }
    return prediction_outputs.ScanVolumes(name, ml, told, (1.0, 0.5, 2.25), str(mask), warnings)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_table_is_read_as_it_was_written(tmp_path: pathlib.Path, suffix: str) -> None:
    table = tmp_path / f"v{suffix}"
    rows = [_row('a "b",\nc', tmp_path / "ä.nii"), _row("<b>", tmp_path / "x.nii", "one", "two")]
    prediction_outputs.write_volumes(table, rows, {"checkpoints": ["x"]})
    assert resuming_predictions.read_volumes(table, task_lib.GLIOMA) == {
        row.scan: row for row in rows
    }


@pytest.mark.parametrize(
    "text", ["", "scan\na\n", "{", "[]", '{"scans": [{"scan": 1}]}', "[" * 9999]
)
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_another_table_is_refused(tmp_path: pathlib.Path, suffix: str, text: str) -> None:
    table = tmp_path / f"v{suffix}"
    table.write_text(text)
    with pytest.raises(UserError, match="is no table of volumes"):
        resuming_predictions.read_volumes(table, task_lib.GLIOMA)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"scans": [{"scan": "a"}]}', '{"scans": [1]}'])
def test_another_record_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "m.json"
    assert manifest.segmented_scans(path) == {}
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        manifest.segmented_scans(path)


def test_a_scan_is_finished_with_all_of_its_files_and_its_row(tmp_path: pathlib.Path) -> None:
    mark = resuming_predictions.mark({"mirror": True})
    image = nib.Nifti1Image(scans.labels(), scans.AFFINE)
    image.header["descrip"] = mark.encode()
    jobs = prediction_jobs.plan(
        [(name, {"t1ce": tmp_path / f"{name}.nii"}) for name in "abc"],
        tmp_path / "out",
        overlay=tmp_path / "pictures",
    )
    for name, folder, made in (("a", "out", True), ("b", "out", False)):
        (tmp_path / folder).mkdir(exist_ok=True)
        nib.save(image, tmp_path / folder / f"{name}.nii.gz")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        if made:
            (tmp_path / "pictures" / f"{name}.png").touch()
    assert list(resuming_predictions.finished(jobs, mark, None, task_lib.GLIOMA)) == ["a"]
    table = tmp_path / "v.json"
    assert resuming_predictions.finished(jobs, mark, table, task_lib.GLIOMA) == {}
    row = _row("a", jobs[0].output)
    table.write_text(json.dumps({"scans": []}))
    prediction_outputs.write_volumes(table, [row], {})
    assert resuming_predictions.finished(jobs, mark, table, task_lib.GLIOMA) == {"a": row}
    with pytest.raises(UserError, match="was not made by these"):
        resuming_predictions.finished(
            jobs, resuming_predictions.mark({"mirror": False}), None, task_lib.GLIOMA
        )
