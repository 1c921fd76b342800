"""Statistics of CT channels: of the foreground, each labelled case alike, and always the same."""

import dataclasses
import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import ct_statistics, prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError

TASK = dataset_json.parse(
    {
        "name": "liver",
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "organ": [1, 2], "sick": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
    "dataset.json",
)


def save(path: pathlib.Path, array: np.ndarray) -> pathlib.Path:
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def make_case(folder: pathlib.Path, number: int, label: np.ndarray, level: float) -> cases.Case:
    """A CT of -1000, and of noise about a level in the classes; a PET of 1 and more."""
    rng = np.random.default_rng(number)
    image = np.where(np.isin(label, (1, 2)), rng.normal(level, 10, label.shape), -1000)
    name = f"case_{number}"
    ct = save(folder / f"{name}_ct.nii", image.astype(np.float32))
    pet = save(folder / f"{name}_pet.nii", rng.uniform(1, 9, label.shape).astype(np.float32))
    return cases.Case(
        case_id=name,
        patient_id=name,
        grade=None,
        images={"ct": ct, "pet": pet},
        label=save(folder / f"{name}.nii", label.astype(np.uint8)),
        convention="task",
    )


@pytest.fixture
def cohort(tmp_path: pathlib.Path) -> list[cases.Case]:
    small, large = np.zeros((2, 24, 24, 12), int)
    small[10:12, 10:12, 5] = 1
    large[2:20, 2:20, 2:10], large[4:8, 4:8, 4] = 1, 2
    small[20:], large[20:] = 3, 3  # nobody labelled what lies there
    return [make_case(tmp_path, 0, small, 0.0), make_case(tmp_path, 1, large, 200.0)]


def test_each_case_counts_the_same_and_only_its_classes(cohort: list[cases.Case]) -> None:
    measured = ct_statistics.measure(cohort, TASK)
    low, high, mean, deviation = measured.channel("ct").statistics
    # Two clouds of deviation 10 about 0 and 200, of equal weight whatever their voxels are.
    values = np.ravel(nib.load(cohort[0].images["ct"]).dataobj)
    few = values[values > -1000]
    assert len(few) == 4
    assert mean == pytest.approx((few.mean() + 200) / 2, abs=1)
    assert deviation == pytest.approx(100, abs=5)
    assert few.min() == low
    assert 215 < high < 245
    # Nothing else of the task is another one, and the figures come again.
    assert dataclasses.replace(measured, channels=TASK.channels) == TASK
    assert measured.channel("pet") == TASK.channel("pet")
    assert ct_statistics.measure(cohort, TASK) == measured
    assert ct_statistics.measure([], measured) == measured


def test_cases_without_a_label_say_nothing(cohort: list[cases.Case]) -> None:
    bare = dataclasses.replace(cohort[1], label=None)
    both = ct_statistics.measure([cohort[0], bare], TASK)
    assert both == ct_statistics.measure(cohort[:1], TASK)
    with pytest.raises(UserError, match="ct: the foreground of the labelled cases has no voxel"):
        ct_statistics.measure([bare], TASK)


def test_a_ct_of_one_intensity_is_refused(cohort: list[cases.Case]) -> None:
    """With 99.8 % of the voxels at 255 both percentiles are, and every image would be constant."""
    label = np.ones((24, 24, 12), np.uint8)
    image = np.full(label.shape, 255.0, np.float32)
    image.flat[:10] = 100
    save(cohort[0].images["ct"], image)
    save(cohort[0].label, label)
    with pytest.raises(UserError, match=r"has \(nearly\) only the intensity 255"):
        ct_statistics.measure(cohort[:1], TASK)


def test_a_bad_case_stops_it_or_is_left_out(cohort: list[cases.Case]) -> None:
    alone = ct_statistics.measure(cohort[1:], TASK)
    cohort[0].label.write_bytes(b"no scan")
    with pytest.raises(UserError, match=r"case_0\.nii"):
        ct_statistics.measure(cohort, TASK)
    assert ct_statistics.measure(cohort, TASK, skip_bad_cases=True) == alone


def test_a_ct_is_prepared_by_them_without_a_crop(cohort: list[cases.Case]) -> None:
    with pytest.raises(UserError, match="the channel ct is a CT without statistics"):
        prepare.prepare_case(cohort[1], task=TASK, spacing=None)
    measured = ct_statistics.measure(cohort, TASK)
    case, notes = prepare.prepare_case(cohort[1], task=measured, spacing=(4.0, 2.0, 2.0))
    assert case.modalities == ("ct", "pet")
    assert case.image.shape == (6, 12, 12, 2)
    low, high, mean, deviation = measured.channel("ct").statistics
    assert case.image[..., 0].max() <= np.float16((high - mean) / deviation)
    assert case.image[..., 0].min() == np.float16((low - mean) / deviation)
    assert case.inside.all()
    assert set(np.unique(case.label)) == {0, 1, 2, 3}
    # Ignored voxels keep their volume as classes do, and are no class in the summary.
    assert np.count_nonzero(case.label == 3) * 16 == np.count_nonzero(case.reference == 3) * 2
    assert len(store.summarise(case, measured).class_voxels) == 2
    assert notes == []
