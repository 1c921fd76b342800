"""Label values of the releases against the project's classes."""

import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.sources import labels
from kdnet_jax.errors import UserError
from tests.helpers import made_up_tasks

CAVITY = len(task_lib.GLIOMA.classes)


@pytest.mark.parametrize(
    ("convention", "values", "classes"),
    [
        *((f"brats{year}", [0, 1, 2, 4], [0, 1, 2, 3]) for year in (2018, 2019, 2020, 2021)),
        ("brats2023", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("brats2024", [0, 1, 2, 3, 4], [0, 1, 2, 3, CAVITY]),
        ("decathlon", [0, 1, 2, 3], [0, 2, 1, 3]),  # edema first, then the core
        ("kdnet", [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_values_and_classes(
    convention: str, values: list[int], classes: list[int], dtype: type
) -> None:
    stored = np.array(values, dtype).reshape(1, -1)
    result = labels.to_classes(stored, convention, "seg.nii")
    assert result.dtype == np.uint8
    assert result.tolist() == [classes]
    assert labels.from_classes(result, convention).tolist() == [values]


def test_cavity_becomes_background_where_there_is_no_value_for_it() -> None:
    assert labels.from_classes(np.array([3, CAVITY], np.uint8), "brats2021").tolist() == [4, 0]


def test_foreign_value_is_refused_with_the_convention_that_fits() -> None:
    values = np.array([0, 1, 2, 3, 3, 3], np.float32)
    with pytest.raises(UserError) as caught:
        labels.to_classes(values, "brats2021", "a/seg.nii.gz")
    message = str(caught.value)
    assert "a/seg.nii.gz: holds the label 3 (3 voxels)" in message
    assert "only the values 0, 1, 2, 4" in message
    assert "fit brats2023 or brats2024 or decathlon" in message


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0, 255.0, 1e9, np.inf])
def test_no_label_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"nearest-neighbour"):
        labels.to_classes(np.array([0, value]), "brats2021", "seg.nii")


def test_many_foreign_values_are_cut_short() -> None:
    with pytest.raises(UserError, match="and 91 other values"):
        labels.to_classes(np.arange(100), "brats2023", "flair.nii")


def test_unknown_convention() -> None:
    with pytest.raises(UserError, match="did you mean 'brats202"):
        labels.to_classes(np.zeros(2), "brats2022", "seg.nii")


def test_map_cavity() -> None:
    classes = np.array([0, 1, CAVITY, 3], np.uint8)
    assert labels.map_cavity(classes).tolist() == [0, 1, 0, 3]
    ncr = labels.map_cavity(classes, "NCR")
    assert ncr.tolist() == [0, 1, 1, 3]
    assert ncr.dtype == np.uint8
    with pytest.raises(UserError, match="ED"):
        labels.map_cavity(classes, "ED")


# ------------------------------------------------------------------ masks of several channels


def test_channels_of_another_task() -> None:
    task = made_up_tasks.HEART
    classes = np.random.default_rng(0).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    names = "clot,background,Wall,scar"
    regions = {"wall": (1, 2), "scar": (2, 3), "clot": (3,), "background": (0,)}
    values = np.stack([np.isin(classes, regions[n]) for n in names.lower().split(",")], -1)
    labels.check_convention("--prediction_labels", names, task=task)
    found = labels.classes_of(values.astype(np.uint8), names, "a.nii", task=task)
    np.testing.assert_array_equal(found, classes)
    with pytest.raises(UserError, match="voxels of clot lie in wall too"):
        labels.classes_of(values[..., [3, 1, 2, 0]].astype(np.uint8), names, "a.nii", task=task)
    for other in ("wall,scar", "TC,WT,ET", "wall,scar,clot,clot"):
        with pytest.raises(UserError, match="in their order: wall, scar, clot; or class 1, class"):
            labels.check_convention("--prediction_labels", other, task=task)


def _channels(classes: np.ndarray, names: str) -> np.ndarray:
    """Returns the mask with a channel of 0 and 1 for each region or class."""
    members = {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,), "NCR": (1,), "ED": (2,)}
    chosen = [members.get(name, (0,)) for name in names.split(",")]
    return np.stack([np.isin(classes, values) for values in chosen], -1).astype(np.uint8)


@pytest.mark.parametrize("names", ["TC,WT,ET", "ET,TC,WT", "background,NCR,ED,ET", "ed,et,ncr"])
def test_channels_become_the_classes_that_they_name(names: str) -> None:
    classes = np.random.default_rng(0).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    labels.check_convention("--prediction_labels", names)
    values = _channels(classes, names.upper().replace("BACKGROUND", "background"))
    np.testing.assert_array_equal(labels.classes_of(values, names, "a.nii"), classes)


@pytest.mark.parametrize(
    "names", ["TC,WT", "TC,TC,WT,ET", "tumour,core", "ET,WT,NCR", ",", "TC,WT,ET,x", "NCR,ED,ET,"]
)
def test_channels_that_do_not_tell_the_classes_are_refused(names: str) -> None:
    with pytest.raises(UserError, match="name each channel of the masks once"):
        labels.check_convention("--prediction_labels", names)


def test_other_channels_than_those_named_are_refused() -> None:
    for values in (np.zeros((4, 4, 4, 2)), np.zeros((4, 4, 4)), np.full((4, 4, 4, 3), 2)):
        with pytest.raises(UserError, match=r"a\.nii: is no mask of the 3 channels"):
            labels.classes_of(values, "TC,WT,ET", "a.nii")


@pytest.mark.parametrize(
    ("names", "taken", "message"),
    [
        ("TC,WT,ET", "WT,TC,ET", "voxels of TC lie outside of WT, if its channels are WT,TC,ET"),
        ("TC,WT,ET", "ET,WT,TC", "voxels of ET lie outside of TC"),
        ("TC,WT,ET", "NCR,ED,ET", "voxels of ED lie in NCR too"),
    ],
)
def test_channels_that_cannot_be_those_named_are_refused(
    names: str, taken: str, message: str
) -> None:
    classes = np.random.default_rng(0).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    with pytest.raises(UserError, match=message):
        labels.classes_of(_channels(classes, names), taken, "a.nii")
