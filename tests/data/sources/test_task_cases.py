"""Cases of tasks other than the glioma: layouts, names, and files that contradict the task."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.data.records import building
from kdnet_jax.data.scans import nifti
from kdnet_jax.data.sources import cases, task_names
from kdnet_jax.errors import UserError
from tests.helpers import made_tasks

PROSTATE = dataset_json.parse(made_tasks.PLAIN, "p/dataset.json")
LIVER = dataset_json.parse(made_tasks.REGIONS, "l/dataset.json")


def task_of(
    channels: Sequence[str],
    labels: Mapping[str, int] = {"background": 0, "gland": 1},
    **more: Any,
) -> task_lib.Task:
    names = {str(number): name for number, name in enumerate(channels)}
    return dataset_json.parse(
        {"channel_names": names, "labels": dict(labels)} | more, "made/dataset.json"
    )


def touch(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Cases are found by name only, so empty files serve."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def relative(case: cases.Case, root: pathlib.Path) -> dict[str, str]:
    return {name: str(path.relative_to(root)) for name, path in case.images.items()}


# ------------------------------------------------------------------------------------ nnU-Net


def test_a_raw_folder_of_nnunet_is_found_by_the_numbers_of_its_files(
    tmp_path: pathlib.Path,
) -> None:
    folder = made_tasks.write_plain(tmp_path / "a" / "Dataset001", 3)
    touch(folder, "imagesTs/made_09_0000.nii.gz")
    cohort = cases.find_cases(tmp_path, task=PROSTATE)
    assert [case.case_id for case in cohort.cases] == ["made_00", "made_01", "made_02"]
    assert cohort.release == "nnunet"
    case = cohort.cases[0]
    assert list(case.images) == ["t2", "adc"]
    assert relative(case, folder) == {
        "t2": "imagesTr/made_00_0000.nii.gz",
        "adc": "imagesTr/made_00_0001.nii.gz",
    }
    assert case.label == folder / "labelsTr" / "made_00.nii.gz"
    assert (case.convention, case.patient_id) == ("task", "made_00")
    assert "1 other NIfTI file:" in "\n".join(cohort.notes)


def test_numbers_go_by_the_folder_s_own_description(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "imagesTr/P_0000.nii.gz", "imagesTr/P_0001.nii.gz", "imagesTr/P_0002.nii.gz")
    touch(tmp_path, "labelsTr/P.nii.gz")
    own = {"channel_names": {"0": "ADC", "1": "DWI", "2": "T2"}}
    (tmp_path / "dataset.json").write_text(json.dumps(made_tasks.PLAIN | own))
    cohort = cases.find_cases(tmp_path, task=PROSTATE)
    assert relative(cohort.cases[0], tmp_path) == {
        "t2": "imagesTr/P_0002.nii.gz",
        "adc": "imagesTr/P_0000.nii.gz",
    }
    assert "the channels are adc, dwi, t2" in "\n".join(cohort.notes)


def test_a_case_without_a_label_is_kept_if_wanted(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path, 2)
    (folder / "labelsTr" / "made_01.nii.gz").unlink()
    found = cases.find_cases(folder, task=PROSTATE, labelled=False).cases
    assert [case.label is None for case in found] == [False, True]
    cohort = cases.find_cases(folder, task=PROSTATE)
    assert len(cohort.cases) == 1
    assert "left out for want of a segmentation: made_01" in cohort.notes


def test_files_of_all_channels_may_end_in_four_digits(tmp_path: pathlib.Path) -> None:
    task = task_of(["CT"])
    touch(tmp_path, "imagesTr/h_0000.nii.gz", "imagesTr/h_0001.nii.gz", "imagesTr/h_0002.nii.gz")
    touch(tmp_path, "labelsTr/h_0001.nii.gz")
    cohort = cases.find_cases(tmp_path, task=task, labelled=False)
    assert cohort.release == "decathlon"
    labels = {case.case_id: case.label is not None for case in cohort.cases}
    assert labels == {"h_0000": False, "h_0001": True, "h_0002": False}


def test_a_student_s_channel_alone_may_be_there(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "imagesTr/P_0001.nii.gz", "labelsTr/P.nii.gz")
    cohort = cases.find_cases(tmp_path, modalities=("adc",), task=PROSTATE)
    assert relative(cohort.cases[0], tmp_path) == {"adc": "imagesTr/P_0001.nii.gz"}


def test_visits_of_public_sets_are_of_one_patient(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "imagesTr/TCGA-CS-4943-20000902_0000.nii.gz")
    touch(tmp_path, "labelsTr/TCGA-CS-4943-20000902.nii.gz")
    found = cases.find_cases(tmp_path, task=task_of(["CT"])).cases
    assert found[0].patient_id == "TCGA-CS-4943"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["imagesTr/A_0000.nii.gz", "imagesTr/B_0000.nii.gz", "imagesTr/B_0001.nii.gz"],
            r"A \(adc\)",
        ),
        (["imagesTr/A_0000.nii.gz"], "no case has adc"),
        (
            ["imagesTr/A_0000.nii.gz", "imagesTr/A_0001.nii.gz", "imagesTr/A_0002.nii.gz"],
            "channel 2",
        ),
        (["imagesTr/A_0000.mha"], r"no .nii or .nii.gz file.*\"file_ending\""),
        (["dataset.json", "labelsTr/A.nii.gz"], "holds dataset.json and labelsTr, but no imagesTr"),
        (["x/imagesTr/A_0000.nii.gz", "y/imagesTr/A_0000.nii.gz"], "several datasets"),
    ],
)
def test_files_that_contradict_the_task(
    tmp_path: pathlib.Path, names: Sequence[str], message: str
) -> None:
    touch(tmp_path, "labelsTr/A.txt", *names)
    for case in ("A", "B"):
        if any(name.startswith("imagesTr") and name.endswith(".gz") for name in names):
            touch(tmp_path, f"labelsTr/{case}.nii.gz")
    with pytest.raises(UserError, match=message):
        cases.find_cases(tmp_path, task=PROSTATE)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"channel_names": {"0": "T2", "1": "DWI"}}, "its channels are t2, dwi; the task"),
        ({"labels": {"background": 0, "PZ": 2, "TZ": 1}}, "the label 'PZ' has the values 2"),
    ],
)
def test_a_folder_of_another_task_is_refused(
    tmp_path: pathlib.Path, own: Mapping[str, Any], message: str
) -> None:
    folder = made_tasks.write_plain(tmp_path, 1)
    (folder / "dataset.json").write_text(json.dumps({**made_tasks.PLAIN, **own}))
    with pytest.raises(UserError, match=message):
        cases.find_cases(folder, task=PROSTATE)


def test_the_folder_of_the_images_alone_is_refused(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path, 1)
    with pytest.raises(UserError, match="the folder of the images alone"):
        cases.find_cases(folder / "imagesTr", task=PROSTATE)


def test_a_raw_folder_given_to_the_glioma_names_the_task_to_give(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path, 1)
    with pytest.raises(UserError, match=r"--config.task=DIR/dataset\.json"):
        cases.find_cases(folder)


# ---------------------------------------------------------------------------------- Decathlon


def write_decathlon(root: pathlib.Path, channels: int) -> pathlib.Path:
    rng = np.random.default_rng(0)
    shape = (8, 8, 8) if channels == 1 else (8, 8, 8, channels)
    for folder, array in (
        ("imagesTr", rng.normal(100, 9, shape).astype(np.float32)),
        ("labelsTr", np.pad(np.ones((2, 2, 2), np.uint8), 3)),
    ):
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, np.diag([-1, -1, 1, 1])), root / folder / "p_01.nii.gz")
    return root


def test_a_file_of_several_channels(tmp_path: pathlib.Path) -> None:
    root = write_decathlon(tmp_path, 2)
    cohort = cases.find_cases(root, task=PROSTATE)
    path = root / "imagesTr" / "p_01.nii.gz"
    assert cohort.cases[0].images == {"t2": (path, 0), "adc": (path, 1)}
    assert cohort.release == "decathlon"


def test_a_file_of_one_channel_has_no_axis_for_it(tmp_path: pathlib.Path) -> None:
    root = write_decathlon(tmp_path, 1)
    found = cases.find_cases(root, task=task_of(["CT"])).cases
    assert found[0].images == {"ct": root / "imagesTr" / "p_01.nii.gz"}


def test_another_number_of_channels_is_refused_before_a_case_is_built(
    tmp_path: pathlib.Path,
) -> None:
    root = write_decathlon(tmp_path / "scans", 3)
    with pytest.raises(UserError, match=r"p_01.nii.gz: has 3 channel\(s\); .* lists 2"):
        building.build_scans(tmp_path / "root", root, task=PROSTATE, progress=False)


# -------------------------------------------------------------------- names of one's own files


@pytest.mark.parametrize(
    ("name", "prefix", "channel"),
    [
        ("P_T2", "P", "t2"),
        ("P_T2W", "P", "t2"),  # a sequence of brain MRI has its known spellings
        ("P-ADC", "P", "adc"),
        ("P_adc_to_t2", "P", "adc"),
        ("P_reg_adc", "P", "adc"),
        ("P_highB", "P", "high b"),
        ("P_high-b_resampled", "P", "high b"),
        ("P_b1000", "P", "high b"),
        ("adc_001_t2", "adc_001", "t2"),
        ("sub-01_ses-2_acq-x_T2w", "sub-01_ses-2", "t2"),
        ("sub-01_dwi", "sub-01", "high b"),
        ("P_seg", "P", "label"),
        ("P_gland_seg", "P", "label"),
        ("sub-01_label-gland_mask", "sub-01", "label"),
        ("P_t1", "P", None),
        ("P_t2_gd", "P", None),  # with contrast agent it is another image
        ("P_t2_map_x", "P_t2_map", None),
        ("P_brain_mask", "P", None),
        ("adc_001", "adc", None),
    ],
)
def test_a_channel_is_the_last_word_of_a_name(name: str, prefix: str, channel: str | None) -> None:
    task = task_of(["T2", "ADC", "high b"], kdnet={"aliases": {"high b": ["b1000", "dwi"]}})
    found = task_names.read(name, "", task)
    assert (found.prefix, found.sequence) == (prefix, channel)


def test_a_name_of_two_channels_is_in_doubt() -> None:
    assert task_names.read("P_t2_adc", "", PROSTATE).doubt == "names adc and t2"


def test_a_sequence_with_contrast_agent_is_the_channel_that_means_it() -> None:
    task = task_of(["T1", "T1ce"])
    for name in ("P_t1_post", "P_T1_Gd", "sub-01_ce-gadolinium_T1w"):
        assert task_names.read(name, "", task).sequence == "t1ce"
    assert task_names.read("P_t1_Gd", "", task_of(["T1", "T2"])).sequence is None


def test_a_folder_of_one_s_own(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_regions(tmp_path, 2)
    (folder / "made01" / "made01_seg.nii.gz").rename(folder / "made01" / "spleen_mask.nii.gz")
    cohort = cases.find_cases(folder, task=LIVER)
    assert cohort.release == "user"
    case = cohort.cases[0]
    assert (case.case_id, list(case.images)) == ("made00", ["arterial", "venous", "late"])
    assert case.label == folder / "made00" / "made00_seg.nii.gz"
    assert "not said to be of the task's regions" in "\n".join(cohort.notes)


def test_flat_files_and_bids(tmp_path: pathlib.Path) -> None:
    flat = touch(tmp_path / "flat", "a_t2.nii", "a_adc.nii", "a_seg.nii", "b_t2.nii", "b_adc.nii")
    found = cases.find_cases(flat, task=PROSTATE, labelled=False).cases
    assert [(case.case_id, case.label is not None) for case in found] == [("a", True), ("b", False)]
    bids = touch(
        tmp_path / "bids",
        "derivatives/x/sub-7/ses-1/anat/sub-7_ses-1_T2w.nii.gz",
        "derivatives/x/sub-7/ses-1/dwi/sub-7_ses-1_space-T2w_adc.nii.gz",
        "derivatives/x/sub-7/ses-1/anat/sub-7_ses-1_label-lesion_mask.nii.gz",
    )
    case = cases.find_cases(bids, task=PROSTATE).cases[0]
    assert (case.case_id, case.patient_id, list(case.images)) == (
        "sub-7_ses-1",
        "sub-7",
        ["t2", "adc"],
    )


def test_two_files_for_a_channel_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "a/t2.nii", "a/a_T2W.nii", "a/adc.nii", "a/seg.nii")
    with pytest.raises(UserError, match=r"a_T2W.nii, t2.nii are all taken for t2 of a"):
        cases.find_cases(tmp_path, task=PROSTATE)


def test_names_that_tell_no_channel_are_refused_with_the_way_to_name_them(
    tmp_path: pathlib.Path,
) -> None:
    touch(tmp_path, "a/axial.nii", "b/axial.nii")
    with pytest.raises(UserError, match=r"says its channel \(t2, adc, and seg\).*\"aliases\""):
        cases.find_cases(tmp_path, task=PROSTATE)


# ------------------------------------------------------------------------------------- building


def test_a_dataset_knows_its_task(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "scans", 2)
    store = building.build_scans(
        tmp_path / "root", folder, task=PROSTATE, spacing=2.0, progress=False
    )
    assert store.task == PROSTATE
    assert store.modalities == ("t2", "adc")
    assert store.label_convention == "task"
    stored = nifti.read_labels(folder / "labelsTr" / "made_00.nii.gz").data
    np.testing.assert_array_equal(store[0].reference, stored)
    noun = made_tasks.PLAIN | {"kdnet": {"noun": "prostate"}}
    other = building.build_scans(
        tmp_path / "root",
        folder,
        task=dataset_json.parse(noun, "p/dataset.json"),
        spacing=2.0,
        progress=False,
    )
    assert other.fingerprint != store.fingerprint


def test_overlapping_regions_and_the_ignore_label_are_kept(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_regions(tmp_path / "scans", 1)
    store = building.build_scans(tmp_path / "root", folder, task=LIVER, spacing=2.0, progress=False)
    assert set(np.unique(store[0].reference)) == {0, 1, 2, 3, 4, 5}


def test_an_unknown_label_value_is_refused_before_a_case_is_built(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "scans", 2)
    path = folder / "labelsTr" / "made_01.nii.gz"
    image = nib.load(path)
    classes = np.asarray(image.dataobj).copy()
    classes[0, 0, :3] = 7
    nib.save(nib.Nifti1Image(classes, image.affine), path)
    message = r"made_01.nii.gz: holds the label 7 \(3 voxels\); .* 0 background, 1 PZ, 2 TZ"
    with pytest.raises(UserError, match=message):
        building.build_scans(tmp_path / "root", folder, task=PROSTATE, progress=False)
    assert not list((tmp_path / "root").rglob("*.array_record*"))
