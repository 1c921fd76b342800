"""Finding the masks of two folders, and matching them by case."""

import pathlib

import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.sources import cases, segmentations
from kdnet_jax.errors import UserError


def _folder(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Writes empty files: names alone tell the case."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def _found(root: pathlib.Path, *names: str) -> segmentations.Found:
    return segmentations.find_masks(_folder(root, *names), "--predictions", task_lib.GLIOMA)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("BraTS2021_00000.nii.gz", "BraTS2021_00000"),
        ("BraTS2021_00000_seg.nii.gz", "BraTS2021_00000"),
        ("BraTS2021_00000_pred.nii", "BraTS2021_00000"),
        ("BraTS2021_00000/BraTS2021_00000_seg.nii.gz", "BraTS2021_00000"),
        ("BraTS2021_00000/prediction.nii.gz", "BraTS2021_00000"),
        ("BraTS-GLI-00001-101-seg.nii.gz", "BraTS-GLI-00001-101"),
        ("BraTS-GLI-00001-101.nii.gz", "BraTS-GLI-00001-101"),
        ("HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_seg.nii.gz", "Brats18_CBICA_AAB_1"),
        ("BraTS20_Training_355/W39_1998.09.19_Segm.nii", "BraTS20_Training_355"),
        ("labelsTr/BRATS_007.nii.gz", "BRATS_007"),
        ("patient 3/seg.nii.gz", "patient 3"),
        ("anna/pre/seg.nii.gz", "anna_pre"),
        ("sub-01/ses-1/anat/seg.nii.gz", "sub-01_ses-1"),
        ("left-frontal_mask.nii.gz", "left-frontal"),
        ("phantom-0003.nii.gz", "phantom-0003"),
        # MONAI's SaveImage: a folder and a file named after the first image.
        ("a_1_flair/a_1_flair_trans.nii.gz", "a_1"),
        ("CASE_SEG.NII.GZ", "CASE"),
        ("a_1_flair_seg.nii.gz", "a_1"),
        ("a_1_tumor_segmentation.nii.gz", "a_1"),
        ("sub-01/ses-1/anat/sub-01_ses-1_space-MNI_label-tumor_mask.nii.gz", "sub-01_ses-1"),
        ("brain_001.nii.gz", "brain_001"),
        ("sub-01.nii.gz", "sub-01"),
        ("sub-01_ses-1.nii.gz", "sub-01_ses-1"),
        ("sub-01_ses-1/sub-01_ses-1.nii.gz", "sub-01_ses-1"),
    ],
)
def test_the_case_of_a_name(tmp_path, name, case) -> None:
    found = _found(tmp_path, name)
    assert found.masks == {case: [tmp_path / name]}
    assert found.notes == []


def test_masks_of_bids_have_the_case_ids_of_the_scans(tmp_path) -> None:
    scans = ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    cohort = cases.find_cases(_folder(tmp_path / "scans", *scans), "auto", ("t1",), False)
    ids = [case.case_id for case in cohort.cases]
    assert ids == ["sub-01_ses-1", "sub-02"]
    assert list(_found(tmp_path / "masks", *(f"{each}.nii.gz" for each in ids)).masks) == ids


def test_what_is_no_mask_is_named_and_left(tmp_path) -> None:
    found = _found(
        tmp_path,
        "a.nii.gz",
        "a_probabilities.nii.gz",
        "a_t1.nii.gz",
        "a.npz",
        "plans.json",
        ".hidden",
        "imagesTr/b.nii.gz",
    )
    assert list(found.masks) == ["a"]
    (note,) = found.notes
    for name in ("a_probabilities.nii.gz", "a.npz", "plans.json"):
        assert name in note
    for expected in ("hidden", "a_t1", "b.nii.gz"):  # scans belong to the layouts of BraTS
        assert expected not in note


@pytest.mark.parametrize(
    "other",
    ["a_brain_mask", "a_t1_bet_mask", "a_ET_seg", "a-mask-healthy", "a_t1n_voided", "a_ADC"],
)
def test_masks_of_something_else_are_left_aside(tmp_path, other) -> None:
    found = _found(tmp_path, "a_seg.nii.gz", f"{other}.nii.gz")
    assert found.masks == {"a": [tmp_path / "a_seg.nii.gz"]}
    assert f"{other}.nii.gz" in found.notes[0]


def test_where_no_file_is_a_mask_the_first_says_why(tmp_path) -> None:
    with pytest.raises(UserError, match=r"a_t1_mask\.nii\.gz is a mask of either the brain"):
        _found(tmp_path, "a_t1_mask.nii.gz")


def test_the_references_of_ucsf_pdgm_as_they_are_downloaded(tmp_path) -> None:
    name = "UCSF-PDGM-0004"
    tokens = ("T1", "T1_bias", "DTI_eddy_noreg", "brain_segmentation", "tumor_segmentation")
    found = _found(tmp_path, *(f"{name}_nifti/{name}_{token}.nii.gz" for token in tokens))
    assert found.masks == {name: [tmp_path / f"{name}_nifti/{name}_tumor_segmentation.nii.gz"]}
    assert f"{name}_DTI_eddy_noreg.nii.gz" in found.notes[0]


def test_masks_named_after_the_one_sequence_they_were_made_from(tmp_path) -> None:
    assert set(_found(tmp_path / "one", "a_t1ce.nii.gz", "b_t1ce.nii.gz").masks) == {"a", "b"}
    with pytest.raises(UserError, match="is a mask by its name"):
        _found(tmp_path / "two", "a_t1ce.nii.gz", "a_flair.nii.gz")


