"""The files of a case on one grid: what is turned, what is taken with a note, what is refused."""

import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax.data.scans import grids, nifti, spaces
from kdnet_jax.errors import UserError

AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 126], [0, 0, 1, -72], [0, 0, 0, 1]])
SHAPE = (5, 6, 7)


def volume(
    affine: np.ndarray = AFFINE, data: np.ndarray | None = None, is_known: bool = True
) -> nifti.Volume:
    data = np.arange(210.0).reshape(SHAPE) if data is None else data
    return nifti.Volume(data, spaces.Space(affine, is_known=is_known), pathlib.Path("file.nii"))


def shifted(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def stored_as(axes: str) -> nifti.Volume:
    """Returns the same voxels at the same places, stored in another order."""
    image = nib.Nifti1Image(volume().data, AFFINE)
    ends = nib.orientations.axcodes2ornt(axes)
    way = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), ends)
    turned = image.as_reoriented(way)
    return volume(turned.affine, np.asarray(turned.dataobj))


def test_rounding_is_agreement() -> None:
    grid = grids.common_grid({"t1": volume(), "t2": volume(shifted(0.01))})
    assert grid.notes == []
    np.testing.assert_array_equal(grid.affine, AFFINE)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "SPL", "PIR"])
@pytest.mark.parametrize("name", [grids.LABEL, "t2"])
def test_the_same_voxels_in_another_order_are_turned(name: str, axes: str) -> None:
    grid = grids.common_grid({"t1": volume(), "t1ce": volume(), name: stored_as(axes)})
    np.testing.assert_array_equal(grid.members[name].data, volume().data)
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert f"voxels of {name} are stored in another order ({axes})" in grid.notes[0]
    assert len(grid.notes) == 1


def test_the_order_of_most_files_is_kept() -> None:
    first = {"t1": stored_as("RAS"), "t1ce": volume(), "t2": volume()}
    grid = grids.common_grid(first)
    np.testing.assert_array_equal(grid.affine, AFFINE)
    np.testing.assert_array_equal(grid.members["t1"].data, volume().data)


def test_nothing_is_turned_where_the_headers_are_known_to_be_wrong() -> None:
    label = volume(stored_as("RAS").affine)
    grid = grids.common_grid({"t1": volume(), grids.LABEL: label}, stored_alike=True)
    np.testing.assert_array_equal(grid.members[grids.LABEL].data, label.data)
    assert "the affine of t1 was taken" in grid.notes[0]


def test_a_header_that_says_nothing_takes_the_place_of_the_others_even_if_it_comes_first() -> None:
    grid = grids.common_grid({"t1": volume(np.eye(4), is_known=False), "t2": volume()})
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert grid.notes == ["the affine of t1 is the identity; that of t2 was taken for it"]
    # nibabel's guess happens to be the same voxels turned over: still a guess.
    guess = volume(stored_as("LAS").affine, is_known=False)
    grid = grids.common_grid({"t1": guess, "t2": volume()})
    np.testing.assert_array_equal(grid.members["t1"].data, guess.data)
    assert "header of t1 does not say how its voxels are stored" in grid.notes[0]


@pytest.mark.parametrize("affine", [np.eye(4), AFFINE])
def test_headers_that_all_say_nothing_agree(affine: np.ndarray) -> None:
    grid = grids.common_grid({name: volume(affine, is_known=False) for name in ("t1", "label")})
    assert (grid.notes, set(grid.members)) == ([], {"t1", "label"})


def test_majority_outvotes_less_than_half_a_voxel() -> None:
    three = {name: volume() for name in ("t1ce", "t2", "label")}
    grid = grids.common_grid({"t1": volume(shifted(0.4)), **three})
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert "up to 0.40 mm" in grid.notes[0]


def test_what_cannot_be_settled_is_refused() -> None:
    three = {name: volume() for name in ("t1ce", "t2", "flair")}
    assert set(grids.settle({"t1": volume(shifted(0.6)), **three}).refused) == {"t1"}
    pair = {"t1": volume(), "t2": volume(shifted(0.4))}
    assert set(grids.settle(pair).refused) == {"t2"}
    with pytest.raises(UserError, match=r"place the same voxels differently \(t2 against"):
        grids.common_grid(pair)
    with pytest.raises(UserError, match="different shapes"):
        grids.common_grid({"t1": volume(), "t2": volume(data=np.zeros((5, 6, 8)))})


def test_a_label_with_another_origin_follows_the_images() -> None:
    grid = grids.common_grid({"t1": volume(), grids.LABEL: volume(shifted(40))})
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert "header of label places voxels up to 40.00 mm away" in grid.notes[0]


def rotated(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(np.deg2rad(degrees))
    return turn @ AFFINE


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE,  # turned over, and other voxel centres
        rotated(15),
        AFFINE @ np.diag([2.0, 2.0, 2.0, 1.0]),
    ],
)
def test_a_label_with_other_directions_is_refused(affine: np.ndarray) -> None:
    grid = grids.settle({"t1": volume(), grids.LABEL: volume(affine)})
    assert "places the voxels elsewhere" in grid.refused[grids.LABEL]
