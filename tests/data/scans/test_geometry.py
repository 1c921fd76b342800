"""The way to the working grid and back, for every orientation."""

import itertools

import hypothesis
import nibabel as nib
import numpy as np
import pytest
from hypothesis import strategies as st
from jaxtyping import Float, UInt8
from nibabel import orientations

from kdnet_jax.data.scans import class_maps, geometry
from kdnet_jax.errors import UserError

FLIPS = dict(zip("RAS", "LPI", strict=True))
ALL_48 = [
    "".join(codes)
    for axes in itertools.permutations("RAS")
    for codes in itertools.product(*((axis, FLIPS[axis]) for axis in axes))
]


def _affine(codes: str, sizes: tuple[float, float, float] = (1, 1, 1)) -> Float[np.ndarray, "4 4"]:
    """An affine whose stored axes grow to `codes` with voxels of `sizes` mm."""
    affine = np.zeros((4, 4))
    for axis, (code, size) in enumerate(zip(codes, sizes, strict=True)):
        row = "RASLPI".index(code) % 3
        affine[row, axis] = size if code in "RAS" else -size
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def _rotated(affine: Float[np.ndarray, "4 4"], angles: list[float]) -> Float[np.ndarray, "4 4"]:
    oblique = affine.copy()
    oblique[:3, :3] = nib.eulerangles.euler2mat(*angles) @ affine[:3, :3]
    return oblique


def _classes(shape: tuple[int, ...], seed: int = 0) -> UInt8[np.ndarray, "x y z"]:
    return np.random.default_rng(seed).integers(0, 5, shape, np.uint8)


def test_there_are_48_orientations() -> None:
    assert len(set(ALL_48)) == 48


@pytest.mark.parametrize("codes", ALL_48)
def test_spl_axes_point_to_superior_posterior_left(codes: str) -> None:
    """The world position of the voxels, written as intensity, must grow to S, P and L."""
    affine, shape = _affine(codes, (1.0, 2.0, 3.0)), (4, 5, 6)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(affine, grid)  # x y z 3, in RAS mm
    spl = geometry.orient(world, affine)
    steps = np.array([spl[1, 0, 0], spl[0, 1, 0], spl[0, 0, 1]]) - spl[0, 0, 0]
    sizes = geometry.spacing_spl(affine)
    np.testing.assert_allclose(steps, [[0, 0, sizes[0]], [0, -sizes[1], 0], [-sizes[2], 0, 0]])


@pytest.mark.parametrize("codes", ALL_48)
def test_round_trip_with_crop_is_exact(codes: str) -> None:
    affine = _rotated(_affine(codes, (0.9, 1.0, 5.5)), [0.2, -0.15, 0.1])
    mask = _classes((5, 6, 7))
    np.testing.assert_array_equal(
        geometry.unorient(geometry.orient(mask, affine), mask.shape, affine), mask
    )
    way = geometry.make_geometry(mask.shape, affine, box=((1, 4), (0, 5), (2, 5)))
    inside = geometry.place(np.ones(way.box_shape, np.uint8), way).astype(bool)
    assert inside.sum() == np.prod(way.box_shape)
    back = geometry.back_to_scan(geometry.to_working(mask, way, order=0), way)
    np.testing.assert_array_equal(back, np.where(inside, mask, 0))


