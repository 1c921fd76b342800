"""Other tools on the same masks: real segmentations perturbed, edge cases and random ones.

SciPy is always there; the packages are those of requirements-oracles.txt.
"""

import math
import pathlib
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks import metrics_oracles, metrics_pairs
from kdnet_jax import task as task_lib
from kdnet_jax.metrics import cases, surface

EDGES = metrics_pairs.edge_pairs()


@pytest.fixture(scope="module")
def real(sample_dir: pathlib.Path) -> list[metrics_pairs.Pair]:
    """Every perturbation once, of enhancing tumour where there is some."""
    chosen: dict[str, metrics_pairs.Pair] = {}
    for pair in metrics_pairs.real_pairs(sample_dir, 2):
        kind = pair.name.split(maxsplit=2)[2]
        if pair.reference.any() and (kind not in chosen or " ET " in pair.name):
            chosen[kind] = pair
    return list(chosen.values())


def check(got: dict[str, float], expected: dict[str, float], name: str, within: float) -> None:
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=within, nan_ok=True), (name, key)


# --- SciPy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", EDGES, ids=lambda pair: pair.name)
def test_edge_cases_equal_scipy(pair: metrics_pairs.Pair) -> None:
    name, *masks = pair
    expected = metrics_oracles.scipy_written_out(*masks)
    check(metrics_oracles.ours(*masks), expected, name, 1e-12)
    assert expected


@pytest.mark.once
def test_real_pairs_equal_scipy(real: list[metrics_pairs.Pair]) -> None:
    assert len(real) == 7
    for name, *masks in real:
        expected = metrics_oracles.scipy_written_out(*masks)
        check(metrics_oracles.ours(*masks), expected, name, 1e-9)


@st.composite
def blobs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Two related random masks with several parts, and a spacing."""
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    noise = generator.standard_normal((2, 26, 24, 22))
    noise[1] += draw(st.sampled_from([0.0, 1.0, 3.0])) * noise[0]
    smooth = [ndimage.gaussian_filter(each, 1.3) for each in noise]
    masks = [each > draw(st.sampled_from([1.2, 1.8, 2.4])) * each.std() for each in smooth]
    return *masks, draw(st.sampled_from([(1.0, 1.0, 1.0), (0.8, 1.1, 4.0)]))


@settings(max_examples=25, deadline=None)
@given(blobs())
def test_random_blobs_equal_scipy(case: tuple) -> None:
    check(metrics_oracles.ours(*case), metrics_oracles.scipy_written_out(*case), "blobs", 1e-9)


@settings(max_examples=25, deadline=None)
@given(blobs(), st.tuples(*[st.integers(0, 5)] * 3))
def test_properties(case: tuple, shift: tuple[int, int, int]) -> None:
    reference, prediction, spacing = case
    row, mirrored = (
        metrics_oracles.ours(*pair, spacing)
        for pair in ((reference, prediction), (prediction, reference))
    )
    for key in ("dice", "hd95_mm", "nsd", "nsd_2mm"):
        assert mirrored[key] == pytest.approx(row[key])
    assert (row["dice"] == 1) == np.array_equal(reference, prediction)
    assert row["nsd"] <= row["nsd_2mm"]
    distances = surface.surfaces(reference, prediction, spacing).distances
    ladder = [distances.nsd(tolerance) for tolerance in np.linspace(0, 12, 25)]
    assert ladder == sorted(ladder)
    # A border closes a surface and keeps a lesion's dilation in, so both grids have room around.
    roomy = [np.pad(mask, 6) for mask in (reference, prediction)]
    moved = [np.roll(mask, shift, (0, 1, 2)) for mask in roomy]
    first, second = (metrics_oracles.ours(*masks, spacing) for masks in (roomy, moved))
    for key, value in first.items():
        assert second[key] == pytest.approx(value, nan_ok=True), key
    perfect = metrics_oracles.ours(reference, reference, spacing)
    assert (perfect["dice"], perfect["hd95_mm"], perfect["lesion_dice"]) == (1, 0, 1)


# --- Packages -------------------------------------------------------------------------------------


def test_monai(real: list[metrics_pairs.Pair]) -> None:
    pytest.importorskip("monai")
    for name, *masks in [*real, *EDGES]:
        theirs = metrics_oracles.monai(*masks)
        if not (masks[0].any() and masks[1].any()):
            assert not math.isfinite(theirs["hd95_mm"]), name
            continue
        check(metrics_oracles.ours(*masks), theirs, name, 1e-4)


def test_surface_distance(real: list[metrics_pairs.Pair]) -> None:
    # It weighs surface elements, which lie half a voxel off, by area: near, not equal.
    pytest.importorskip("surface_distance")
    asked = 0
    for name, *masks in [*real, *EDGES]:
        ours, theirs = metrics_oracles.ours(*masks), metrics_oracles.surface_distance(*masks)
        for key in set(theirs) & {"hd95_mm", "lesion_hd95_mm"}:
            assert abs(ours[key] - theirs[key]) <= np.linalg.norm(masks[2]), (name, key)
        if name.startswith("BraTS") and "nsd_2mm" in theirs:  # absent where a mask is empty
            assert ours["nsd_2mm"] == pytest.approx(theirs["nsd_2mm"], abs=0.1), name
            asked += 1
    assert asked >= 5


def test_brats_evaluation(real: list[metrics_pairs.Pair]) -> None:
    # Its HD95 is the percentile of the pooled distances.
    pytest.importorskip("brats_evaluation")
    for name, *masks in real:
        theirs, ours = metrics_oracles.brats_evaluation(*masks), metrics_oracles.ours(*masks)
        assert ours["dice"] == pytest.approx(theirs["dice"], abs=1e-9), name
        if math.isfinite(theirs["hd95_mm"]):
            ways = surface.surfaces(*masks).distances
            assert theirs["hd95_mm"] == pytest.approx(np.percentile(np.concatenate(ways), 95))


# --- Grids ----------------------------------------------------------------------------------------


def oblique(spacing: tuple[float, float, float]) -> Iterator[nib.Nifti1Image]:
    """A reference and a prediction on a grid that is turned about two axes."""
    a, b = 0.4, -0.7
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    for mask in (EDGES[9].reference, EDGES[9].prediction):
        yield nib.Nifti1Image(mask.astype(np.uint8) * 3, affine)


def test_an_oblique_grid_scores_as_a_straight_one() -> None:
    spacing = (0.7, 1.3, 5.5)
    images = list(oblique(spacing))
    classes = [np.asarray(image.dataobj) for image in images]
    sizes = tuple(float(size) for size in nib.affines.voxel_sizes(images[0].affine))
    turned = cases.score_case("a", *classes, sizes, task=task_lib.GLIOMA)
    for straight, other in zip(
        cases.score_case("a", *classes, spacing, task=task_lib.GLIOMA), turned, strict=True
    ):
        assert other.hd95_mm == pytest.approx(straight.hd95_mm)
        assert (other.nsd, other.nsd_2mm) == (straight.nsd, straight.nsd_2mm)
        assert other.lesion_hd95_mm == pytest.approx(straight.lesion_hd95_mm)
        assert other.volume_ref_mm3 == pytest.approx(straight.volume_ref_mm3)
    assert straight.hd95_mm > 0
