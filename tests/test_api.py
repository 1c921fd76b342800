"""`kdnet_jax.load(path).segment(scan)`: the mask of `predict`, whatever form the scan comes in."""

import pathlib
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import kdnet_jax
from kdnet_jax import api
from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import segmenting
from tests.helpers import commands


@pytest.fixture(scope="module")
def model(smoke_student: commands.Finished) -> api.Model:
    return kdnet_jax.load(smoke_student.folder)


@pytest.fixture(scope="module")
def scan(sample_dir: pathlib.Path) -> pathlib.Path:
    return min(sample_dir.glob("*/*_t1ce.nii.gz"))


@pytest.fixture(scope="module")
def found(model: api.Model, scan: pathlib.Path) -> api.Segmentation:
    return model.segment(scan)


def test_a_file_gives_the_mask_of_predict(
    model: api.Model, scan: pathlib.Path, found: api.Segmentation
) -> None:
    task = model.ensemble.head.task
    unlabelled = prepare.unlabelled_case({"t1ce": scan}, task=task)
    case, _, warnings = segmenting.prepare_scan(
        unlabelled,
        prepare.read_files(unlabelled, task=task),
        task=task,
        spacing=model.ensemble.spacing,
        orientation="header",
        usual=model.usual,
    )
    expected = model.ensemble.segment(case)
    values = np.array([0, 1, 2, 4])[expected.classes]
    np.testing.assert_array_equal(found.mask, values)
    assert found.mask.any()
    assert found.warnings == warnings
    assert found.mask.shape == nib.load(scan).shape
    voxel_ml = 1 / 1000
    assert found.volumes_ml["WT"] == pytest.approx(np.count_nonzero(found.mask) * voxel_ml)
    np.testing.assert_array_equal(found.image.affine, nib.load(scan).affine)
    assert found.names == {1: "NCR", 2: "ED", 4: "ET"}
    assert len(found.image.header.extensions) == 1
    assert found.confidence == model.ensemble.confidence(case, expected)


def test_images_and_arrays_give_the_same_mask(
    model: api.Model, scan: pathlib.Path, found: api.Segmentation
) -> None:
    image = nib.load(scan)
    np.testing.assert_array_equal(model.segment(image).mask, found.mask)
    array = np.asarray(image.dataobj)
    stored = model.segment(array, spacing=(1, 1, 1), axes="LPS")
    np.testing.assert_array_equal(stored.mask, found.mask)
    turned = model.segment(array[::-1, ::-1].transpose(2, 0, 1), spacing=(1, 1, 1), axes="SRA")
    np.testing.assert_array_equal(turned.mask.transpose(1, 2, 0)[::-1, ::-1], found.mask)


def test_other_label_values(model: api.Model, scan: pathlib.Path, found: api.Segmentation) -> None:
    other = model.segment(scan, labels="decathlon").mask
    for ours, theirs in ((1, 2), (2, 1), (4, 3)):
        np.testing.assert_array_equal(other == theirs, found.mask == ours)


def test_probabilities_lie_on_the_scan_s_grid(found: api.Segmentation) -> None:
    assert found.outputs == task_lib.GLIOMA.classes
    total = sum(found.probability(name) for name in found.outputs)
    np.testing.assert_allclose(total, 1, atol=1e-3)  # outside of the brain's box too
    assert (found.probability("background") == 1).any()
    with pytest.raises(UserError, match="output is 'et': choose one of background"):
        found.probability("et")


def test_a_mask_is_saved_on_the_scan_s_own_grid(
    found: api.Segmentation, scan: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found.save(tmp_path / "mask.nii.gz")
    saved = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), found.mask)
    np.testing.assert_array_equal(saved.affine, nib.load(scan).affine)


def test_the_image_is_what_is_saved(
    model: api.Model, scan: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = nib.load(scan)
    given.set_sform(given.affine, "talairach")
    given.set_qform(np.diag([-1.0, 1.0, 1.0, 1.0]), "scanner")
    found = model.segment(given)
    found.save(tmp_path / "mask.nii.gz")
    saved, image = nib.load(tmp_path / "mask.nii.gz"), found.image
    for code in ("sform_code", "qform_code"):
        assert saved.header[code] == image.header[code] == given.header[code]
    for written in (saved, image):
        np.testing.assert_array_equal(written.get_qform(), given.get_qform())
        np.testing.assert_array_equal(written.get_sform(), given.get_sform())
    assert image.header["descrip"] == saved.header["descrip"]


def test_a_volume_with_a_fourth_axis_of_length_one(
    model: api.Model, scan: pathlib.Path, found: api.Segmentation
) -> None:
    image = nib.load(scan)
    single = nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    np.testing.assert_array_equal(model.segment(single).mask, found.mask)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.AnalyzeImage, nib.Spm99AnalyzeImage])
