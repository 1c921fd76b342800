"""What a header says of where voxels lie, and what is written beside a scan."""

import pathlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax.data.scans import geometry, nifti, nifti_header, spaces

LPS = np.array([[-1.0, 0, 0, 90], [0, -2, 0, 126], [0, 0, 3, -72], [0, 0, 0, 1]])
SHAPE = (5, 6, 7)


def tilted(degrees: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(np.deg2rad(degrees))
    affine[:3, 3] = 5, -20, 15
    return affine


def image_of(
    edit: Callable[[nib.Nifti1Header], object], kind: type = nib.Nifti1Image
) -> nib.Nifti1Image:
    """Returns an image of LPS in sform and qform whose header was edited."""
    image = kind(np.arange(210, dtype=np.int16).reshape(SHAPE), LPS)
    image.set_sform(LPS, 1)
    image.set_qform(LPS, 1)
    edit(image.header)
    return kind(np.asarray(image.dataobj), image.header.get_best_affine(), image.header)


def space_of(tmp_path: pathlib.Path, edit: Callable[[nib.Nifti1Header], object]) -> spaces.Space:
    path = tmp_path / "scan.nii"
    nib.save(image_of(edit), path)
    return nifti_header.read(path).space


def placing(path: pathlib.Path) -> tuple[np.ndarray, str]:
    """Returns all that a reader can take the place of a voxel from; without a unit it is mm."""
    header = nib.load(path).header
    names = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"]
    names += ["qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim"]
    numbers = np.concatenate([np.ravel(header[name])[:4] for name in names])
    return numbers, header.get_xyzt_units()[0].replace("unknown", "mm")


def set_tilted(header: nib.Nifti1Header) -> None:
    header.set_sform(tilted(10) @ LPS, 4)


def set_sheared(header: nib.Nifti1Header) -> None:
    sheared = LPS.copy()
    sheared[0, 1] = 0.1
    header.set_sform(sheared, 2)
    header["qform_code"] = 0


def set_qform_alone(header: nib.Nifti1Header) -> None:
    header["sform_code"] = 0


def set_nothing(header: nib.Nifti1Header) -> None:
    header["sform_code"] = header["qform_code"] = 0


def set_metres(header: nib.Nifti1Header) -> None:
    metres = LPS.copy()
    metres[:3] /= 1000
    header.set_sform(metres, 1)
    header.set_qform(metres, 1)
    header.set_xyzt_units("meter")


HEADERS = [set_tilted, set_sheared, set_qform_alone, set_nothing, set_metres, lambda header: None]


@pytest.mark.parametrize("edit", HEADERS)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_is_written_lies_where_the_scan_lies_for_every_reader(
    tmp_path: pathlib.Path, edit: Callable[[nib.Nifti1Header], object], kind: type
) -> None:
    nib.save(image_of(edit, kind), tmp_path / "scan.nii")
    space = nifti_header.read(tmp_path / "scan.nii").space
    # By way of the record that a built dataset keeps.
    way = geometry.Geometry.from_json(geometry.make_geometry(SHAPE, space).to_json())
    mask = np.ones(SHAPE, np.uint8)
    nifti.write_mask(tmp_path / "mask.nii.gz", mask, way.affine, stored=way.stored)
    nifti.write_image(tmp_path / "map.nii", mask + 0.5, way.affine, stored=way.stored)
    numbers, unit = placing(tmp_path / "scan.nii")
    for name in ("mask.nii.gz", "map.nii"):
        written, its_unit = placing(tmp_path / name)
        np.testing.assert_allclose(written, numbers, rtol=1e-6)
        assert its_unit == unit
        np.testing.assert_allclose(nifti_header.read(tmp_path / name).space.affine, space.affine)


def test_an_affine_that_a_qform_cannot_hold_is_written_as_sform_alone(
    tmp_path: pathlib.Path,
) -> None:
    sheared = LPS.copy()
    sheared[0, 1] = 0.3
    nifti.write_mask(tmp_path / "mask.nii", np.ones(SHAPE, np.uint8), sheared)
    header = nib.load(tmp_path / "mask.nii").header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    np.testing.assert_allclose(header.get_sform(), sheared, atol=1e-6)


# ------------------------------------------------------------------------------- what is doubted


def test_a_sound_header_is_not_doubted(tmp_path: pathlib.Path) -> None:
    for edit in (lambda header: None, set_tilted, set_qform_alone, set_sheared):
        space = space_of(tmp_path, edit)
        assert space.is_known
        assert space.doubts == ()


def test_a_header_without_codes_says_nothing_of_orientation(tmp_path: pathlib.Path) -> None:
    space = space_of(tmp_path, set_nothing)
    assert not space.is_known
    (doubt,) = space.doubts
    assert doubt.startswith(spaces.NO_ORIENTATION)
    assert "stored in LAS" in doubt
    assert "--orientation=LPS" in doubt


@pytest.mark.parametrize(("factor", "doubted"), [(1.009, False), (1.02, True), (0.5, True)])
def test_pixdim_that_contradicts_the_sform(
    tmp_path: pathlib.Path, factor: float, doubted: bool
) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        header["pixdim"][3] *= factor

    space = space_of(tmp_path, edit)
    np.testing.assert_array_equal(space.affine, LPS)
    assert len(space.doubts) == doubted
    if doubted:
        assert f"1 x 2 x 3 mm, by its pixdim 1 x 2 x {3 * factor:.4g} mm" in space.doubts[0]
        assert "The sform was taken" in space.doubts[0]


def test_sform_and_qform_that_are_mirror_images(tmp_path: pathlib.Path) -> None:
    flip = np.diag([-1.0, 1, 1, 1])
    (doubt,) = space_of(tmp_path, lambda header: header.set_qform(flip @ LPS, 1)).doubts
    assert "mirror images" in doubt
    assert space_of(tmp_path, lambda header: header.set_qform(tilted(170) @ LPS, 1)).doubts == ()


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1e3), ("micron", 1e-3)])
def test_lengths_in_another_unit_become_mm(tmp_path: pathlib.Path, unit: str, mm: float) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        other = LPS.copy()
        other[:3] /= mm
        header.set_sform(other, 1)
        header.set_qform(other, 1)
        header.set_xyzt_units(unit)

    space = space_of(tmp_path, edit)
    np.testing.assert_allclose(space.affine, LPS, rtol=1e-6)
    assert "converted to mm" in space.doubts[0]


