"""What is wrong with the masks of a case."""

import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import mask_checks, problems
from kdnet_jax.data.sources import segmentations

TASK = task_lib.GLIOMA

AFFINE = np.array([[-1.0, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1]])
CLASSES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4


def _write(path: pathlib.Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> pathlib.Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def _listed(
    tmp_path: pathlib.Path,
    data: np.ndarray = CLASSES,
    affine: np.ndarray = AFFINE,
    *,
    ignore_affine: bool = False,
) -> list[problems.Problem]:
    """The problems of a prediction against CLASSES on AFFINE."""
    reference = _write(tmp_path / "reference.nii.gz", CLASSES)
    prediction = _write(tmp_path / "prediction.nii.gz", data, affine)
    pair = segmentations.Pair("a", reference, prediction)
    contents = {path: mask_checks.read_content(path, task=TASK) for path in (reference, prediction)}
    return mask_checks.check_pairs([pair], contents, ignore_affine=ignore_affine)


def test_a_mask_says_its_grid_and_values(tmp_path) -> None:
    path = _write(tmp_path / "a.nii.gz", CLASSES.astype(np.float32))
    content = mask_checks.read_content(path, task=TASK)
    assert content.shape == (2, 3, 4)
    assert content.values == {0, 1, 2, 3}
    assert content.problem is None
    np.testing.assert_array_equal(content.space.affine, AFFINE)


def test_good_masks_have_no_problem(tmp_path) -> None:
    assert _listed(tmp_path, CLASSES.astype(np.float64), AFFINE + 1e-5) == []


@pytest.mark.parametrize("ignore_affine", [False, True])
def test_another_shape_says_both(tmp_path, ignore_affine) -> None:
    (problem,) = _listed(tmp_path, CLASSES[:, :2], ignore_affine=ignore_affine)
    assert problem.case == "a"
    assert problem.file.endswith("prediction.nii.gz")
    assert "2 x 2 x 4 of 1 x 2 x 3 mm" in problem.finding
    assert "reference.nii.gz is 2 x 3 x 4" in problem.finding


def test_a_lost_header_is_told_and_can_be_ignored(tmp_path) -> None:
    (problem,) = _listed(tmp_path, affine=np.eye(4))
    assert "an identity affine, against LPS, 1 x 2 x 3 mm, origin 10, 20, -5" in problem.finding
    assert "--ignore_affine" in problem.remedy
    assert _listed(tmp_path, affine=np.eye(4), ignore_affine=True) == []


def test_a_flipped_header_says_by_how_much_at_the_worst_corner(tmp_path) -> None:
    flipped = AFFINE.copy()
    flipped[2] *= -1  # z from 5 down by 3 mm, not from -5 up: 10 mm at the first, -8 at the last
    (problem,) = _listed(tmp_path, affine=flipped)
    assert "up to 10.0 mm" in problem.finding
    assert "LPI" in problem.finding


def test_a_mask_of_the_same_voxels_in_another_order_is_turned(tmp_path) -> None:
    reference = _write(tmp_path / "r.nii.gz", CLASSES)
    ras = nib.as_closest_canonical(nib.load(reference))
    way = nib.orientations.axcodes2ornt("SAR")
    turned = ras.as_reoriented(way)
    data = np.asarray(turned.dataobj)
    assert data.shape == (4, 3, 2)
    assert _listed(tmp_path, data, turned.affine) == []
    pair = segmentations.Pair("a", reference, tmp_path / "prediction.nii.gz")
    read = mask_checks.read_pair(pair, "kdnet", "kdnet", "background", False, task=TASK)
    np.testing.assert_array_equal(read[1], CLASSES)
    # Without the headers, the voxels are taken as they come.
    (problem,) = _listed(tmp_path, data, turned.affine, ignore_affine=True)
    assert "4 x 3 x 2" in problem.finding
    flipped = nib.as_closest_canonical(nib.load(reference))
    assert _listed(tmp_path, np.asarray(flipped.dataobj), flipped.affine, ignore_affine=True) == []
    read = mask_checks.read_pair(pair, "kdnet", "kdnet", "background", True, task=TASK)
    np.testing.assert_array_equal(read[1], CLASSES[::-1, ::-1])


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf])
def test_values_that_are_no_whole_numbers(tmp_path, bad) -> None:
    data = CLASSES.astype(np.float32)
    data[1, 2] = bad
    (problem,) = _listed(tmp_path, data)
    assert f"no whole numbers ({bad:g}, in 4 voxels)" in problem.finding
    assert "nearest neighbour" in problem.remedy + problem.finding


def test_an_image_in_place_of_a_mask(tmp_path) -> None:
    (problem,) = _listed(tmp_path, np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    assert "24 different values" in problem.finding


def test_unreadable_files_of_both_sides_are_listed(tmp_path) -> None:
    paths = [tmp_path / "gone.nii.gz", tmp_path / "text.nii.gz"]
    paths[1].write_text("no image")
    contents = {path: mask_checks.read_content(path, task=TASK) for path in paths}
    listed = mask_checks.check_pairs(
        [segmentations.Pair("a", *paths)], contents, ignore_affine=False
    )
    assert [pathlib.Path(problem.file) for problem in listed] == paths


def test_a_pair_is_read_in_each_side_s_convention(tmp_path) -> None:
    reference = _write(tmp_path / "r.nii.gz", np.array([[[0, 1], [2, 4]]] * 2, np.int16))
    prediction = _write(tmp_path / "p.nii.gz", np.array([[[0, 1], [2, 3]]] * 2, np.float32))
    pair = segmentations.Pair("a", reference, prediction)

    *both, spacing = mask_checks.read_pair(
        pair, "brats2021", "decathlon", "background", False, task=TASK
    )
    assert [classes[0].tolist() for classes in both] == [[[0, 1], [2, 3]], [[0, 2], [1, 3]]]
    assert spacing == (1, 2, 3)

    cavity, _, _ = mask_checks.read_pair(
        pair, "brats2024", "brats2023", "background", False, task=TASK
    )
    counted, _, _ = mask_checks.read_pair(pair, "brats2024", "brats2023", "NCR", False, task=TASK)
    assert (cavity[0, 1, 1], counted[0, 1, 1]) == (0, 1)
