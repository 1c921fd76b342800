"""Does a scan look as in training? Usual scans pass, and each kind of odd one is told."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import familiarity, prepare
from kdnet_jax.data.sources import cases as cases_lib
from kdnet_jax.errors import UserError

EDGE = 48


def _case(
    seed: int, *, voxel: tuple[float, float, float] = (4.0, 4.0, 4.0), scale: float = 1.0
) -> prepare.PreparedCase:
    """An ellipsoid brain with a dark rim and, in T2, a bright one; it varies with the seed."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*[np.arange(EDGE) - EDGE / 2] * 3, indexing="ij", sparse=True)
    edges = scale * np.array([17, 21, 17]) * rng.uniform(0.97, 1.03, 3) * 4 / np.array(voxel)
    radius = np.sqrt(sum((g / e) ** 2 for g, e in zip(grids, edges, strict=True)))
    brain, rim = radius < 1, radius > 0.85 * rng.uniform(0.98, 1.02)
    texture = ndimage.gaussian_filter(rng.normal(size=brain.shape), 1)
    t1 = 500 - 200 * rim + 300 * texture
    t2 = 300 + 500 * rim + 300 * texture**2
    return prepare.prepare_arrays(
        {name: np.where(brain, np.maximum(v, 1), 0) for name, v in (("t1ce", t1), ("t2", t2))},
        np.diag([-voxel[0], -voxel[1], voxel[2], 1.0]),
        None,
        spacing=4.0,
        case_id=str(seed),
        patient_id=str(seed),
    )


@pytest.fixture(scope="module")
def usual() -> dict:
    statistics = familiarity.measure(_case(seed) for seed in range(10))
    return json.loads(json.dumps(statistics))


@pytest.mark.parametrize("seed", range(20, 26))
def test_a_usual_scan_passes(usual: dict, seed: int) -> None:
    assert familiarity.compare(_case(seed), usual) == []


def _compare(case: prepare.PreparedCase, usual: dict, **changes: object) -> str:
    return "\n".join(familiarity.compare(dataclasses.replace(case, **changes), usual))