def test_of_a_run_the_predictions_are_taken(tmp_path) -> None:
    found = _found(tmp_path, "config.json", "predictions/a.nii.gz", "teacher/predictions/b.nii.gz")
    assert found.folder == tmp_path / "predictions"
    assert list(found.masks) == ["a"]


def test_a_compressed_copy_is_taken_and_said(tmp_path) -> None:
    found = _found(tmp_path, "a.nii", "a.nii.gz")
    assert found.masks == {"a": [tmp_path / "a.nii.gz"]}
    assert "a.nii.gz" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "found"),
    [("gone", "no such folder"), ("", "no such folder"), ("file.nii.gz", "is a file")],
)
def test_no_folder(tmp_path, monkeypatch, name, found) -> None:
    monkeypatch.chdir(_folder(tmp_path, "file.nii.gz"))
    with pytest.raises(UserError, match=rf"--references=.*{found}"):
        segmentations.find_masks(name, "--references", task_lib.GLIOMA)


@pytest.mark.parametrize(
    ("names", "release"),
    [
        (["BraTS2021_00000/BraTS2021_00000_seg.nii.gz"], "brats2021"),
        (["BraTS-GLI-00001-000-seg.nii.gz"], "brats2023"),
        (["BraTS-GLI-02001-100-seg.nii.gz"], "brats2024"),
        (["labelsTr/BRATS_007.nii.gz"], "decathlon"),
        # A name alone says which case it is, and nothing of the labels.
        (["BraTS2021_00000.nii.gz"], None),
        (["BraTS2021_00000_seg.nii.gz", "BraTS2021_00001.nii.gz"], None),
        (["a/seg.nii.gz"], None),
    ],
)
def test_the_release_is_that_of_its_own_layout(tmp_path, names, release) -> None:
    assert segmentations.release_of(_found(tmp_path, *names)) == release


# ------------------------------------------------------------------------- matching


def _matched(
    tmp_path: pathlib.Path,
    references: list[str],
    predictions: list[str],
    wanted: list[str] | None = None,
    allow_missing: bool = False,
) -> tuple:
    return segmentations.match(
        _found(tmp_path / "references", *references),
        _found(tmp_path / "predictions", *predictions),
        wanted,
        allow_missing=allow_missing,
    )


def test_pairs_are_in_the_order_of_their_ids(tmp_path) -> None:
    pairs, left_out, listed, notes = _matched(
        tmp_path, ["b_seg.nii.gz", "a/seg.nii.gz"], ["b.nii.gz", "a_pred.nii.gz"]
    )
    assert [pair.case_id for pair in pairs] == ["a", "b"]
    assert pairs[0].reference == tmp_path / "references/a/seg.nii.gz"
    assert pairs[0].prediction == tmp_path / "predictions/a_pred.nii.gz"
    assert (left_out, listed, notes) == ([], [], [])


def test_a_missing_prediction_is_a_problem_with_the_nearest_name(tmp_path) -> None:
    _, _, (problem,), notes = _matched(
        tmp_path, ["case_1.nii.gz", "case_2.nii.gz"], ["case_1.nii.gz", "case2.nii.gz"]
    )
    assert "no prediction for 1 case: case_2; did you mean 'case2'" in problem.finding
    assert "--allow_missing" in problem.remedy
    assert "case2" in notes[0]


def test_missing_predictions_are_left_out_where_that_is_allowed(tmp_path) -> None:
    pairs, left_out, listed, _ = _matched(
        tmp_path, ["a.nii.gz", "b.nii.gz"], ["a.nii.gz"], allow_missing=True
    )
    assert [pair.case_id for pair in pairs] == ["a"]
    assert (left_out, listed) == (["b"], [])


def test_only_the_wanted_cases_count(tmp_path) -> None:
    files = ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    pairs, _, listed, notes = _matched(tmp_path, files[:2], files[1:], wanted=["b"])
    assert [pair.case_id for pair in pairs] == ["b"]
    assert listed == []
    assert "--cases does not name" in notes[0]


def test_a_wanted_case_without_a_reference_is_a_problem_even_if_missing_ones_may_be(
    tmp_path,
) -> None:
    _, _, (problem,), _ = _matched(
        tmp_path, ["a.nii.gz"], ["a.nii.gz"], wanted=["a", "d"], allow_missing=True
    )
    assert "no reference for 1 case: d" in problem.finding


@pytest.mark.parametrize("side", ["references", "predictions"])
def test_a_doubled_mask_is_a_problem_that_names_both(tmp_path, side) -> None:
    files = {"references": ["a.nii.gz"], "predictions": ["a.nii.gz"]}
    files[side] = ["a.nii.gz", "other/a_seg.nii.gz"]
    _, _, (problem,), _ = _matched(tmp_path, **files)
    assert problem.case == "a"
    assert problem.file == str(tmp_path / side / "a.nii.gz")
    assert str(tmp_path / side / "other/a_seg.nii.gz") in problem.finding


def test_folders_that_have_no_case_in_common(tmp_path) -> None:
    _, _, listed, _ = _matched(tmp_path, ["a.nii.gz"], ["x.nii.gz"], allow_missing=True)
    assert "no case is in both folders: predictions of x; references of a" in listed[-1].finding
