"""From files on disk, with the traps that real copies hold, to prepared cases."""

import dataclasses
import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry, intensities, prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError

MODALITIES = task_lib.GLIOMA.modalities
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
SHAPE = (24, 26, 22)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[4:20, 3:21, 5:18] = True


@dataclasses.dataclass
class Files:
    """A case in memory, to be spoilt and written as files."""

    images: dict[str, np.ndarray]
    label: np.ndarray
    affines: dict[str, np.ndarray]

    def write(self, folder: pathlib.Path, convention: str = "brats2021") -> cases.Case:
        for name, data in {**self.images, "label": self.label}.items():
            affine = self.affines.get(name, AFFINE)
            nib.save(nib.Nifti1Image(data, affine), folder / f"case_{name}.nii.gz")
        return cases.Case(
            case_id="case",
            patient_id="patient",
            grade="HGG",
            images={name: folder / f"case_{name}.nii.gz" for name in self.images},
            label=folder / "case_label.nii.gz",
            convention=convention,
        )


@pytest.fixture
def files() -> Files:
    rng = np.random.default_rng(0)
    images = {
        name: np.where(BRAIN, rng.normal(500, 100, SHAPE).clip(1, 4000), 0).astype(np.int16)
        for name in MODALITIES
    }
    label = np.zeros(SHAPE, np.uint8)
    label[8:14, 8:14, 8:14] = 2
    label[10:13, 10:13, 10:13] = 1
    label[11, 11, 11] = 4
    return Files(images, label, {})


def _prepare(
    case: cases.Case, spacing: float | None = None, **options: object
) -> tuple[prepare.PreparedCase, list[str]]:
    return prepare.prepare_case(case, spacing=spacing, **options)


def _classes(label: np.ndarray) -> np.ndarray:
    return np.where(label == 4, 3, label)


def test_plain_case(files: Files, tmp_path: pathlib.Path) -> None:
    case, notes = _prepare(files.write(tmp_path))
    assert notes == []
    assert case.modalities == MODALITIES
    assert (case.case_id, case.patient_id, case.grade) == ("case", "patient", "HGG")
    # The file is stored L, P, S: SPL is its transpose, cropped to the brain.
    expected = files.images["t2"].T[5:18, 3:21, 4:20].astype(np.float64)
    expected = (expected - expected.mean()) / expected.std()
    assert case.image.dtype == np.float16
    np.testing.assert_allclose(case.image[..., 2], expected, atol=2e-3)
    np.testing.assert_array_equal(case.reference, _classes(files.label))
    np.testing.assert_array_equal(geometry.back_to_scan(case.label, case.geometry), case.reference)
    np.testing.assert_array_equal(case.geometry.affine, AFFINE)


def test_resampled_case(files: Files, tmp_path: pathlib.Path) -> None:
    case, _ = _prepare(files.write(tmp_path), spacing=2.0)
    assert case.geometry.spacing == (2.0, 2.0, 2.0)
    assert case.image.shape == (7, 9, 8, 4)
    assert case.label.shape == (7, 9, 8)
    assert case.reference.shape == SHAPE


def test_a_sequence_does_not_depend_on_the_others(files: Files, tmp_path: pathlib.Path) -> None:
    """What the student sees at the bedside is what it saw in training, bit for bit."""
    files.images["t1"][:, :, 16:] = 0
    files.images["t1ce"][:, :, :7] = 0
    everything = files.write(tmp_path)
    case, _ = _prepare(everything)
    alone, _ = _scan({"t1ce": everything.images["t1ce"]})
    assert alone.case_id == "case_t1ce"
    assert alone.label is None
    assert alone.reference is None
    assert alone.image.shape[0] == case.image.shape[0] - 2  # its own crop is tighter
    np.testing.assert_array_equal(alone.image[..., 0], case.image[2:, ..., 1])


def test_t1_with_a_cut_field_of_view(files: Files, tmp_path: pathlib.Path) -> None:
    files.images["t1"][:, :, 12:] = 0
    case, notes = _prepare(files.write(tmp_path))
    assert notes == []
    assert case.image.shape[:3] == (13, 18, 16)
    t1 = case.image[..., 0].astype(np.float64)
    assert not t1[7:].any()
    assert t1[:7].mean() == pytest.approx(0, abs=1e-3)
    assert t1[:7].std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16, np.float64])
