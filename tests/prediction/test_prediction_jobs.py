"""Which scans are taken, and what their names are warned of."""

import pathlib

import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import finding_scans, prediction_jobs
from tests.bad_input import scans
from tests.helpers import made_up_tasks


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("T1_to_T1CE", "is named as t1,"),
        ("sub-01_space-T1w_FLAIR", "is named as flair,"),
        ("sub-01_ce-gadolinium_T1w", ""),
        ("a_t1ce_reg_flair", ""),
        ("a_T1_foo_T1CE", "is named as one that names t1 and t1ce,"),
        ("a_t1ce_brain_mask", "is named as a mask of another structure"),
        ("scan7", ""),
        ("a_T10_scan", ""),
        ("a_t1ce_foo", ""),
        ("a_T1gdx", "what 'T1gdx' in its name says"),
        ("a_FLAIR_foo", "what 'FLAIR' in its name says"),
        ("segx_a", "what 'segx' in its name says"),
    ],
)
def test_a_scan_of_another_name_is_warned_of(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, name: str, warned: str
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / f"{name}.nii.gz"
    path.touch()
    assert finding_scans.find_scans([path], ("t1ce",), task_lib.GLIOMA) == [(name, {"t1ce": path})]
    assert warned in caplog.text if warned else not caplog.text


def test_the_numbered_channels_of_nnunet_are_not_scans_of_one_sequence(
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for channel in range(2):
        (folder / f"anna_{channel:04d}.nii.gz").touch()
    with pytest.raises(UserError, match=r"_0000, _0001, which are the channels of nnU-Net"):
        finding_scans.find_scans([folder], ("t1ce",), task_lib.GLIOMA)
    (folder / "anna_0000.nii.gz").unlink()
    (folder / "bob_0001.nii.gz").touch()
    found = finding_scans.find_scans([folder], ("t1ce",), task_lib.GLIOMA)
    assert [name for name, _ in found] == ["anna_0001", "bob_0001"]


@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2, 10)])
def test_numbers_that_no_channel_has_number_the_scans(
    tmp_path: pathlib.Path, numbers: tuple[int, ...]
) -> None:
    for number in numbers:
        (tmp_path / f"pat_{number:04d}.nii.gz").touch()
    task = made_up_tasks.HEART
    found = finding_scans.find_scans([tmp_path], task.modalities, task)
    assert [name for name, _ in found] == [f"pat_{number:04d}" for number in numbers]


def test_in_a_folder_of_unknown_names_those_like_a_sequence_are_warned_of(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("anna_T2x", "bob"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert len(finding_scans.find_scans([tmp_path], ("t1ce",), task_lib.GLIOMA)) == 2
    assert "what 'T2x' in its name says" in caplog.text
    assert caplog.text.count("warning") == 1


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_an_image_of_the_decathlon_that_was_cut_down_is_refused(
    tmp_path: pathlib.Path, channels: int | None
) -> None:
    path = tmp_path / "BRATS_001.nii"
    brain = scans.brain()
    scans.write(path, scans.encode(np.stack([brain] * channels, -1) if channels else brain))
    with pytest.raises(UserError, match=r"channel\(s\); dataset\.json lists 4"):
        prediction_jobs.check_headers([{"t1": (path, 0)}], task_lib.GLIOMA)
