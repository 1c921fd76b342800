"""What is told from intensities, against brains that are built so that the answer is known."""

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnet_jax.data.checks import case_checks, cohort_checks, problems
from kdnet_jax.data.scans import geometry, spaces
from kdnet_jax.data.sources import cases

MODALITIES = ("t1", "t1ce", "t2", "flair")


def brain(seed: int, shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    """A box of smooth noise, off the middle, in a background of 0."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(8, 8, 8)).repeat(4, 0).repeat(5, 1).repeat(4, 2)
    volume = np.zeros(shape, np.float32)
    volume[3:35, 4:44, 1:33] = cells + 0.1 * rng.normal(size=cells.shape)
    return volume


def content(
    case: str, volume: np.ndarray, patient: str | None = None, label: str | None = None
) -> cohort_checks.Content:
    prints = np.stack([cohort_checks.fingerprint(volume).ravel()] * 2)
    return cohort_checks.Content(
        case, patient or case, f"/data/{case}", {"t1": prints}, frozenset({label} - {None})
    )


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    prints = (cohort_checks.fingerprint(one), cohort_checks.fingerprint(other))
    return float((prints[0] * prints[1]).sum())


# ------------------------------------------------------------------------------ the same patient


def test_a_cell_is_the_mean_of_its_voxels() -> None:
    # 32 voxels per axis are two per cell; an odd number shares a voxel between two cells.
    rng = np.random.default_rng(0)
    volume = rng.uniform(1, 2, (32, 32, 32)).astype(np.float32)
    means = volume.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    centred = means - means.mean()
    expected = centred / np.linalg.norm(centred)
    np.testing.assert_allclose(cohort_checks.fingerprint(volume), expected, atol=1e-5)
    ramp = np.broadcast_to(np.arange(24.0, dtype=np.float32)[:, None, None] + 1, (24, 16, 16))
    cells = cohort_checks.fingerprint(ramp)[:, 0, 0]
    # Cells of 1.5 voxels: means 4/3, 8/3 of the first three voxels 1, 2, 3; and so on by 1.5.
    np.testing.assert_allclose(np.diff(cells)[:2] / np.diff(cells)[0], [1, 1.25], rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    axes=st.permutations(range(3)),
    flips=st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3),
)
def test_turning_a_volume_turns_its_fingerprint(axes: list[int], flips: list[int]) -> None:
    def turned(volume: np.ndarray) -> np.ndarray:
        steps = tuple(slice(None, None, step) for step in flips)
        return volume.transpose(axes)[steps]

    volume = brain(1)
    expected = turned(cohort_checks.fingerprint(volume))
    np.testing.assert_allclose(cohort_checks.fingerprint(turned(volume)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: 3.7 * v,
        lambda v: np.round(v * 50),
        lambda v: np.pad(v, ((5, 0), (0, 9), (2, 2))),
        lambda v: v.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        lambda v: v + np.where(v != 0, np.random.default_rng(5).normal(0, 0.1, v.shape), 0),
    ],
    ids=["scale", "rounding", "crop", "spacing", "noise"],
)
def test_a_copy_in_another_form_is_the_same(change: object) -> None:
    assert likeness(brain(1), change(brain(1)).astype(np.float32)) > cohort_checks.SAME
    assert likeness(brain(1), brain(2)) < 0.5


def test_doubled_cases_are_told_on_both_sides() -> None:
    rows = cohort_checks.doubled(
        [content("a", brain(1)), content("b", brain(2)), content("c", 2 * brain(1))]
    )
    assert [(row.case, row.severity) for row in rows] == [("a", "error"), ("c", "error")]
    assert "t1: the same content as in c (/data/c), another patient (c)" in rows[0].finding
    assert rows[1].file == "/data/c"


def test_two_visits_of_a_patient_may_look_alike_but_not_be_one_scan() -> None:
    volume = brain(1)
    mixed = volume + 0.35 * brain(2)
    assert cohort_checks.ALIKE < likeness(volume, mixed) < cohort_checks.SAME
    alike = [content("a", volume, "p"), content("b", mixed, "p")]
    assert cohort_checks.doubled(alike) == []
    strangers = [content("a", volume), content("b", mixed)]
    assert {row.severity for row in cohort_checks.doubled(strangers)} == {problems.WARNING}
    copies = [content("a", volume, "p"), content("b", volume, "p")]
    assert {row.severity for row in cohort_checks.doubled(copies)} == {problems.WARNING}


def test_one_label_under_two_ids() -> None:
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[3:8, 4:9, 5:10] = 2
    classes[4:6, 5:7, 6:8] = 3
    key = cohort_checks.label_key(classes)
    assert key == cohort_checks.label_key(np.roll(classes, 5, axis=(0, 1, 2)))
    other = classes.copy()
    other[4, 5, 6] = 1
    assert key != cohort_checks.label_key(other)
    small = np.zeros_like(classes)
    small[:7, 0, 0] = 3
    assert cohort_checks.label_key(small) is None
    rows = cohort_checks.doubled(
        [content("a", brain(1), label=key), content("b", brain(2), label=key)]
    )
    assert [row.case for row in rows] == ["a", "b"]
    assert rows[0].finding.startswith("segmentation: the same content as in b")


# --------------------------------------------------------------------------- swapped sequences

# Of healthy tissue, CSF, ED and ET, as the physics of each sequence has it.
LOOKS = {
    "t1": (1.0, -2.0, 0.4, 0.3),
    "t1ce": (1.0, -2.0, 0.2, 3.0),
    "t2": (0.0, 3.0, 1.3, 1.0),
    "flair": (0.5, -1.5, 2.5, 1.5),
}


def scan(labelled: bool = True) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    rng = np.random.default_rng(0)
    tissue = np.zeros((24, 24, 24), int)
    tissue[:, :6], tissue[10:18, 10:18, 4:16], tissue[11:16, 11:16, 7:13] = 1, 2, 3
    noise = rng.normal(0, 0.3, tissue.shape)  # anatomy that T1 and T1ce have in common
    images = {
        name: (np.asarray(look)[tissue] + rng.normal(0, 0.3, tissue.shape)).astype(np.float32)
        + (noise if name.startswith("t1") else 0)
        for name, look in LOOKS.items()
    }
    classes = np.array([0, 0, 2, 3], np.uint8)[tissue]
    return images, classes if labelled else None


def exchanged(images: dict[str, np.ndarray], one: str, other: str) -> dict[str, np.ndarray]:
    return images | {one: images[other], other: images[one]}


PAIRS = [(a, b) for i, a in enumerate(MODALITIES) for b in MODALITIES[i + 1 :]]


@pytest.mark.parametrize("labelled", [True, False])
def test_every_exchange_of_two_sequences_is_named(labelled: bool) -> None:
    images, classes = scan(labelled)
    assert cohort_checks.swapped(cohort_checks.contrast(images, classes)) is None
    for pair in PAIRS:
        measured = cohort_checks.contrast(exchanged(images, *pair), classes)
        assert cohort_checks.swapped(measured) == pair


def test_where_contrasts_say_nothing_nothing_is_told() -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(24, 24, 24)).astype(np.float32) for name in MODALITIES}
    assert cohort_checks.swapped(cohort_checks.contrast(images, None)) is None
    one = {"t1": images["t1"]}
    assert cohort_checks.contrast(one, None) is None
    apart = {"t1": images["t1"] * (np.arange(24) < 12), "t2": images["t2"] * (np.arange(24) > 12)}
    assert cohort_checks.contrast(apart, None) is None


def test_the_order_of_the_dictionary_does_not_matter() -> None:
    images, classes = scan()
    turned = dict(reversed(images.items()))
    names = [cohort_checks.contrast(each, classes) for each in (images, turned)]
    values = [cohort_checks.plausibility(each, each.modalities) for each in names]
    assert values[0] == pytest.approx(values[1])


@pytest.mark.once
def test_real_cases(sample_dir: pathlib.Path) -> None:
    found = cases.find_cases(sample_dir).cases[:2]
    readings = [case_checks.read_case(case) for case in found]
    assert [reading.problems for reading in readings] == [[], []]
    contents = [case_checks.content(reading) for reading in readings]
    assert cohort_checks.doubled(contents) == []
    # A copy stored in another orientation, with the header that says so, under another name.
    turned = _turned(readings[0])
    copy = dataclasses.replace(case_checks.content(turned), case="copy", patient="copy")
    rows = cohort_checks.doubled([*contents, copy])
    assert [row.case for row in rows] == [found[0].case_id, "copy"]
    assert rows[0].finding.startswith("t1, t1ce, t2, flair, segmentation: the same content")
    lost = dataclasses.replace(readings[0], space=spaces.Space(np.eye(4)))
    copy = dataclasses.replace(case_checks.content(lost), case="copy", patient="copy")
    assert len(cohort_checks.doubled([*contents, copy])) == 2
    for pair in (("t1", "flair"), ("t2", "flair"), ("t1ce", "t2")):
        measured = cohort_checks.contrast(exchanged(readings[0].scores, *pair), None)
        assert cohort_checks.swapped(measured) == pair


def _turned(reading: case_checks.Reading) -> case_checks.Reading:
    spl = np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    scores = {name: geometry.orient(v, reading.affine) for name, v in reading.scores.items()}
    classes = geometry.orient(reading.classes, reading.affine)
    return dataclasses.replace(reading, space=spaces.Space(spl), scores=scores, classes=classes)


# --------------------------------------------------------------------------------- orientations


def test_odd_orientations() -> None:
    assert cohort_checks.odd_orientations(["LPS", "RAS", "", "LPS"]) == {1: "LPS"}
    assert cohort_checks.odd_orientations(["", ""]) == {}