def test_label_stored_as_another_type(files: Files, tmp_path: pathlib.Path, dtype: type) -> None:
    files.label = files.label.astype(dtype)
    case, _ = _prepare(files.write(tmp_path))
    assert case.reference.dtype == np.uint8
    np.testing.assert_array_equal(case.reference, _classes(files.label))


def test_label_of_another_release(files: Files, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"case_label.nii.gz: holds the label 4 \(1 voxels\)"):
        _prepare(files.write(tmp_path, "brats2023"))


def test_cavity_is_kept_apart(files: Files, tmp_path: pathlib.Path) -> None:
    case, _ = _prepare(files.write(tmp_path, "brats2024"))
    assert np.count_nonzero(case.label == len(task_lib.GLIOMA.classes)) == 1


@pytest.mark.parametrize("values", [(), (2,), (1, 2)])
def test_no_tumour_or_no_enhancing_tumour(
    files: Files, tmp_path: pathlib.Path, values: tuple[int, ...]
) -> None:
    files.label[~np.isin(files.label, values)] = 0
    case, notes = _prepare(files.write(tmp_path), spacing=2.0)
    assert notes == []
    assert set(np.unique(case.label)) <= {0, *values}
    assert set(np.unique(case.reference)) == {0, *values}


def test_tiny_enhancing_tumour_stays_in_the_reference(files: Files, tmp_path: pathlib.Path) -> None:
    case, _ = _prepare(files.write(tmp_path), spacing=2.0)
    assert np.count_nonzero(case.reference == 3) == 1


def test_tumour_outside_of_the_brain_stays_in_the_reference(
    files: Files, tmp_path: pathlib.Path
) -> None:
    files.label[0, 0, 0] = 2
    case, _ = _prepare(files.write(tmp_path))
    np.testing.assert_array_equal(case.reference, _classes(files.label))


# -------------------------------------------------------------------------- the header's traps


