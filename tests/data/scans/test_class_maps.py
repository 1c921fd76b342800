"""Class maps on another grid: volumes, places, thin structures."""

import numpy as np
import pytest
from jaxtyping import Float, UInt8

from kdnet_jax.data.scans import class_maps

Triple = tuple[float, float, float]


def _shape(shape: tuple[int, ...], source: Triple, target: Triple) -> tuple[int, ...]:
    return tuple(
        int(np.ceil(n * s / t - 1e-3)) for n, s, t in zip(shape, source, target, strict=True)
    )


def _distance(shape: tuple[int, ...], spacing: Triple, centre: np.ndarray) -> np.ndarray:
    """Distance in mm of each voxel from `centre`, given in mm from the middle of the grid."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(shape, spacing, centre, strict=True)
    ]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def _one_hot(labels: UInt8[np.ndarray, "d h w"]) -> Float[np.ndarray, "d h w k"]:
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


def _resample(
    labels: UInt8[np.ndarray, "d h w"], source: Triple, target: Triple, soft: bool
) -> UInt8[np.ndarray, "D H W"]:
    shape = _shape(labels.shape, source, target)
    if soft:
        return class_maps.resample_probabilities(_one_hot(labels), source, target, shape)
    return class_maps.resample_classes(labels, source, target, shape)


@pytest.mark.once
@pytest.mark.parametrize("radius", [3, 6])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)),
        ((1.0, 1.0, 1.0), (3.0, 3.0, 3.0)),
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5)),
        ((1.0, 1.0, 1.0), (2.0, 1.0, 1.5)),
        ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0)),
        ((3.0, 3.0, 3.0), (1.0, 1.0, 1.0)),
    ],
)
def test_balls_and_their_rims_keep_their_volume(
    source: Triple, target: Triple, radius: float
) -> None:
    """The mean over random places of a ball, and of a rim of 1.5 mm and the core in it."""
    rng = np.random.default_rng(0)
    shape = tuple(int((2 * radius + 6) / s) for s in source)
    volumes = np.zeros((2, 3))
    places = 400 if radius < 6 else 12
    for place in range(places):
        distance = _distance(shape, source, rng.uniform(-1.5, 1.5, 3))
        ball = (distance <= radius).astype(np.uint8)
        both = ball + (distance <= radius - 1.5).astype(np.uint8)
        for row, spacing, found in (
            (0, source, (ball, both)),
            (1, target, [_resample(x, source, target, soft=place % 2 == 1) for x in (ball, both)]),
        ):
            count = [np.sum(found[0] == 1), np.sum(found[1] == 1), np.sum(found[1] == 2)]
            volumes[row] += np.multiply(count, np.prod(spacing))
    kept = volumes[1] / volumes[0]
    assert kept[0] == pytest.approx(1, abs=0.02)
    # The core of 1.5 mm is half a voxel of 3 mm, there or not: 400 places leave a tenth.
    assert kept[1:] == pytest.approx(1, abs=0.1 if radius < 6 else 0.04)


def test_a_block_of_whole_voxels_comes_back_bit_for_bit() -> None:
    """Coarse voxels that each hold one class: there and back, and to the same shares there."""
    coarse = np.zeros((7, 8, 9), np.uint8)
    coarse[2:5, 2:6, 3:6], coarse[3, 3:5, 4] = 2, 1
    fine = coarse.repeat(3, 0).repeat(2, 1).repeat(3, 2)
    back = class_maps.resample_classes(fine, (1.0, 1.0, 1.0), (3.0, 2.0, 3.0), coarse.shape)
    np.testing.assert_array_equal(back, coarse)


def test_halving_by_hand() -> None:
    """Voxels 3 and 4 of 8 are halves of coarse voxels 1 and 2: ties. Their volume is that of one.

    The whole layer goes to one side, so that a flat border stays flat.
    """
    labels = np.zeros((8, 4, 4), np.uint8)
    labels[3:5] = 1
    tie = class_maps.resample_classes(labels, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (4, 2, 2))
    np.testing.assert_array_equal(tie, np.broadcast_to(tie[:, :1, :1], tie.shape))
    assert tie[:, 0, 0].tolist() in ([0, 1, 0, 0], [0, 0, 1, 0])
    whole = class_maps.resample_classes(
        np.roll(labels, -1, 0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (4, 2, 2)
    )
    assert whole[:, 0, 0].tolist() == [0, 1, 0, 0]


def test_a_rim_thinner_than_a_coarse_voxel_is_not_lost_to_its_neighbours() -> None:
    """1 mm of one class between two others fills a third of 3 mm: it keeps a third of a layer."""
    labels = np.zeros((18, 18, 18), np.uint8)
    labels[10], labels[11:] = 1, 2
    coarse = class_maps.resample_classes(labels, (1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (6, 6, 6))
    assert np.bincount(coarse.ravel()).tolist() == [120, 12, 84]
    assert set(np.argwhere(coarse == 1)[:, 0]) == {3}


@pytest.mark.once
@pytest.mark.parametrize(("factor", "voxels"), [(2.0, 1), (2.0, 3), (3.0, 1), (3.0, 6)])
def test_less_than_a_voxel_is_kept_as_often_as_its_volume_says(factor: float, voxels: int) -> None:
    kept = []
    side = int(24 / factor)
    for z, y, x in np.random.default_rng(0).integers(4, 16, (800, 3)):
        labels = np.zeros((24, 24, 24), np.uint8)
        labels[z, y, x : x + voxels] = 1
        grids = (1.0,) * 3, (factor,) * 3, (side,) * 3
        kept.append(np.count_nonzero(class_maps.resample_classes(labels, *grids)) * factor**3)
    assert np.mean(kept) == pytest.approx(voxels, rel=0.4)  # two standard deviations for 3.0, 1


def test_a_place_is_kept() -> None:
    """The centre of mass of a ball moves by far less than a voxel, over many places by nothing."""
    rng = np.random.default_rng(0)
    moves = []
    for _ in range(20):
        labels = (_distance((24, 24, 24), (1.0, 1.0, 1.0), rng.uniform(-1, 1, 3)) <= 7).astype(
            np.uint8
        )
        coarse = class_maps.resample_classes(labels, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (12, 12, 12))
        moves.append(np.argwhere(coarse).mean(0) * 2 + 0.5 - np.argwhere(labels).mean(0))
    assert np.abs(moves).max() < 0.3
    assert np.abs(np.mean(moves, axis=0)).max() < 0.15


def test_classes_at_the_end_of_the_grid() -> None:
    """Hand-derived: 6 mm in voxels of 4 mm are 2, which reach 1 mm beyond both ends, and back.

    The layers of 3 mm fill one voxel each; on the way back 3 of the 4 mm lie on the scan.
    """
    labels = np.repeat(np.array([1, 2], np.uint8), 3)[:, None, None] * np.ones((6, 4, 4), np.uint8)
    coarse = class_maps.resample_classes(labels, (1.0, 1.0, 1.0), (4.0, 4.0, 4.0), (2, 1, 1))
    assert coarse.ravel().tolist() == [1, 2]
    back = class_maps.resample_classes(coarse, (4.0, 4.0, 4.0), (1.0, 1.0, 1.0), labels.shape)
    np.testing.assert_array_equal(back, labels)


def test_of_uncertain_probabilities_the_lead_decides_not_the_height() -> None:
    """Class 1 leads at 0.4 in one half, and has 0.45 against 0.55 in the other."""
    probs = np.zeros((4, 4, 4, 3), np.float32)
    probs[:2] = (0.3, 0.4, 0.3)
    probs[2:] = (0.55, 0.45, 0.0)
    fine = class_maps.resample_probabilities(probs, (2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (8, 8, 8))
    assert (fine[:4] == 1).all()
    assert (fine[4:] == 0).all()


def test_slabs_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (9, 8, 7), np.uint8)
    probs = np.random.default_rng(0).dirichlet(np.ones(5), (9, 8, 7)).astype(np.float32)
    grids = (1.0, 1.5, 2.5), (1.7, 1.7, 1.7), (6, 8, 11)
    expected = (
        class_maps.resample_classes(labels, *grids),
        class_maps.resample_probabilities(probs, *grids),
    )
    monkeypatch.setattr(class_maps, "SLAB_VOXELS", 1)
    np.testing.assert_array_equal(class_maps.resample_classes(labels, *grids), expected[0])
    np.testing.assert_array_equal(class_maps.resample_probabilities(probs, *grids), expected[1])


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("soft", [False, True])
def test_any_number_of_classes_keeps_its_volumes_on_thick_slices(count: int, soft: bool) -> None:
    source, target = (5.0, 1.0, 1.0), (3.0, 1.5, 1.5)
    labels = np.zeros((12, 42, 42), np.uint8)
    for value in range(1, count + 1):
        centre = np.array([0, 12 * np.cos(value), 12 * np.sin(value)])
        labels[_distance(labels.shape, source, centre) < 5 + value / 2] = value
    labels[:1] = count + 1  # such as the ignore label
    found = _resample(labels, source, target, soft)
    for value in range(1, count + 2):
        before = np.count_nonzero(labels == value) * np.prod(source)
        after = np.count_nonzero(found == value) * np.prod(target)
        assert abs(before - after) <= np.prod(target), value