@hypothesis.settings(max_examples=60, deadline=None, database=None)
@hypothesis.given(data=st.data())
def test_round_trip_property(data: st.DataObject) -> None:
    """Any grid, oblique affine, crop and override: mask and probabilities come back bit for bit."""
    shape = data.draw(st.tuples(*[st.integers(2, 6)] * 3))
    sizes = data.draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    angles = data.draw(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
    affine = _rotated(_affine(data.draw(st.sampled_from(ALL_48)), sizes), angles)
    orientation = data.draw(st.sampled_from(["header", *ALL_48]))
    mask = _classes(shape, data.draw(st.integers(0, 99)))
    box = []
    for size in geometry.orient(mask, affine, orientation).shape:
        start = data.draw(st.integers(0, size - 1))
        box.append((start, data.draw(st.integers(start + 1, size))))
    way = geometry.make_geometry(shape, affine, box=tuple(box), orientation=orientation)
    inside = geometry.place(np.ones(way.box_shape, np.uint8), way).astype(bool)
    working = geometry.to_working(mask, way, order=0)
    expected = np.where(inside, mask, 0)
    np.testing.assert_array_equal(geometry.back_to_scan(working, way), expected)
    probabilities = np.eye(5, dtype=np.float32)[working]
    np.testing.assert_array_equal(geometry.back_to_scan(probabilities, way), expected)
    assert geometry.Geometry.from_json(way.to_json()) == way


def test_override_takes_the_voxels_as_stored() -> None:
    """A header that says RAS over voxels stored LPS: the override acts as the true header would."""
    volume = _classes((4, 5, 6))
    lying, true = _affine("RAS"), _affine("LPS")
    np.testing.assert_array_equal(
        geometry.orient(volume, lying, "LPS"), geometry.orient(volume, true)
    )
    sizes = (1.0, 2.0, 3.0)
    assert geometry.spacing_spl(_affine("RAS", sizes), "SRP") == (1.0, 3.0, 2.0)


def _ball(shape: tuple[int, ...], centre: tuple, radius: float, voxel: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * voxel
    return (np.linalg.norm(grid - np.array(centre), axis=-1) <= radius).astype(np.uint8)


@pytest.mark.parametrize("spacing", [2.0, 1.5, 0.8, (2.0, 1.0, 1.5)])
def test_resampling_keeps_places(spacing: float | tuple[float, float, float]) -> None:
    """A linear ramp in mm stays that ramp: no half-voxel shift, on any axis."""
    affine = _affine("SPL")
    ramp = np.arange(20, dtype=np.float32)[:, None, None] + 0.5  # mm from the border of the box
    volume = np.broadcast_to(ramp, (20, 20, 20))
    way = geometry.make_geometry(volume.shape, affine, spacing=spacing)
    working = geometry.to_working(volume, way, order=1)
    step, count = way.spacing[0], way.working_shape[0]
    assert working.shape == way.working_shape
    expected = 10 + (np.arange(count) - (count - 1) / 2) * step
    np.testing.assert_allclose(working[2:-2, 3, 3], expected[2:-2], atol=1e-3)


def test_smoothing_before_downsampling_removes_what_the_grid_cannot_hold() -> None:
    """One slice in four is 1: the coarse grid must see a quarter, though it samples the zeros."""
    stripes = np.zeros((32, 8, 8), np.float32)
    stripes[::4] = 1
    way = geometry.make_geometry(stripes.shape, _affine("SPL"), spacing=4.0)
    np.testing.assert_allclose(geometry.to_working(stripes, way, order=1)[1:-1], 0.25, atol=0.03)


def test_first_of_equal_probabilities_wins() -> None:
    way = geometry.make_geometry((2, 2, 2), _affine("SPL"))
    probabilities = np.full((2, 2, 2, 4), 0.25, np.float32)
    probabilities[0, :, :, 1:3] = 0.4
    assert geometry.back_to_scan(probabilities, way)[:, 0, 0].tolist() == [1, 0]


@pytest.mark.parametrize("as_probabilities", [True, False])
def test_mask_survives_resampling_closely(as_probabilities: bool) -> None:
    affine = _rotated(_affine("LPS", (1.0, 1.0, 3.0)), [0.1, 0.1, 0.1])
    mask = _ball((40, 40, 16), (20, 20, 8), 12, 1.0)
    mask[10:20][mask[10:20] == 1] = 3
    way = geometry.make_geometry(mask.shape, affine, spacing=2.0)
    working = geometry.to_working(mask, way, order=0)
    assert set(np.unique(working)) == {0, 1, 3}
    array = np.eye(4, dtype=np.float32)[working] if as_probabilities else working
    back = geometry.back_to_scan(array, way)
    for label in (1, 3):
        overlap = 2 * np.sum((back == label) & (mask == label))
        assert overlap / (np.sum(back == label) + np.sum(mask == label)) > 0.93


def test_back_to_scan_resamples_before_the_largest_is_taken() -> None:
    """Hand-derived: probabilities 0.9 and 0.2 at 2 mm cross 0.5 between the second and third mm."""
    way = geometry.make_geometry((4, 2, 2), _affine("SPL"), spacing=(2.0, 1.0, 1.0))
    foreground = np.broadcast_to(np.array([0.9, 0.2], np.float32)[:, None, None], (2, 2, 2))
    probabilities = np.stack([1 - foreground, foreground], axis=-1)
    # centres of the 1 mm voxels lie at -0.25, 0.25, 0.75, 1.25 working voxels: 0.9 0.725 0.375 0.2
    assert geometry.back_to_scan(probabilities, way)[:, 0, 0].tolist() == [1, 1, 0, 0]


def test_spacing_within_a_micrometre_is_kept() -> None:
    affine = _affine("LPS", (1.0005, 0.9996, 1.0))
    way = geometry.make_geometry((4, 5, 6), affine, spacing=1.0)
    assert way.spacing == way.native_spacing
    assert way.working_shape == (6, 5, 4)


def test_axcodes_agree_with_nibabel() -> None:
    affine = _affine("PIR")
    spl = nib.as_closest_canonical(nib.Nifti1Image(_classes((3, 4, 5)), affine))
    ras = np.asarray(spl.dataobj)
    np.testing.assert_array_equal(
        geometry.orient(_classes((3, 4, 5)), affine), ras[::-1, ::-1, :].transpose(2, 1, 0)
    )
    assert orientations.aff2axcodes(affine) == ("P", "I", "R")


@pytest.mark.parametrize("bad", [0.0, -1.0, (1.0, 1.0), float("nan"), (1.0, 1.0, 0.0)])
def test_bad_spacing_is_refused(bad: object) -> None:
    with pytest.raises(UserError, match="one positive number or three"):
        geometry.make_geometry((4, 4, 4), np.eye(4), spacing=bad)


@pytest.mark.parametrize("bad", ["LLS", "LP", "lps", "XYZ", ""])
def test_bad_orientation_is_refused(bad: str) -> None:
    with pytest.raises(UserError, match='such as "LPS"'):
        geometry.check_orientation(bad)


def test_wrong_shapes_are_refused() -> None:
    way = geometry.make_geometry((4, 5, 6), np.eye(4))
    with pytest.raises(ValueError, match="volume of shape"):
        geometry.to_working(np.zeros((5, 4, 6)), way, order=1)
    with pytest.raises(ValueError, match="working grid"):
        geometry.back_to_scan(np.zeros((4, 5, 6), np.uint8), way)
    with pytest.raises(ValueError, match="no scan of shape"):
        geometry.unorient(np.zeros((2, 3, 4)), (4, 5, 6), np.eye(4))


@pytest.mark.parametrize("slab", [1, 60, 10**9])
def test_the_way_back_is_the_same_in_slabs_of_any_size(
    monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    way = geometry.make_geometry((9, 8, 7), np.diag([-1.0, 1.5, 2.5, 1]), spacing=1.7)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), way.working_shape).astype(np.float32)
    maps = [geometry.map_to_scan(probs[..., c], way) for c in range(4)]
    classes = geometry.back_to_scan(probs, way)
    monkeypatch.setattr(class_maps, "SLAB_VOXELS", slab)
    for channel, expected in enumerate(maps):
        actual = geometry.map_to_scan(probs[..., channel], way)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(sum(maps), 1, atol=1e-5)
    np.testing.assert_array_equal(geometry.back_to_scan(probs, way), classes)


@pytest.mark.parametrize("spacing", [None, 1.7])
def test_a_region_s_threshold_is_that_of_two_classes(spacing: float | None) -> None:
    way = geometry.make_geometry((9, 8, 7), np.diag([-1.0, 1.5, 2.5, 1]), spacing=spacing)
    p = np.random.default_rng(0).random(way.working_shape).astype(np.float32)
    p.flat[0] = 0.5
    region = geometry.threshold_to_scan(p, way)
    if spacing is None:
        np.testing.assert_array_equal(geometry.orient(region, way.affine), p > 0.5)
    probs = np.stack([1 - p, p], axis=-1)
    np.testing.assert_array_equal(region, geometry.back_to_scan(probs, way) == 1)
    lower = geometry.threshold_to_scan(p, way, 0.2)
    if spacing is None:
        np.testing.assert_array_equal(geometry.orient(lower, way.affine), p > np.float32(0.2))
    assert lower.mean() > 0.7


def test_a_map_outside_of_the_box() -> None:
    way = geometry.make_geometry((4, 4, 4), np.eye(4), box=((1, 3), (0, 4), (2, 4)))
    values = np.random.default_rng(0).random(way.working_shape).astype(np.float32)
    whole = geometry.map_to_scan(values, way, outside=1.0)
    assert (whole == 1).sum() == 64 - 16
    np.testing.assert_array_equal(geometry.orient(whole, way.affine)[1:3, :, 2:4], values)