@pytest.mark.parametrize(("unit", "size"), [("meter", "1000"), ("micron", "0.001")])
def test_a_unit_that_cannot_be_right_is_named(tmp_path: pathlib.Path, unit: str, size: str) -> None:
    space = space_of(tmp_path, lambda header: header.set_xyzt_units(unit))
    np.testing.assert_array_equal(space.affine, LPS)
    assert f"voxels of {size} x" in space.doubts[0]
    assert "taken as mm" in space.doubts[0]


# -------------------------------------------------------------------------------- images in memory


def test_an_image_in_memory_has_the_space_of_its_file(tmp_path: pathlib.Path) -> None:
    for edit in HEADERS:
        image = image_of(edit)
        nib.save(image, tmp_path / "scan.nii")
        from_file = nifti_header.read(tmp_path / "scan.nii").space
        for each in (image, nib.load(tmp_path / "scan.nii")):
            space = spaces.of_image(each)
            np.testing.assert_allclose(space.affine, from_file.affine)
            assert (space.stored, space.doubts) == (from_file.stored, from_file.doubts)


def test_an_affine_that_was_given_beside_a_header_counts() -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), LPS)
    image.affine[0, 3] += 40
    np.testing.assert_array_equal(spaces.of_image(image).affine, image.affine)


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze_files_know_no_orientation(tmp_path: pathlib.Path, kind: type) -> None:
    kind(np.zeros(SHAPE, np.int16), LPS).to_filename(tmp_path / "old.img")
    with_matrix = spaces.of_image(nib.load(tmp_path / "old.img"))
    (tmp_path / "old.mat").unlink(missing_ok=True)
    space = spaces.of_image(nib.load(tmp_path / "old.img"))
    assert not space.is_known
    assert space.doubts[0].startswith(spaces.NO_ORIENTATION)
    np.testing.assert_allclose(nib.affines.voxel_sizes(space.affine), [1, 2, 3])
    if kind is not nib.AnalyzeImage:  # SPM keeps the affine beside, in a .mat
        assert with_matrix.is_known
        np.testing.assert_allclose(with_matrix.affine, LPS)


# ------------------------------------------------------------------------------------- comparisons


def test_displacement_is_that_of_the_farthest_corner() -> None:
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    stretched = affine @ np.diag([1.0, 1.5, 1.0, 1.0])  # y of 3 mm instead of 2: 1 mm a voxel
    assert spaces.displacement(affine, stretched, (2, 6, 4)) == pytest.approx(5)


@pytest.mark.parametrize("base", [LPS, tilted(40) @ LPS])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "ILA", "PIR"])
def test_turns_between_orders_of_the_same_voxels(base: np.ndarray, axes: str) -> None:
    image = nib.Nifti1Image(np.arange(210.0).reshape(SHAPE), base)
    codes = nib.orientations.axcodes2ornt(axes)
    other = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(base), codes))
    way = spaces.turn(other.affine, other.shape, base, SHAPE)
    turned = nib.orientations.apply_orientation(np.asarray(other.dataobj), way)
    np.testing.assert_array_equal(turned, np.asarray(image.dataobj))


def test_no_turn_between_other_voxels() -> None:
    moved = LPS.copy()
    moved[0, 3] += 0.5
    assert spaces.turn(moved, SHAPE, LPS, SHAPE) is None
    assert spaces.turn(LPS, (5, 6, 8), LPS, SHAPE) is None
    assert spaces.turn(tilted(10) @ LPS, SHAPE, LPS, SHAPE) is None
