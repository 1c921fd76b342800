"""What the values of a folder of masks mean."""

import json
import pathlib

import pytest

from kdnet_jax.data.sources import label_recognition
from kdnet_jax.errors import UserError

NNUNET = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
REGIONS = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "ET": [3]},
    "regions_class_order": [1, 2, 3],
}
# As the Decathlon's own dataset.json writes them.
DECATHLON = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def _recognise(
    folder: pathlib.Path,
    *values: int,
    asked: str = "auto",
    release: str | None = None,
    name: str = "a.nii.gz",
) -> str:
    # The values of a folder count together: each mask holds only one of them.
    held = {folder / f"{value}" / name: {value} for value in values}
    found = label_recognition.recognise(asked, "--reference_labels", folder, held, release)
    return found.convention


@pytest.mark.parametrize(
    ("values", "convention"),
    [
        ((0, 1, 2, 4), "brats2021"),
        ((0, 4), "brats2021"),
        ((0, 1, 2, 3, 4), "brats2024"),
        ((0,), "brats2021"),  # all conventions agree on it
        ((0, 3), "brats2023"),  # ET in all that know it
    ],
)
def test_values_that_have_one_meaning(tmp_path, values, convention) -> None:
    assert _recognise(tmp_path, *values) == convention


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 1), (0, 2), (0, 1, 2)])
def test_values_with_several_meanings_are_refused_with_the_options(tmp_path, values) -> None:
    with pytest.raises(UserError, match="is ambiguous") as caught:
        _recognise(tmp_path, *values)
    assert "--reference_labels=decathlon if 1 is ED, 2 is NCR, 3 is ET" in str(caught.value)
    assert "1 is NCR, 2 is ED" in str(caught.value)


def test_a_4_in_names_of_2023_on_may_be_a_cavity(tmp_path) -> None:
    with pytest.raises(UserError, match=r"=brats2021 if .*=brats2024 if .*4 is resection cavity"):
        _recognise(tmp_path, 0, 1, 2, 4, name="BraTS-GLI-00001-101.nii.gz")


def test_values_of_no_convention(tmp_path) -> None:
    with pytest.raises(UserError, match="holds 5, which is none of"):
        _recognise(tmp_path, 0, 5)
    masks = {tmp_path / name: frozenset((0, 5)) for name in ("a", "b")}
    with pytest.raises(UserError, match=r"none of .*kdnet\. So do 1 more$"):  # the list ends it
        label_recognition.recognise("auto", "--reference_labels", tmp_path, masks, None)


def test_what_is_asked_for_counts_first(tmp_path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NNUNET}))
    assert _recognise(tmp_path, 0, 1, 2, 3, asked="decathlon", release="brats2023") == "decathlon"


@pytest.mark.parametrize(("asked", "release"), [("brats2023", None), ("auto", "brats2023")])
def test_what_does_not_fit_the_values_is_refused(tmp_path, asked, release) -> None:
    with pytest.raises(UserError, match=r"brats2023 was taken.*a\.nii\.gz.*would fit brats2021"):
        _recognise(tmp_path, 0, 1, 2, 4, asked=asked, release=release)


def test_the_release_of_the_names_settles_it(tmp_path) -> None:
    assert _recognise(tmp_path, 0, 1, 2, 3, release="decathlon") == "decathlon"


def test_a_run_says_its_labels(tmp_path) -> None:
    (tmp_path / "evaluation").mkdir()
    summary = tmp_path / "evaluation" / "summary.json"
    summary.write_text('{"labels": "decathlon"}')
    assert _recognise(tmp_path / "predictions", 0, 1, 2, 3) == "decathlon"
    summary.write_text('{"labels": "mine"}')
    with pytest.raises(UserError, match=r"summary\.json.*'mine'.*--reference_labels"):
        _recognise(tmp_path / "predictions", 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("content", "convention"),
    [
        ({"labels": NNUNET}, "brats2023"),
        ({"labels": NNUNET | {"RC": 4}}, "brats2024"),
        ({"labels": {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}}, "brats2024"),
        ({"labels": DECATHLON}, "decathlon"),
        (REGIONS, "decathlon"),
    ],
)
@pytest.mark.parametrize("folder", [".", "labelsTr", "fold_0/validation"])
def test_a_dataset_json_is_understood(tmp_path, content, convention, folder) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert _recognise(tmp_path / folder, 0, 1, 2, 3) == convention


def test_the_dataset_json_above_another_folder_does_not_count(tmp_path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NNUNET}))
    with pytest.raises(UserError, match="is ambiguous"):
        _recognise(tmp_path / "predictions", 0, 1, 2, 3)


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"background": 0, "liver": 1}},
        {"labels": {"background": 0, "NCR": 3, "ED": 2, "ET": 1}},
        {"labels": ["NCR"]},
        {},
        # The numbers that the regions are painted with are not those of the sets.
        REGIONS | {"regions_class_order": [1, 3, 2]},
        REGIONS | {"regions_class_order": [[1], 2, 3]},
        {"labels": {"background": 0, "whole tumor": [1, 2], "ET": [2]}, "regions_class_order": [1]},
    ],
)
def test_a_dataset_json_that_is_not_understood_is_refused(tmp_path, content) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json.*not understood.*--reference_labels"):
        _recognise(tmp_path, 0, 1, 2, 3)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_dataset_json(tmp_path, text) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        _recognise(tmp_path, 0, 1)


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("surrounding non-enhancing FLAIR hyperintensity (SNFH)", "ED"),
        ("Surrounding Non-enhancing FLAIR Hyperintensity", "ED"),
        ("SNFH", "ED"),
        ("SNFH (edema)", "ED"),
        ("peritumoral edematous/invaded tissue (ED)", "ED"),
        ("non-enhancing tumor core (NETC)", "NCR"),
        ("NON-ENHANCING TUMOR CORE", "NCR"),
        ("NETC", "NCR"),
        ("necrotic tumor core (NCR)", "NCR"),
        ("NCR/NET", "NCR"),
        ("non-contrast-enhancing tumor", "NCR"),
        ("non_enhancing", "NCR"),
        ("enhancing tissue (ET)", "ET"),
        ("Enhancing Tumor", "ET"),
        ("ET (GD-enhancing)", "ET"),
        ("resection cavity (RC)", "cavity"),
        ("RC", "cavity"),
        ("tumor core (TC)", "TC"),
        ("WT", "WT"),
    ],
)
def test_the_tissue_of_every_name_of_brats(name: str, tissue: str) -> None:
    assert label_recognition.tissue(name) == tissue


@pytest.mark.parametrize("cavity", [{}, {"resection cavity (RC)": 4}])
def test_the_names_of_brats_since_2023_are_its_table(cavity: dict[str, int]) -> None:
    labels = {
        "background": 0,
        "non-enhancing tumor core (NETC)": 1,
        "surrounding non-enhancing FLAIR hyperintensity (SNFH)": 2,
        "enhancing tissue (ET)": 3,
    } | cavity
    expected = {0: 0, 1: 1, 2: 2, 3: 3} | ({4: 4} if cavity else {})
    assert label_recognition.read_label_table({"labels": labels}) == expected
