"""Synthetic cases: the same every time, plausible, and where their headers say they are."""

import pathlib

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets
from scipy import stats

from data_builders.brats_phantom import sheet
from kdnet_jax import task as task_lib
from kdnet_jax.data.phantom import anatomy, phantom, tumour
from kdnet_jax.data.sources import cases as case_lib
from kdnet_jax.errors import UserError
from tests.helpers import commands

NCR, ED, ET = tumour.NCR, tumour.ED, tumour.ET


@pytest.fixture(scope="module")
def cohort() -> list[phantom.PhantomCase]:
    return [phantom.generate(0, index, 3.0) for index in range(8)]


def _same(first: phantom.PhantomCase, second: phantom.PhantomCase) -> bool:
    pairs = [(first.labels, second.labels)]
    pairs += [(first.images[name], second.images[name]) for name in task_lib.GLIOMA.modalities]
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_case_depends_on_seed_and_index_alone(cohort: list[phantom.PhantomCase]) -> None:
    # Made after seven others in the fixture, and here on its own and before a smaller index.
    assert _same(phantom.generate(0, 5, 3.0), cohort[5])
    assert _same(phantom.generate(0, 2, 3.0), cohort[2])
    assert not np.array_equal(cohort[5].labels, cohort[2].labels)
    assert not np.array_equal(phantom.generate(1, 2, 3.0).images["t1"], cohort[2].images["t1"])


def test_images_and_labels_have_the_form_of_brats(cohort: list[phantom.PhantomCase]) -> None:
    for case in cohort:
        assert tuple(sorted(case.images)) == tuple(sorted(task_lib.GLIOMA.modalities))
        brain = case.images["t1"] != 0
        for image in case.images.values():
            assert image.dtype == np.int16
            assert image.min() == 0
            np.testing.assert_array_equal(image != 0, brain)
        assert case.labels.dtype == np.uint8
        assert set(np.unique(case.labels)) <= {0, NCR, ED, ET}
        assert (case.labels != 0).any()
        assert brain[case.labels != 0].all()
        assert (case.grade == "HGG") == (case.labels == ET).any()


@pytest.mark.parametrize("spacing", [2.5, 4.0])
def test_spacing_and_orientation(spacing: float) -> None:
    case = phantom.generate(0, 0, spacing)
    assert nib.aff2axcodes(case.affine) == ("L", "P", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(case.affine), spacing)
    extent = [np.ptp(axis) * spacing for axis in np.nonzero(case.images["t1"])]
    # MNI152's brain: about 140 mm wide, 175 mm long, 145 mm high.
    np.testing.assert_allclose(extent, (140, 175, 145), rtol=0.15)


def test_voxels_lie_where_the_affine_says() -> None:
    """Stored voxels, placed by the affine, are the brain of MNI152 as its own header places it."""
    template = datasets.load_mni152_gm_template(resolution=4)
    expected = nib.as_closest_canonical(template)
    assert nib.aff2axcodes(expected.affine) == ("R", "A", "S")
    grey = anatomy._templates(4.0)[0]
    stored, affine = phantom._stored(grey), phantom._affine(grey.shape, 4.0)
    ours = _skewness(stored, affine)
    np.testing.assert_allclose(ours, _skewness(expected.get_fdata(), expected.affine), atol=0.05)
    # A flip of one axis changes the sign, so it must be well away from 0 to tell.
    assert (np.abs(ours[1:]) > 0.05).all()


def test_left_and_right_are_stored_as_the_affine_says() -> None:
    ramp = np.arange(5.0)[:, None, None] + np.zeros((5, 6, 7))  # RAS: grows to the right
    stored, affine = phantom._stored(ramp), phantom._affine(ramp.shape, 2.0)
    rightmost, leftmost = np.argwhere(stored == 4)[0], np.argwhere(stored == 0)[0]
    place = nib.affines.apply_affine(affine, [rightmost, leftmost])
    assert place[0, 0] - place[1, 0] == 8.0


