import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.interop import vocabulary

WHERE = "dataset.json: labels"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("T1", "T1ce", "T2", "Flair"), ("t1", "t1ce", "t2", "flair")),
        (("FLAIR", "T1w", "t1gd", "T2w"), ("flair", "t1", "t1ce", "t2")),
        (("t2f", "t1c", "t1n", "t2w"), ("flair", "t1ce", "t1", "t2")),
        (("T1-weighted", "T1 contrast", "T2-FLAIR"), ("t1", "t1ce", "flair")),
        (("t1wce", "T1-weighted post-contrast"[:2]), ("t1ce", "t1")),
        (("T1c", "T1", "T2", "FLAIR"), ("t1ce", "t1", "t2", "flair")),
    ],
)
def test_modalities_keep_the_files_order(names, expected) -> None:
    assert vocabulary.modalities(names, WHERE) == expected


@pytest.mark.parametrize("names", [("MRI",), ("T1", "T1w"), ("CT", "T1"), (), ("seg",)])
def test_modalities_refuse_what_is_unknown_or_doubled(names) -> None:
    with pytest.raises(UserError, match=r"dataset.json: labels is .*expected each of"):
        vocabulary.modalities(names, WHERE)


def test_regions_of_the_model_zoo() -> None:
    names = ("Tumor core", "Whole tumor", "Enhancing tumor")
    assert vocabulary.outputs(names, WHERE) == ("regions", (2, 0, 1))  # of ET TC WT


def test_classes_in_any_order() -> None:
    names = ("background", "peritumoral edema", "enhancing tumor", "necrotic tumor core (NCR)")
    assert vocabulary.outputs(names, WHERE) == ("softmax", (0, 3, 1, 2))  # background NCR ED ET


def test_other_labels_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="'background', 'liver'"):
        vocabulary.outputs(("background", "liver"), WHERE)


def test_label_table_of_nnunets_converter() -> None:
    table = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    assert vocabulary.label_table(table, WHERE) == ("regions", (2, 1, 0))


def test_label_table_with_the_values_of_brats() -> None:
    table = {"background": 0, "ET": [3], "TC": [1, 3], "WT": [1, 2, 3], "ignore": 4}
    assert vocabulary.label_table(table, WHERE) == ("regions", (0, 1, 2))


def test_label_table_with_the_names_of_brats_since_2023() -> None:
    table = {
        "background": 0,
        "non-enhancing tumor core (NETC)": 1,
        "surrounding non-enhancing FLAIR hyperintensity (SNFH)": 2,
        "enhancing tissue (ET)": 3,
    }
    assert vocabulary.label_table(table, WHERE) == ("softmax", (0, 1, 2, 3))
    with pytest.raises(UserError, match="cannot teach"):
        vocabulary.label_table(table | {"resection cavity (RC)": 4}, WHERE)


def test_label_table_goes_by_the_value_not_by_the_line() -> None:
    table = {"background": 0, "enhancing tumor": 3, "edema": 1, "non-enhancing tumor": 2}
    assert vocabulary.label_table(table, WHERE) == ("softmax", (0, 2, 1, 3))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        # The names of two regions swapped.
        ({"background": 0, "ET": [2, 3], "TC": [3], "WT": [1, 2, 3]}, "contradict the names"),
        # An enhancing tumour of two labels; a value outside of the whole tumour.
        ({"background": 0, "ET": [3, 4], "TC": [2, 3, 4], "WT": [1, 2, 3, 4]}, "contradict"),
        ({"background": 0, "ET": [3], "TC": [2, 3], "WT": [2, 3]}, "contradict"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 4}, "values 0, 1, 2, 3"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3, "cavity": 4}, "cavity"),
        ({"background": 0, "NCR": "one", "ED": 2, "ET": 3}, "whole numbers"),
        ({}, "whole numbers"),
    ],
)
def test_label_table_refuses(table, message) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary.label_table(table, WHERE)