def test_an_image_without_orientation_gets_a_warning(
    model: api.Model, scan: pathlib.Path, found: api.Segmentation, kind: type
) -> None:
    image = nib.load(scan)
    bare = kind(np.asarray(image.dataobj), None)
    bare.header.set_zooms(image.header.get_zooms()[:3])
    warned = model.segment(bare)
    (warning,) = (text for text in warned.warnings if "how the voxels are stored" in text)
    assert "stored in LAS" in warning
    assert 'orientation="LPS"' in warning
    told = model.segment(bare, orientation="LPS")
    np.testing.assert_array_equal(told.mask, found.mask)
    assert not any("how the voxels are stored" in text for text in told.warnings)


@pytest.mark.once
def test_a_teacher_needs_its_sequences_by_name(
    smoke_student: commands.Finished, scan: pathlib.Path
) -> None:
    teacher = kdnet_jax.load(smoke_student.folder / "teacher")
    scans = {
        name: scan.with_name(scan.name.replace("t1ce", name))
        for name in ("flair", "t2", "t1ce", "t1")
    }
    found = teacher.segment(scans)
    backwards = teacher.segment(dict(reversed(scans.items())))
    np.testing.assert_array_equal(found.mask, backwards.mask)
    with pytest.raises(UserError, match="needs t1, t1ce, t2, flair: give a dictionary"):
        teacher.segment(scan)
    with pytest.raises(UserError, match="given for t1, but the model needs t1, t1ce, t2, flair"):
        teacher.segment({"t1": scan})


def _array(edge: int = 20) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(edge,) * 3)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (_array(), {}, "does not say where its voxels lie: give spacing"),
        (_array(), {"spacing": (1, 1), "axes": "LPS"}, r"spacing is \(1, 1\): give three"),
        (_array(), {"spacing": (1, 0, 1), "axes": "LPS"}, "three numbers above 0"),
        (_array(), {"spacing": (1, 1, 1), "axes": "LPL"}, "orientation is 'LPL'"),
        (_array(), {"spacing": (1, 1, 1), "axes": "header"}, "an array has no header"),
        (_array(), {"spacing": (1, 1, 1), "axes": ("L", "P", "S")}, r"axes is \('L', 'P', 'S'\)"),
        (_array(), {"spacing": 1.0, "axes": "LPS"}, "spacing is 1.0: give three numbers"),
        (_array(), {"spacing": ("1", "1", "1"), "axes": "LPS"}, "spacing is .*give three numbers"),
        (_array(), {"spacing": (1, 1, np.nan), "axes": "LPS"}, "spacing is .*give three numbers"),
        (
            _array() * 0,
            {"spacing": (1, 1, 1), "axes": "LPS"},
            "the array of t1ce: every voxel is 0",
        ),
        (_array()[0], {"spacing": (1, 1, 1), "axes": "LPS"}, "has the shape 20 x 20"),
        (_array() * np.nan, {"spacing": (1, 1, 1), "axes": "LPS"}, "NaN or infinite"),
        (3, {}, "t1ce is a int: give a .nii"),
        ("gone.nii.gz", {}, "gone.nii.gz: does not exist"),
        ("gone.nii.gz", {"axes": "LPS"}, "spacing and axes are for arrays"),
        ("gone.nii.gz", {"labels": "brats"}, "labels is 'brats': choose one of"),
        ("gone.nii.gz", {"orientation": "up"}, "orientation is 'up'"),
    ],
)
def test_mistakes_are_told(
    model: api.Model, given: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.segment(given, **options)


def test_what_is_no_model_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is no run of kdnet_jax"):
        kdnet_jax.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint is given"):
        kdnet_jax.load()
    with pytest.raises(AttributeError, match="lode"):
        kdnet_jax.lode  # noqa: B018