def _skewness(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Returns the skewness of the volume's mass along R, A and S."""
    voxels = np.argwhere(volume > 0.5)
    return stats.skew(nib.affines.apply_affine(affine, voxels), axis=0)


def _tumours(count: int) -> list[tumour.Tumour]:
    body = anatomy.make_anatomy(np.random.default_rng(0), 6.0)
    return [tumour.make_tumour(np.random.default_rng(i), body, 6.0) for i in range(count)]


def test_shares_of_the_cohort() -> None:
    drawn = _tumours(60)
    low, high = stats.binom.interval(0.999, 60, 0.15)
    assert low <= sum(not lesion.has_et for lesion in drawn) <= high
    assert low <= sum(lesion.multifocal for lesion in drawn) <= high
    assert all((lesion.labels == ET).any() == lesion.has_et for lesion in drawn)
    assert all((lesion.labels[lesion.necrosis] == NCR).all() for lesion in drawn)


def _contrast(case: phantom.PhantomCase, name: str, label: int) -> float:
    """Returns how far a label's mean is from white matter's, in SDs of white matter."""
    t1, image = case.images["t1"], case.images[name].astype(np.float64)
    healthy = (t1 != 0) & (case.labels == 0)
    white = healthy & (t1 > np.percentile(t1[healthy], 65))
    return float((image[case.labels == label].mean() - image[white].mean()) / image[white].std())


def _median_contrast(cohort: list[phantom.PhantomCase], name: str, label: int) -> float:
    enhancing = [case for case in cohort if case.grade == "HGG" and (case.labels == label).any()]
    return float(np.median([_contrast(case, name, label) for case in enhancing]))


def test_only_t1ce_shows_enhancement(cohort: list[phantom.PhantomCase]) -> None:
    assert _median_contrast(cohort, "t1ce", ET) > 2
    assert _median_contrast(cohort, "t1", ET) < -1
    assert _median_contrast(cohort, "t1ce", NCR) < -1.5


def test_edema_is_plain_in_t2_and_flair_and_faint_in_t1ce(
    cohort: list[phantom.PhantomCase],
) -> None:
    faint = _median_contrast(cohort, "t1ce", ED)
    assert -2 < faint < -0.1
    for name in ("t2", "flair"):
        assert _median_contrast(cohort, name, ED) > max(2, 3 * abs(faint))


def test_scans_are_found_as_own_data(tmp_path: pathlib.Path) -> None:
    phantom.write_scans(tmp_path, seed=0, cases=2, spacing=4.0)
    found = case_lib.find_cases(tmp_path)
    assert [case.case_id for case in found.cases] == ["phantom-0000", "phantom-0001"]
    made = phantom.generate(0, 1, 4.0)
    for name, path in found.cases[1].images.items():
        image = nib.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), made.images[name])
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.affine, made.affine)
    reference = np.asarray(nib.load(found.cases[1].label).dataobj)
    np.testing.assert_array_equal(reference == 4, made.labels == ET)  # BraTS 2021 calls ET 4
    np.testing.assert_array_equal(reference == ED, made.labels == ED)


def test_sheet_is_a_picture_and_nothing_else(
    tmp_path: pathlib.Path, cohort: list[phantom.PhantomCase]
) -> None:
    sheet.draw(tmp_path / "new" / "sheet.png", cohort[:1])
    assert (tmp_path / "new" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_sheet_that_cannot_be_written_is_told(
    tmp_path: pathlib.Path, cohort: list[phantom.PhantomCase]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        sheet.draw(tmp_path / "file" / "sheet.png", cohort[:1])


@pytest.mark.parametrize(
    ("seed", "spacing", "message"),
    [(-1, 3.0, "seed: -1"), (0, 0.5, "0.5 mm"), (0, 30.0, "30 mm"), (0, float("nan"), "nan mm")],
)
def test_what_cannot_be_made_is_refused(seed: int, spacing: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        phantom.generate(seed, 0, spacing)


def test_no_cases_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="cases: 0"):
        phantom.write_scans(tmp_path, seed=0, cases=0, spacing=3.0)


@pytest.mark.parametrize("options", [[], ["--figure=sheet.jpg"], ["sheet.png"]])
def test_sheet_command_refuses_in_one_line(options: list[str], tmp_path: pathlib.Path) -> None:
    done = commands.python("-m", "data_builders.brats_phantom.sheet", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