def _header(**changes: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += changes.get("shift", 0)
    affine[0, 0] *= changes.get("scale", 1)
    return affine


@pytest.mark.parametrize("name", ["t1", "flair", "label"])
def test_one_identity_affine(files: Files, tmp_path: pathlib.Path, name: str) -> None:
    plain, _ = _prepare(files.write(tmp_path))
    files.affines[name] = np.eye(4)
    case, notes = _prepare(files.write(tmp_path))
    assert len(notes) == 1
    assert f"case: the affine of {name} is the identity" in notes[0]
    np.testing.assert_array_equal(case.image, plain.image)
    assert case.geometry == plain.geometry


def test_one_affine_off_by_less_than_half_a_voxel(files: Files, tmp_path: pathlib.Path) -> None:
    files.affines["t1"] = _header(shift=0.4)
    case, notes = _prepare(files.write(tmp_path))
    assert "header of t1 places voxels up to 0.40 mm" in notes[0]
    np.testing.assert_array_equal(case.geometry.affine, AFFINE)


@pytest.mark.parametrize("change", [{"shift": 5.0}, {"scale": 1.5}, {"scale": -1.0}])
def test_different_affines_are_refused(
    files: Files, tmp_path: pathlib.Path, change: dict[str, float]
) -> None:
    files.affines["t2"] = _header(**change)
    with pytest.raises(UserError, match=r"\(t2 against the others\).*case_t1\.nii.*case_label"):
        _prepare(files.write(tmp_path))


def test_different_shapes_are_refused(files: Files, tmp_path: pathlib.Path) -> None:
    files.images["t1"] = files.images["t1"][:-1]
    with pytest.raises(UserError, match=r"case_t1.nii.gz has 23 x 26 x 22;.*t1ce.nii.gz has 24 x"):
        _prepare(files.write(tmp_path))


@pytest.mark.parametrize("spacing", [None, 1.0])
def test_header_says_ras_over_voxels_stored_lps(
    files: Files, tmp_path: pathlib.Path, spacing: float | None
) -> None:
    plain, _ = _prepare(files.write(tmp_path), spacing)
    wrong = np.diag([1.0, 1.0, 1.0, 1.0])
    wrong[:3, 3] = -7
    files.affines = dict.fromkeys((*MODALITIES, "label"), wrong)
    case, notes = _prepare(files.write(tmp_path), spacing, orientation="LPS")
    assert notes == ["case: the voxels are taken as stored in LPS (the header says RAS)"]
    np.testing.assert_array_equal(case.image, plain.image)
    # The mask still goes back onto the voxels and the affine of the file.
    np.testing.assert_array_equal(geometry.back_to_scan(case.label, case.geometry), case.reference)
    np.testing.assert_array_equal(case.geometry.affine, wrong)


def test_lost_header_is_said(files: Files, tmp_path: pathlib.Path) -> None:
    files.affines = dict.fromkeys((*MODALITIES, "label"), np.eye(4))
    _, notes = _prepare(files.write(tmp_path))
    assert "the header may be lost" in notes[0]
    with pytest.raises(UserError, match='such as "LPS"'):
        _prepare(files.write(tmp_path), orientation="LLS")


def test_thick_slices(files: Files, tmp_path: pathlib.Path) -> None:
    thick = AFFINE @ np.diag([1, 1, 5.5, 1])
    files.affines = dict.fromkeys((*MODALITIES, "label"), thick)
    case, _ = _prepare(files.write(tmp_path), spacing=1.0)
    assert case.geometry.native_spacing == (5.5, 1.0, 1.0)
    assert case.image.shape[:3] == (72, 18, 16)  # 13 slices of 5.5 mm are 71.5 mm
    back = geometry.back_to_scan(case.label, case.geometry)
    np.testing.assert_array_equal(back, case.reference)


# ----------------------------------------------------------------------- the traps of intensity


@pytest.mark.parametrize("factor", [32767 / 4000, 1e7 / 700, 1e-6])
def test_scale_of_intensities_does_not_matter(
    files: Files, tmp_path: pathlib.Path, factor: float
) -> None:
    plain, _ = _prepare(files.write(tmp_path))
    files.images = {m: (v * factor).astype(np.float32) for m, v in files.images.items()}
    case, _ = _prepare(files.write(tmp_path))
    np.testing.assert_allclose(
        case.image.astype(np.float32), plain.image.astype(np.float32), atol=2e-3
    )


def test_an_artefact_does_not_overflow(files: Files, tmp_path: pathlib.Path) -> None:
    files.images["flair"] = files.images["flair"].astype(np.float32)
    files.images["flair"][10, 10, 10] = 1e30
    case, _ = _prepare(files.write(tmp_path))
    assert np.isfinite(case.image).all()
    assert case.image.max() == intensities.MAX_Z


def test_negative_values_inside_the_brain(files: Files, tmp_path: pathlib.Path) -> None:
    plain, _ = _prepare(files.write(tmp_path))
    files.images["t1"] = np.where(BRAIN, files.images["t1"] - 450, 0).astype(np.int16)
    holes = np.count_nonzero(BRAIN & (files.images["t1"] == 0))
    assert holes < 30  # a voxel that happens to be 0 is taken for background
    case, notes = _prepare(files.write(tmp_path))
    assert notes == []
    assert case.geometry == plain.geometry
    difference = np.abs(case.image.astype(np.float32) - plain.image.astype(np.float32))[..., 0]
    assert np.count_nonzero(difference > 0.02) == holes


def test_background_that_is_not_zero(files: Files, tmp_path: pathlib.Path) -> None:
    """Others' z-score leaves one negative value around the brain."""
    plain, _ = _prepare(files.write(tmp_path))
    for name, volume in files.images.items():
        files.images[name] = ((volume - 120.5) / 230).astype(np.float32)
    case, notes = _prepare(files.write(tmp_path))
    assert len(notes) == 4
    assert "case_t1.nii.gz: the background is -0.523913, not 0" in notes[0]
    assert case.geometry == plain.geometry
    np.testing.assert_allclose(
        case.image.astype(np.float32), plain.image.astype(np.float32), atol=2e-3
    )


def _scan(images: dict) -> tuple[prepare.PreparedCase, list[str]]:
    return prepare.prepare_case(prepare.unlabelled_case(images), spacing=None)


def test_skull_on_by_noise_at_the_border(files: Files, tmp_path: pathlib.Path) -> None:
    files.images["t2"] += np.random.default_rng(1).integers(0, 9, SHAPE).astype(np.int16)
    case = files.write(tmp_path)
    with pytest.raises(UserError, match=r"case_t2.*skull seems to be on.*HD-BET or SynthStrip"):
        _prepare(case)
    prepared, notes = _prepare(case, allow_skull=True)
    assert prepared.image.shape[:3] == SHAPE[::-1]
    assert "the skull seems to be on. The scan was used as it is" in notes[0]


def test_skull_on_by_volume(files: Files, tmp_path: pathlib.Path) -> None:
    """The brain box of 3744 voxels is a head of 3744 ml if a voxel is a millilitre."""
    head = AFFINE @ np.diag([10, 10, 10, 1])
    files.affines = dict.fromkeys((*MODALITIES, "label"), head)
    with pytest.raises(UserError, match=r"3744 ml are not background.*skull"):
        _prepare(files.write(tmp_path))
    case, notes = _prepare(files.write(tmp_path), allow_skull=True)
    assert case.image.shape[:3] == (13, 18, 16)
    assert len(notes) == 4


def test_brain_cut_by_the_field_of_view(files: Files, tmp_path: pathlib.Path) -> None:
    """A scan that starts in the middle of the brain is no head with its skull on."""
    files.images = {m: v[:, :, 6:17] for m, v in files.images.items()}
    files.label = files.label[:, :, 6:17]
    case, notes = _prepare(files.write(tmp_path))
    assert notes == []
    assert case.image.shape[:3] == (11, 18, 16)


def test_mask_in_place_of_a_sequence(files: Files, tmp_path: pathlib.Path) -> None:
    files.images["t1"] = BRAIN.astype(np.int16) * 7
    with pytest.raises(UserError, match=r"case_t1.*every voxel of the brain is 7"):
        _prepare(files.write(tmp_path))


# ---------------------------------------------------------------------------- sources of images


def test_channels_of_one_file(files: Files, tmp_path: pathlib.Path) -> None:
    """The Decathlon's order is FLAIR, T1w, T1gd, T2w."""
    plain, _ = _prepare(files.write(tmp_path))
    order = ("flair", "t1", "t1ce", "t2")
    path = tmp_path / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([files.images[m] for m in order], -1), AFFINE), path)
    sources = {name: (path, channel) for channel, name in enumerate(order)}
    case, _ = _scan(sources)
    assert case.modalities == MODALITIES
    assert case.case_id == "BRATS_001"
    np.testing.assert_array_equal(case.image, plain.image)
    with pytest.raises(UserError, match="expected a volume of 3 dim"):
        _scan({"t1": path})


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_file_without_the_channels_that_are_listed_is_refused(
    files: Files, tmp_path: pathlib.Path, channels: int
) -> None:
    path = tmp_path / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([files.images["t2"]] * channels, -1), AFFINE), path)
    with pytest.raises(UserError, match=rf"has {channels} channel\(s\); dataset\.json lists 4"):
        _scan({"t2": (path, 0)})