def test_what_is_measured(usual: dict) -> None:
    assert usual["cases"] == 10
    assert usual["spacing_mm"] == [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    low, high = usual["brain_ml"]
    ellipsoid = 4 / 3 * np.pi * 17 * 21 * 17 * 64 / 1000
    assert 0.9 * ellipsoid < low < high < 1.1 * ellipsoid
    assert set(usual["sequences"]) == {"t1ce", "t2"}
    median = usual["sequences"]["t1ce"]["mean"][familiarity._QUANTILES.index(0.5)]
    scores = _case(3).image[..., 0].astype(np.float32)
    assert median == pytest.approx(np.median(scores[scores != 0]), abs=0.1)


def test_another_sequence_is_named(usual: dict) -> None:
    case = _case(20)
    words = _compare(case, usual, modalities=("t1ce",), image=case.image[..., 1:])
    assert "unlike T1ce in training" in words
    assert "looks more like T2" in words


def test_inverted_contrast(usual: dict) -> None:
    case = _case(20)
    words = _compare(case, usual, modalities=("t2",), image=-case.image[..., 1:])
    assert "unlike T2 in training" in words
    assert "not inverted" in words


def test_thick_slices(usual: dict) -> None:
    words = "\n".join(familiarity.compare(_case(20, voxel=(4.0, 4.0, 6.5)), usual))
    assert "6.5 x 4 x 4 mm" in words
    assert "coarser than in training (4 x 4 x 4 mm)" in words


@pytest.mark.parametrize(
    ("scale", "words"),
    [(1.13, "HD-BET or SynthStrip"), (0.8, "the brain measures only"), (0.7, "mm of the brain")],
)
def test_another_size(usual: dict, scale: float, words: str) -> None:
    assert words in "\n".join(familiarity.compare(_case(20, scale=scale), usual))


def test_few_cases_leave_the_intensities_unchecked() -> None:
    statistics = familiarity.measure([_case(0), _case(1)])
    (words,) = familiarity.compare(_case(20), statistics)
    assert "too few" in words


def test_the_file(usual: dict, tmp_path: pathlib.Path) -> None:
    assert familiarity.read(tmp_path) is None
    familiarity.write(tmp_path, usual)
    assert familiarity.read(tmp_path) == usual
    assert [path.name for path in tmp_path.iterdir()] == [familiarity.FILE]
    for damaged, words in (("{", "is damaged"), ("[]", "is damaged"), ('{"version": 9}', "9")):
        (tmp_path / familiarity.FILE).write_text(damaged, "utf-8")
        with pytest.raises(UserError, match=words):
            familiarity.read(tmp_path)


@pytest.mark.once
def test_real_cases(sample_dir: pathlib.Path) -> None:
    """T1ce passes among the other real cases; T2 in its place mostly does not."""
    cohort = cases_lib.find_cases(sample_dir, "auto", ("t1ce", "t2"))
    prepared = [prepare.prepare_case(case, spacing=2.0)[0] for case in cohort.cases]

    def as_t1ce(case: prepare.PreparedCase, channel: int) -> prepare.PreparedCase:
        image = case.image[..., channel : channel + 1]
        return dataclasses.replace(case, modalities=("t1ce",), image=image)

    told = 0
    for index, case in enumerate(prepared[:4]):
        others = prepared[:index] + prepared[index + 1 :]
        usual = familiarity.measure(as_t1ce(other, 0) for other in others)
        assert familiarity.compare(as_t1ce(case, 0), usual) == []
        told += bool(familiarity.compare(as_t1ce(case, 1), usual))
    assert told >= 3


def _body(seed: int, level: float, kind: str) -> tuple[prepare.PreparedCase, task_lib.Task]:
    """A CT whose air is no background, or the same in another normalisation."""
    own: dict = {"normalisation": {"ct": kind}, "noun": "liver"}
    if kind == "ct":
        own["statistics"] = {"ct": [-200, 300, 50, 60]}
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "kdnet": own}
    task = dataset_json.parse(document, "dataset.json")
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    image = np.where(distance < 10, level, -1000) + rng.normal(0, 10, distance.shape)
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    return prepare.prepare_arrays(
        {"ct": image}, affine, None, task=task, spacing=None, case_id="a", patient_id="a"
    ), task


def test_scans_that_are_not_stripped_are_compared_without_a_brain() -> None:
    made = [_body(seed, 50 + seed, "ct") for seed in range(8)]
    task = made[0][1]
    usual = json.loads(json.dumps(familiarity.measure((case for case, _ in made), task=task)))
    assert usual["brain_ml"] == [pytest.approx(24**3 * 8 / 1000)] * 2
    assert familiarity.compare(_body(20, 53, "ct")[0], usual, task=task) == []
    (odd,) = familiarity.compare(_body(21, 250, "ct")[0], usual, task=task)
    assert odd.startswith("the brightness of the scan is unlike CT in training (distance ")
    assert "Is it the right channel, in Hounsfield units?" in odd
    coarse = dataclasses.replace(
        made[0][0].geometry, affine=np.diag([-2.0, -2.0, 5.0, 1.0]), spacing=(5.0, 2.0, 2.0)
    )
    thick, *_ = familiarity.compare(
        dataclasses.replace(made[0][0], geometry=coarse), usual, task=task
    )
    assert "small liver parts may be missing" in thick


def test_intensities_without_a_common_scale_are_not_compared() -> None:
    made = [_body(seed, 50 + seed, "rescale") for seed in range(8)]
    task = made[0][1]
    usual = familiarity.measure((case for case, _ in made), task=task)
    assert usual["sequences"] == {"ct": None}
    (note,) = familiarity.compare(made[0][0], usual, task=task)
    assert note.startswith("the intensities of ct were not compared")
