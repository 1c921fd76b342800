import json
import os
import pathlib

import pytest

from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError

OLD = ("flair", "t1", "t1ce", "t2", "seg")
NEW = ("t1n", "t1c", "t2w", "t2f", "seg")


def add_files(folder: pathlib.Path, *names: str) -> None:
    """Cases are found by name only, so empty files serve."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def add_case(folder: pathlib.Path, suffix: str = ".nii.gz") -> pathlib.Path:
    name = folder.name
    new = name.startswith("BraTS-")
    add_files(
        folder, *(f"{name}{'-' if new else '_'}{token}{suffix}" for token in (NEW if new else OLD))
    )
    return folder


def ids(cohort: cases.Cohort) -> list[str]:
    return [case.case_id for case in cohort.cases]


def said(cohort: cases.Cohort) -> str:
    return "\n".join(cohort.notes)


def add_decathlon(root: pathlib.Path, modality: dict[str, str] | None = None) -> None:
    add_files(root / "imagesTr", "BRATS_001.nii.gz", "._BRATS_001.nii.gz", "BRATS_002.nii.gz")
    add_files(root / "labelsTr", "BRATS_001.nii.gz", "BRATS_002.nii.gz", "._BRATS_002.nii.gz")
    add_files(root / "imagesTs", "BRATS_485.nii.gz")
    content = {
        "modality": modality or {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "ET"},
    }
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("brats2018", ["HGG/Brats18_CBICA_AAB_1", "LGG/Brats18_2013_0_1"]),
        ("brats2019", ["HGG/BraTS19_2013_10_1", "LGG/BraTS19_TCIA01_150_1"]),
        ("brats2020", ["BraTS20_Training_001", "BraTS20_Training_369"]),
        ("brats2021", ["BraTS2021_00000", "BraTS2021_01666"]),
        ("brats2023", ["BraTS-GLI-00000-000", "BraTS-MET-00101-000"]),
        ("brats2024", ["BraTS-GLI-00005-100", "BraTS-GLI-02062-101"]),
    ],
)
@pytest.mark.parametrize("above", ["", "MICCAI_Training/", "a/b/"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ"])
def test_releases_are_recognised(
    tmp_path: pathlib.Path, release: str, names: list[str], above: str, suffix: str
) -> None:
    for name in names:
        add_case(tmp_path / above / name, suffix)
    cohort = cases.find_cases(tmp_path)
    assert cohort.release == release
    assert sorted(ids(cohort)) == sorted(name.rpartition("/")[2] for name in names)
    for case in cohort.cases:
        assert list(case.images) == ["t1", "t1ce", "t2", "flair"]
        new = case.case_id.startswith("BraTS-")
        tokens = ("t1n", "t1c", "t2w", "t2f") if new else ("t1", "t1ce", "t2", "flair")
        for path, token in zip(case.images.values(), tokens, strict=True):
            assert path.name == f"{case.case_id}{'-' if new else '_'}{token}{suffix}"
        assert case.label.name.endswith(f"seg{suffix}")
        assert case.convention == release


def test_grade_from_folders_above_and_at_the_root(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "HGG" / "Brats18_CBICA_AAB_1")
    add_case(tmp_path / "LGG" / "Brats18_2013_0_1")
    grades = {case.case_id: case.grade for case in cases.find_cases(tmp_path).cases}
    assert grades == {"Brats18_CBICA_AAB_1": "HGG", "Brats18_2013_0_1": "LGG"}
    assert cases.find_cases(tmp_path / "LGG").cases[0].grade == "LGG"


@pytest.mark.parametrize("name", ["name_mapping.csv", "data/name_mapping.csv"])
def test_grade_of_2020_from_the_mapping_beside_or_within(tmp_path: pathlib.Path, name: str) -> None:
    add_case(tmp_path / "data" / "BraTS20_Training_001")
    add_case(tmp_path / "data" / "BraTS20_Training_002")
    (tmp_path / name).write_text(
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        "HGG,BraTS19_TCIA01_1_1,BraTS20_Training_001\nLGG,NA,BraTS20_Training_002\n"
    )
    found = cases.find_cases(tmp_path / "data").cases
    assert [case.grade for case in found] == ["HGG", "LGG"]


def test_visits_share_a_patient(tmp_path: pathlib.Path) -> None:
    for name in ("BraTS-GLI-00008-000", "BraTS-GLI-00008-001", "BraTS-GLI-00009-000"):
        add_case(tmp_path / name)
    found = cases.find_cases(tmp_path).cases
    assert [case.patient_id for case in found] == ["BraTS-GLI-00008"] * 2 + ["BraTS-GLI-00009"]


def test_2023_and_2024_can_be_forced_and_told_by_folder(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "BraTS2024-MET" / "BraTS-MET-00001-000")
    assert cases.find_cases(tmp_path).release == "brats2024"
    forced = cases.find_cases(tmp_path, "brats2023")
    assert forced.release == forced.cases[0].convention == "brats2023"
    assert "brats2023 was taken, as asked" in said(forced)


def test_paediatric_labels_of_2024_are_refused(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "BraTS-PED-00001-000")
    assert "1 ET" in said(cases.find_cases(tmp_path))
    with pytest.raises(UserError, match="1 ET, 2 non-enhancing"):
        cases.find_cases(tmp_path, "brats2024")


def test_decathlon(tmp_path: pathlib.Path) -> None:
    add_decathlon(tmp_path / "Task01_BrainTumour")
    cohort = cases.find_cases(tmp_path, modalities=("flair", "t1"))
    assert cohort.release == "decathlon"
    assert ids(cohort) == ["BRATS_001", "BRATS_002"]
    root = tmp_path / "Task01_BrainTumour"
    image = root / "imagesTr" / "BRATS_001.nii.gz"
    assert cohort.cases[0].images == {"t1": (image, 1), "flair": (image, 0)}
    assert cohort.cases[0].label == root / "labelsTr" / "BRATS_001.nii.gz"
    assert "BRATS_485" in said(cohort)
    assert len(cases.find_cases(tmp_path, labelled=False).cases) == 3


def test_decathlon_channels_are_read_not_assumed(tmp_path: pathlib.Path) -> None:
    add_decathlon(tmp_path, {"0": "T2w", "1": "T1w", "2": "T1gd", "3": "FLAIR"})
    cohort = cases.find_cases(tmp_path)
    assert {name: channel for name, (_, channel) in cohort.cases[0].images.items()} == {
        "t1": 1,
        "t1ce": 2,
        "t2": 0,
        "flair": 3,
    }
    assert "not the published order" in said(cohort)
    add_decathlon(tmp_path, {"0": "FLAIR", "1": "T1w", "2": "ADC", "3": "T2w"})
    with pytest.raises(UserError, match="ADC"):
        cases.find_cases(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"dataset\.json: missing"):
        cases.find_cases(tmp_path)


def test_case_355_and_other_odd_names(tmp_path: pathlib.Path) -> None:
    folder = add_case(tmp_path / "BraTS20_Training_355", ".nii")
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (folder / "BraTS20_Training_355_t2.nii").rename(folder / "BraTS20_Training_355-t2W.nii")
    cohort = cases.find_cases(tmp_path)
    assert cohort.cases[0].label.name == "W39_1998.09.19_Segm.nii"
    assert cohort.cases[0].images["t2"].name == "BraTS20_Training_355-t2W.nii"
    assert "W39_1998.09.19_Segm.nii is taken as its label" in said(cohort)
    # A repaired copy beside it has the case's own name, and wins.
    add_files(folder, "BraTS20_Training_355_seg.nii")
    assert cases.find_cases(tmp_path).cases[0].label.name == "BraTS20_Training_355_seg.nii"


def test_a_file_of_another_case_is_refused(tmp_path: pathlib.Path) -> None:
    folder = add_case(tmp_path / "BraTS2021_00001")
    (folder / "BraTS2021_00001_t1.nii.gz").rename(folder / "BraTS2021_00002_t1.nii.gz")
    with pytest.raises(UserError, match=r"00002_t1.*lies in the folder of BraTS2021_00001"):
        cases.find_cases(tmp_path)


def test_two_files_for_one_sequence_are_refused(tmp_path: pathlib.Path) -> None:
    folder = add_case(tmp_path / "BraTS2021_00001")
    add_files(folder, "BraTS2021_00001_t1w.nii.gz")
    with pytest.raises(UserError, match="all taken for t1 of BraTS2021_00001"):
        cases.find_cases(tmp_path)


def test_the_compressed_copy_is_preferred(tmp_path: pathlib.Path) -> None:
    folder = add_case(tmp_path / "BraTS2021_00001")
    add_files(folder, "BraTS2021_00001_t1.nii")
    cohort = cases.find_cases(tmp_path)
    assert cohort.cases[0].images["t1"].name == "BraTS2021_00001_t1.nii.gz"
    assert "BraTS2021_00001_t1.nii.gz" in said(cohort)


def test_folders_named_like_files(tmp_path: pathlib.Path) -> None:
    name = "Brats18_CBICA_AAB_1"
    for token in OLD:
        add_files(tmp_path / name / f"{name}_{token}.nii", f"inner_{token}.nii")
    case = cases.find_cases(tmp_path).cases[0]
    assert case.images["flair"] == tmp_path / name / f"{name}_flair.nii" / "inner_flair.nii"
    add_files(tmp_path / name / f"{name}_t1.nii", "second.nii")
    with pytest.raises(UserError, match="holds 2 NIfTI files"):
        cases.find_cases(tmp_path)


def test_links_that_lead_back_do_not_hang(tmp_path: pathlib.Path) -> None:
    folder = add_case(tmp_path / "BraTS2021_00001")
    (folder / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path)
    assert ids(cases.find_cases(tmp_path)) == ["BraTS2021_00001"]


def test_a_linked_folder_is_followed(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "elsewhere" / "BraTS2021_00001")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert ids(cases.find_cases(tmp_path / "data")) == ["BraTS2021_00001"]


def test_missing_sequences_are_counted_and_named(tmp_path: pathlib.Path) -> None:
    for i in range(8):
        folder = add_case(tmp_path / f"BraTS2021_{i:05}")
        if i:
            (folder / f"{folder.name}_t2.nii.gz").unlink()
    with pytest.raises(UserError, match=r"7 of 8 cases: BraTS2021_00001 \(t2\).* and 2 more"):
        cases.find_cases(tmp_path)
    assert len(cases.find_cases(tmp_path, modalities=("t1", "flair")).cases) == 8


def test_a_sequence_that_nobody_has(tmp_path: pathlib.Path) -> None:
    add_files(tmp_path / "p1", "t1ce.nii.gz", "flair.nii.gz", "seg.nii.gz")
    with pytest.raises(UserError, match=r"no case has t1, t2; there are t1ce, flair.*modal.*--seq"):
        cases.find_cases(tmp_path)


def test_what_labels_mean_is_said_where_they_are_read(tmp_path: pathlib.Path) -> None:
    for name, words in (("anna", "read as those of brats2021"), ("BraTS-GLI-00001-000", "2024")):
        add_case(tmp_path / name / name)
        told = [cases.find_cases(tmp_path / name, labelled=labelled) for labelled in (True, False)]
        assert [words in said(cohort) for cohort in told] == [True, False]
        assert "--config.data." in said(told[0])
        assert "check_data" in said(told[0])


def test_the_raw_layout_of_nnunet_is_refused_with_what_every_command_can_do(
    tmp_path: pathlib.Path,
) -> None:
    add_files(tmp_path / "imagesTr", "a_0000.nii.gz", "a_0001.nii.gz")
    with pytest.raises(UserError, match=r"check_data, build_data: --task=.*and its networks, copy"):
        cases.find_cases(tmp_path, labelled=False)


def test_cases_without_labels(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "BraTS20_Training_001")
    folder = add_case(tmp_path / "BraTS20_Validation_001")
    (folder / "BraTS20_Validation_001_seg.nii.gz").unlink()
    cohort = cases.find_cases(tmp_path)
    assert ids(cohort) == ["BraTS20_Training_001"]
    assert "want of a segmentation: BraTS20_Validation_001" in said(cohort)
    assert cases.find_cases(tmp_path, labelled=False).cases[1].label is None
    with pytest.raises(UserError, match="no segmentation in 1 case "):
        cases.find_cases(folder)


def test_several_releases_are_refused_unless_one_is_chosen(tmp_path: pathlib.Path) -> None:
    add_case(tmp_path / "a" / "BraTS20_Training_001")
    add_case(tmp_path / "b" / "BraTS2021_00001")
    add_case(tmp_path / "b" / "BraTS2021_00002")
    with pytest.raises(UserError, match=r"brats2020 \(1 case\), brats2021 \(2 cases\)"):
        cases.find_cases(tmp_path)
    assert len(cases.find_cases(tmp_path, "brats2021").cases) == 2
    with pytest.raises(UserError, match="no case of brats2018; found brats2020"):
        cases.find_cases(tmp_path, "brats2018")


@pytest.mark.parametrize("release", ["auto", "user"])
def test_a_case_that_is_there_twice(tmp_path: pathlib.Path, release: str) -> None:
    add_case(tmp_path / "a" / "BraTS2021_00001")
    add_case(tmp_path / "b" / "BraTS2021_00001")
    with pytest.raises(UserError, match="BraTS2021_00001 is duplicate"):
        cases.find_cases(tmp_path, release)


def test_nothing_usable(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        cases.find_cases(tmp_path / "missing")
    with pytest.raises(UserError, match="data_dir is empty"):
        cases.find_cases("")
    with pytest.raises(UserError, match="it is empty"):
        cases.find_cases(tmp_path)
    add_files(tmp_path, "BraTS2021.tar", "notes.txt")
    with pytest.raises(UserError, match=r"it holds BraTS2021\.tar, notes\.txt\nKnown layouts"):
        cases.find_cases(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        cases.find_cases(tmp_path / "notes.txt")
    add_files(tmp_path, "scan.nii.gz")
    with pytest.raises(UserError, match="Known layouts"):
        cases.find_cases(tmp_path)


def test_unknown_arguments(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="did you mean 'brats2021'"):
        cases.find_cases(tmp_path, "brats21")
    with pytest.raises(UserError, match="'t1c'"):
        cases.find_cases(tmp_path, modalities=("t1c",))
    with pytest.raises(UserError, match="once"):
        cases.find_cases(tmp_path, modalities=("t1", "t1"))
    with pytest.raises(UserError, match="label_convention is"):
        cases.find_cases(tmp_path, label_convention="mine")


USER = ("T1w", "t1post", "T2W", "fla", "mask")


@pytest.mark.parametrize("names", [["{}/{}.nii.gz"], ["{0}/{0}_{1}.nii"], ["{}_{}.nii.gz"]])
def test_own_data_in_folders_and_flat(tmp_path: pathlib.Path, names: list[str]) -> None:
    for patient in ("site-1_p1", "site-1_p2"):
        for token in USER:
            path = tmp_path / names[0].format(patient, token)
            add_files(path.parent, path.name)
    cohort = cases.find_cases(tmp_path)
    assert cohort.release == "user"
    assert ids(cohort) == ["site-1_p1", "site-1_p2"]
    assert list(cohort.cases[0].images) == ["t1", "t1ce", "t2", "flair"]
    assert cohort.cases[0].label is not None
    assert cohort.cases[0].convention == "brats2021"
    assert "label values are read as those of brats2021" in said(cohort)
    other = cases.find_cases(tmp_path, label_convention="brats2023")
    assert other.cases[0].convention == "brats2023"


def test_patients_csv(tmp_path: pathlib.Path) -> None:
    for name in ("v1", "v2"):
        add_files(tmp_path / name, "t1.nii.gz", "seg.nii.gz")
    table = tmp_path / "patients.csv"
    table.write_text("case_id,patient_id,grade\nv1,anna,hgg\nv2,anna,\n")
    found = cases.find_cases(tmp_path, modalities=("t1",)).cases
    assert [(case.patient_id, case.grade) for case in found] == [("anna", "HGG"), ("anna", None)]
    table.write_text("case_id,patient_id\nv1,anna\n")
    with pytest.raises(UserError, match="no patient for v2"):
        cases.find_cases(tmp_path, modalities=("t1",))
    table.write_text("case_id,patient_id,grade\nv1,a,4\nv2,b,HGG\n")
    with pytest.raises(UserError, match="grade of v1 is '4'"):
        cases.find_cases(tmp_path, modalities=("t1",))


@pytest.mark.parametrize(
    "visits",
    [("pre", "post"), ("2020", "2021-03"), ("1", "2"), ("visit_1", "visit_2"), ("v1", "v2")],
)
@pytest.mark.parametrize("prefix", ["", "{patient}_", "{visit}_", "{patient}_{visit}_"])
def test_folders_of_visits_are_of_the_patient_above(
    tmp_path: pathlib.Path, visits: tuple[str, ...], prefix: str
) -> None:
    for patient in ("anna", "bob"):
        for visit in visits:
            name = prefix.format(patient=patient, visit=visit)
            add_files(tmp_path / patient / visit, f"{name}t2.nii.gz", f"{name}seg.nii.gz")
    cohort = cases.find_cases(tmp_path, modalities=("t2",))
    assert [(case.case_id, case.patient_id) for case in cohort.cases] == [
        (f"{patient}_{visit}", patient) for patient in ("anna", "bob") for visit in sorted(visits)
    ]
    assert f"anna_{visits[0]} is of anna" in said(cohort)


def test_numbered_patients_of_a_site_are_no_visits(tmp_path: pathlib.Path) -> None:
    for number in ("1", "9", "10"):
        add_files(tmp_path / "site" / number, "t2.nii.gz", "seg.nii.gz")
    cohort = cases.find_cases(tmp_path, modalities=("t2",))
    assert [(case.case_id, case.patient_id) for case in cohort.cases] == [
        ("1", "1"),
        ("10", "10"),
        ("9", "9"),
    ]


@pytest.mark.parametrize("above", ["train", "HGG", "batch_1"])
def test_folders_within_a_collection_are_patients(tmp_path: pathlib.Path, above: str) -> None:
    for patient in ("anna", "bob", "017"):
        add_files(tmp_path / above / patient, "t1.nii.gz", "seg.nii.gz")
    found = cases.find_cases(tmp_path, modalities=("t1",)).cases
    assert [(case.case_id, case.patient_id) for case in found] == [
        (name, name) for name in ("017", "anna", "bob")
    ]
    add_files(tmp_path / "other" / "anna", "t1.nii.gz", "seg.nii.gz")
    with pytest.raises(UserError, match="case anna is duplicate"):
        cases.find_cases(tmp_path, modalities=("t1",))


def test_relative_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_case(tmp_path / "HGG" / "Brats18_CBICA_AAB_1")
    monkeypatch.chdir(tmp_path / "HGG")
    assert cases.find_cases(os.curdir).cases[0].grade == "HGG"


def test_the_sample(sample_dir: pathlib.Path) -> None:
    cohort = cases.find_cases(sample_dir)
    assert cohort.release == "brats2021"
    assert len(cohort.cases) == 10
    assert all(path.is_file() for case in cohort.cases for path in case.images.values())


# --------------------------------------------------------------- masks that are no segmentation


@pytest.mark.parametrize("mask", ["brain_mask", "t1_bet_mask", "brainMask", "ET_seg", "t1_mask"])
def test_a_mask_of_something_else_is_no_label(tmp_path: pathlib.Path, mask: str) -> None:
    add_files(tmp_path / "p1", "t1.nii.gz", f"{mask}.nii.gz")
    cohort = cases.find_cases(tmp_path, modalities=("t1",), labelled=False)
    assert cohort.cases[0].label is None
    assert f"{mask}.nii.gz" in said(cohort)
    with pytest.raises(UserError, match=rf"no segmentation in 1 case .*{mask}.*CASE_seg"):
        cases.find_cases(tmp_path, modalities=("t1",))
    add_files(tmp_path / "p1", "tumor_mask.nii.gz")
    label = cases.find_cases(tmp_path, modalities=("t1",)).cases[0].label
    assert label.name == "tumor_mask.nii.gz"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("anna/anna_t1", "anna/anna_thalamus_seg"),
        ("anna/anna_t1", "anna/anna_liver_label"),
        ("anna/t1", "anna/icv_mask"),
        ("anna/t1", "anna/old_seg"),
        ("anna/t1", "anna/thalamus_in_t1_seg"),
        ("anna/visit_1_t1", "anna/visit_1_wmh_seg"),
        ("sub-01/anat/sub-01_T1w", "derivatives/x/sub-01/anat/sub-01_desc-dose_mask"),
    ],
)
def test_a_mask_that_is_not_said_to_be_of_the_tumour_is_no_label(
    tmp_path: pathlib.Path, image: str, mask: str
) -> None:
    for name in (image, mask):
        path = tmp_path / f"{name}.nii.gz"
        add_files(path.parent, path.name)
    cohort = cases.find_cases(tmp_path, modalities=("t1",), labelled=False)
    assert cohort.cases[0].label is None
    assert "not said to be of a tumour" in said(cohort)
    assert path.name in said(cohort)
    with pytest.raises(UserError, match=rf"no segmentation in 1 case .*{path.name}.*CASE_seg"):
        cases.find_cases(tmp_path, modalities=("t1",))


def test_in_a_flat_folder_the_mask_of_another_structure_is_named(tmp_path: pathlib.Path) -> None:
    add_files(tmp_path, "anna_t1.nii.gz", "anna_thalamus_seg.nii.gz")
    with pytest.raises(UserError, match=r"no segmentation in 1 case .*no sequence.*anna_thalamus"):
        cases.find_cases(tmp_path, modalities=("t1",))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("anna/t1", "anna/anna_seg"),
        ("anna/t1", "anna/thalamus_tumor_seg"),
        ("anna/x_1_ax_t1", "anna/x_1_seg"),
        ("site_anna/t1", "site_anna/anna_manual_seg"),
    ],
)
def test_a_mask_of_the_case_or_of_a_tumour_is_the_label(
    tmp_path: pathlib.Path, image: str, mask: str
) -> None:
    for name in (image, mask):
        path = tmp_path / f"{name}.nii.gz"
        add_files(path.parent, path.name)
    (case,) = cases.find_cases(tmp_path, modalities=("t1",)).cases
    assert case.label == path


@pytest.mark.parametrize("name", ["BraTS-GLI-00001-000-", "anna_"])
@pytest.mark.parametrize("beside", ["mask-healthy", "t1n-voided"])
def test_the_mask_of_an_inpainting_set_is_no_label(
    tmp_path: pathlib.Path, name: str, beside: str
) -> None:
    folder = tmp_path / name[:-1]
    add_files(folder, *(f"{name}{token}.nii.gz" for token in ("t1n", "mask", beside)))
    (case,) = cases.find_cases(tmp_path, modalities=("t1",), labelled=False).cases
    assert case.label is None
    assert case.images["t1"].name == f"{name}t1n.nii.gz"


def test_the_mask_of_an_inpainting_set_alone_is_known_by_its_form(tmp_path: pathlib.Path) -> None:
    name = "BraTS-GLI-00001-000"
    add_files(tmp_path / name, f"{name}-t1n.nii.gz", f"{name}-mask.nii.gz")
    assert cases.find_cases(tmp_path, modalities=("t1",), labelled=False).cases[0].label is None


# --------------------------------------------------------------- names with several sequences


def test_files_on_one_grid_are_one_patient(tmp_path: pathlib.Path) -> None:
    add_files(
        tmp_path / "anna",
        *("T1_to_T1CE.nii.gz", "T2_to_T1CE.nii.gz", "FLAIR_to_T1CE.nii.gz", "T1CE.nii.gz"),
        "seg_in_T1CE.nii.gz",
    )
    (case,) = cases.find_cases(tmp_path).cases
    assert case.case_id == "anna"
    assert {m: path.name.split("_")[0].split(".")[0] for m, path in case.images.items()} == {
        "t1": "T1",
        "t1ce": "T1CE",
        "t2": "T2",
        "flair": "FLAIR",
    }
    assert case.label.name == "seg_in_T1CE.nii.gz"


def test_a_name_that_contradicts_itself_is_refused(tmp_path: pathlib.Path) -> None:
    add_files(tmp_path / "anna", "T1_foo_T1CE.nii.gz", "T1.nii.gz", "seg.nii.gz")
    with pytest.raises(UserError, match=r"T1_foo_T1CE\.nii\.gz: its name names t1 and t1ce"):
        cases.find_cases(tmp_path, modalities=("t1",))


def test_five_files_that_do_not_belong_together_by_name_are_not_five_patients(
    tmp_path: pathlib.Path,
) -> None:
    files = ("ax_t1", "sag_t1", "cor_t2", "x_flair", "y_t1ce")
    add_files(tmp_path / "anna", *(f"{name}.nii.gz" for name in files))
    with pytest.raises(UserError, match="unknown which are of one case"):
        cases.find_cases(tmp_path, modalities=("t1",), labelled=False)


def test_a_bare_name_is_of_the_folder_s_case(tmp_path: pathlib.Path) -> None:
    add_files(tmp_path / "anna", "t1.nii.gz", "old_t1.nii.gz", "t1ce.nii.gz", "seg.nii.gz")
    cohort = cases.find_cases(tmp_path, modalities=("t1", "t1ce"))
    assert ids(cohort) == ["anna"]
    assert cohort.cases[0].images["t1"].name == "t1.nii.gz"
    assert "old_t1.nii.gz" in said(cohort)


def test_initials_that_are_words_too_stay_apart(tmp_path: pathlib.Path) -> None:
    for case in ("md", "ed", "anna_pre", "anna_post"):
        add_files(tmp_path, f"{case}_t1ce.nii.gz", f"{case}_flair.nii.gz")
    found = cases.find_cases(tmp_path, modalities=("t1ce", "flair"), labelled=False)
    assert ids(found) == ["anna_post", "anna_pre", "ed", "md"]


def test_scans_of_one_sequence_in_a_folder_are_patients(tmp_path: pathlib.Path) -> None:
    add_files(tmp_path / "scans", "anna_t1ce.nii.gz", "bob_t1ce.nii.gz")
    assert ids(cases.find_cases(tmp_path, modalities=("t1ce",), labelled=False)) == ["anna", "bob"]


# --------------------------------------------------------------------------------- BIDS


def _add_bids(root: pathlib.Path, subject: str, session: str = "") -> None:
    place, name = pathlib.Path(subject, session), "_".join(filter(None, (subject, session)))
    tokens = ("T1w", "ce-gadolinium_T1w", "T2w", "space-T1w_FLAIR")
    add_files(root / place / "anat", *(f"{name}_{token}.nii.gz" for token in tokens))
    add_files(
        root / "derivatives" / "manual" / place / "anat",
        *(f"{name}_label-tumor_mask.nii.gz", f"{name}_desc-brain_mask.nii.gz"),
    )


def test_bids(tmp_path: pathlib.Path) -> None:
    _add_bids(tmp_path, "sub-01", "ses-1")
    _add_bids(tmp_path, "sub-01", "ses-2")
    _add_bids(tmp_path, "sub-02")
    (tmp_path / "dataset_description.json").write_text("{}")
    cohort = cases.find_cases(tmp_path)
    assert ids(cohort) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert [case.patient_id for case in cohort.cases] == ["sub-01", "sub-01", "sub-02"]
    first = cohort.cases[0]
    assert [path.name.removeprefix("sub-01_ses-1_") for path in first.images.values()] == [
        *("T1w.nii.gz", "ce-gadolinium_T1w.nii.gz", "T2w.nii.gz", "space-T1w_FLAIR.nii.gz")
    ]
    assert first.label.name == "sub-01_ses-1_label-tumor_mask.nii.gz"
    assert "sub-02 is taken as a patient of its own" in said(cohort)


def test_bids_folders_with_bare_names(tmp_path: pathlib.Path) -> None:
    for session in ("ses-1", "ses-2"):
        add_files(tmp_path / "sub-01" / session / "anat", "t1.nii.gz", "seg.nii.gz")
    found = cases.find_cases(tmp_path, modalities=("t1",)).cases
    assert [case.case_id for case in found] == ["sub-01_ses-1", "sub-01_ses-2"]


def test_bids_that_is_there_twice_or_misplaced(tmp_path: pathlib.Path) -> None:
    _add_bids(tmp_path, "sub-01")
    stripped = tmp_path / "derivatives" / "stripped" / "sub-01" / "anat"
    add_files(stripped, "sub-01_desc-brain_T1w.nii.gz")
    message = r"stripped/sub-01/anat/.* are all taken for t1 of sub-01.*derivatives/NAME.*data_dir"
    with pytest.raises(UserError, match=message):
        cases.find_cases(tmp_path)
    (stripped / "sub-01_desc-brain_T1w.nii.gz").rename(stripped / "sub-02_T1w.nii.gz")
    with pytest.raises(UserError, match="lies in the folder of sub-01 but has the name of sub-02"):
        cases.find_cases(tmp_path)
    one, two = tmp_path / "both" / "a", tmp_path / "both" / "b"
    _add_bids(one, "sub-01")
    _add_bids(two, "sub-01")
    with pytest.raises(UserError, match="sub-01 is duplicate"):
        cases.find_cases(tmp_path / "both")


# --------------------------------------------------------------------------- public sets


def _add_ucsf(root: pathlib.Path, name: str) -> None:
    tokens = ["T1", "T1c", "T2", "FLAIR", "SWI", "DWI"]
    tokens += [f"{token}_bias" for token in tokens] + ["ADC", "ASL", "DTI_eddy_FA"]
    tokens += ["brain_segmentation", "brain_parenchyma_segmentation", "tumor_segmentation"]
    add_files(root / f"{name}_nifti", *(f"{name}_{token}.nii.gz" for token in tokens))


def test_ucsf_pdgm_as_it_is_downloaded(tmp_path: pathlib.Path) -> None:
    for name in ("UCSF-PDGM-0004", "UCSF-PDGM-0429", "UCSF-PDGM-0429_FU003d"):
        _add_ucsf(tmp_path, name)
    cohort = cases.find_cases(tmp_path)
    assert ids(cohort) == ["UCSF-PDGM-0004", "UCSF-PDGM-0429", "UCSF-PDGM-0429_FU003d"]
    assert [case.patient_id[-4:] for case in cohort.cases] == ["0004", "0429", "0429"]
    first = cohort.cases[0]
    assert [path.name.removeprefix("UCSF-PDGM-0004_") for path in first.images.values()] == [
        *("T1.nii.gz", "T1c.nii.gz", "T2.nii.gz", "FLAIR.nii.gz")
    ]
    assert first.label.name == "UCSF-PDGM-0004_tumor_segmentation.nii.gz"
    assert "the one without bias correction" in said(cohort)
    assert "another structure than the tumour" in said(cohort)
    for path in tmp_path.rglob("*"):
        if path.stem.removesuffix(".nii").endswith(("_T1", "_T1c", "_T2", "_FLAIR")):
            path.unlink()
    images = cases.find_cases(tmp_path).cases[0].images
    assert all(path.name.endswith("_bias.nii.gz") for path in images.values())


def test_visits_in_folders_of_one_name_have_the_names_of_their_files(
    tmp_path: pathlib.Path,
) -> None:
    for patient in ("RHUH-0001", "RHUH-0002"):
        files = (f"{patient}_0_t1.nii.gz", f"{patient}_0_segmentations.nii.gz")
        add_files(tmp_path / patient / "0", *files)
    found = cases.find_cases(tmp_path, modalities=("t1",)).cases
    assert [(case.case_id, case.patient_id) for case in found] == [
        ("RHUH-0001_0", "RHUH-0001"),
        ("RHUH-0002_0", "RHUH-0002"),
    ]


def test_the_corrected_mask_of_tcga_is_taken(tmp_path: pathlib.Path) -> None:
    name = "TCGA-02-0003_1997.06.08"
    tokens = ("t1Gd", "GlistrBoost", "GlistrBoost_ManuallyCorrected")
    add_files(tmp_path / "TCGA-02-0003", *(f"{name}_{token}.nii.gz" for token in tokens))
    cohort = cases.find_cases(tmp_path, modalities=("t1ce",))
    assert cohort.cases[0].label.name == f"{name}_GlistrBoost_ManuallyCorrected.nii.gz"
    assert f"not {name}_GlistrBoost.nii.gz" in said(cohort)


def test_two_forms_of_an_image_that_are_no_bias_correction_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    add_files(tmp_path / "p", "T1.nii.gz", "T1_brain.nii.gz", "seg.nii.gz")
    with pytest.raises(UserError, match=r"T1\.nii\.gz, T1_brain\.nii\.gz are all taken for t1"):
        cases.find_cases(tmp_path, modalities=("t1",))


@pytest.mark.parametrize("name", ["BRATS_001", "BraTS2021_00001", "anna"])
def test_the_raw_layout_of_nnunet_is_refused_with_a_way_that_works(
    tmp_path: pathlib.Path, name: str
) -> None:
    add_files(tmp_path / "raw" / "imagesTr", f"{name}_0000.nii.gz", f"{name}_0001.nii.gz")
    add_files(tmp_path / "raw" / "labelsTr", f"{name}.nii.gz")
    with pytest.raises(UserError, match=r"CASE_SEQUENCE\.nii\.gz.*--label_convention"):
        cases.find_cases(tmp_path / "raw")
    files = (f"{name}_t1.nii.gz", f"{name}_t1ce.nii.gz", f"{name}_seg.nii.gz")
    add_files(tmp_path / "dir", *files)
    (case,) = cases.find_cases(
        tmp_path / "dir", modalities=("t1", "t1ce"), label_convention="decathlon"
    ).cases
    assert (case.case_id, case.convention) == (name, "decathlon")


def test_cases_that_lack_a_sequence_are_counted_and_kept_where_they_are_wanted(
    tmp_path: pathlib.Path,
) -> None:
    for number, lacking in {1: (), 2: ("t2",), 3: ("t2", "flair"), 4: ("t1", "seg")}.items():
        case = add_case(tmp_path / f"BraTS2021_{number:05d}")
        for token in lacking:
            (case / f"{case.name}_{token}.nii.gz").unlink()
    counted = "3 of 4 cases lack a sequence: t1 (1), t2 (2), flair (1)"
    for incomplete, severity in ((False, "error"), (True, "warning")):
        cohort, rows = cases.survey_cases(tmp_path, incomplete=incomplete)
        assert counted in cohort.notes
        assert [(row.case[-1], row.severity) for row in rows] == [
            (number, severity) for number in "234"
        ]
        assert "--config.data.incomplete=true" in rows[0].remedy
    found = cases.find_cases(tmp_path, unlabelled=True, incomplete=True)
    assert [list(case.images) for case in found.cases[1:3]] == [
        ["t1", "t1ce", "flair"],
        ["t1", "t1ce"],
    ]
    assert len(found.cases) == 4
    assert counted in said(found)
    assert "without a segmentation: BraTS2021_00004" in said(found)
    # Those that have nothing of what is wanted stay an error.
    _, rows = cases.survey_cases(tmp_path, modalities=("t2",), incomplete=True)
    assert [(row.case[-1], row.severity) for row in rows] == [("2", "error"), ("3", "error")]