def test_arrays_and_files_are_prepared_alike(files: Files, tmp_path: pathlib.Path) -> None:
    from_files, _ = _prepare(files.write(tmp_path), spacing=1.5)
    backwards = dict(reversed(files.images.items()))
    from_arrays = prepare.prepare_arrays(
        backwards, AFFINE, _classes(files.label), spacing=1.5, case_id="a", patient_id="b"
    )
    assert from_arrays.modalities == MODALITIES
    np.testing.assert_array_equal(from_arrays.image, from_files.image)
    np.testing.assert_array_equal(from_arrays.label, from_files.label)


def test_empty_array_is_refused() -> None:
    with pytest.raises(UserError, match="a, t1: every voxel is background"):
        prepare.prepare_arrays(
            {"t1": np.zeros(SHAPE)}, AFFINE, None, spacing=None, case_id="a", patient_id="b"
        )


# ------------------------------------------------------------------------------- real scans


@pytest.mark.once
@pytest.mark.parametrize(("index", "spacing"), [(0, None), (1, 2.0)])
def test_real_case(sample_dir: pathlib.Path, index: int, spacing: float | None) -> None:
    folder = sorted(path for path in sample_dir.iterdir() if path.is_dir())[index]
    case = cases.Case(
        case_id=folder.name,
        patient_id=folder.name,
        grade=None,
        images={name: folder / f"{folder.name}_{name}.nii.gz" for name in MODALITIES},
        label=folder / f"{folder.name}_seg.nii.gz",
        convention="brats2021",
    )
    prepared, notes = prepare.prepare_case(case, spacing=spacing)
    assert notes == []
    assert prepared.reference.shape == (240, 240, 155)
    back = geometry.back_to_scan(prepared.label, prepared.geometry)
    if spacing is None:
        np.testing.assert_array_equal(back, prepared.reference)
        inside = prepared.image[prepared.image != 0].astype(np.float64)
        assert abs(inside.mean()) < 0.01
    whole = (back > 0, prepared.reference > 0)
    assert 2 * np.sum(whole[0] & whole[1]) / (whole[0].sum() + whole[1].sum()) > 0.95
