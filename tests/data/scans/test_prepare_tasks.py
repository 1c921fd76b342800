"""Cases of made-up tasks: order of channels, own normalisation, three spacings, repeated scans."""

import dataclasses
import pathlib

import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from tests.helpers import made_tasks


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_tasks.write_plain(tmp_path_factory.mktemp("plain"), 2)


def test_thick_slices_on_a_grid_of_three_spacings(plain: pathlib.Path) -> None:
    task = dataset_json.read(plain)
    case = cases.find_cases(plain, task=task).cases[0]
    prepared, notes = prepare.prepare_case(case, task=task, spacing=(3.0, 2.0, 2.0))
    assert prepared.modalities == ("t2", "adc")
    assert prepared.image.shape == (12, 16, 16, 2)
    assert prepared.geometry.spacing == (3.0, 2.0, 2.0)
    assert prepared.inside.all()
    assert notes == []
    # Millilitres of each class are those of the file: 4 voxels of 3 ul become one of 12.
    counts = store.summarise(prepared, task).class_voxels
    native = [np.count_nonzero(prepared.reference == value) for value in (1, 2)]
    np.testing.assert_allclose(np.multiply(counts, 12.0), np.multiply(native, 3.0), atol=12)
    # The z-score of all voxels at the scan's own size.
    own, _ = prepare.prepare_case(case, task=task, spacing=None)
    scores = own.image.astype(np.float64)
    np.testing.assert_allclose(scores.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(scores.std((0, 1, 2)), 1, atol=1e-3)


def test_a_channel_alone_looks_as_it_does_beside_the_others(plain: pathlib.Path) -> None:
    task = dataset_json.read(plain)
    case = cases.find_cases(plain, task=task).cases[0]
    files = prepare.read_files(case, task=task)
    # One channel has rows without data.
    padded = files.images["adc"].data.copy()
    padded[:5] = 0
    images = {"adc": dataclasses.replace(files.images["adc"], data=padded)}
    # The voxels of the working grid are no multiple of the scan's: its origin shows.
    options = {"task": task, "spacing": 1.7, "orientation": "header", "allow_skull": False}
    both, _ = prepare.prepare_files(
        case, prepare.CaseFiles({"t2": files.images["t2"]} | images, None), **options
    )
    alone, _ = prepare.prepare_files(*prepare.in_memory(images, "scan", task=task), **options)
    assert alone.inside.all()
    assert alone.geometry == both.geometry
    np.testing.assert_array_equal(both.image[..., 1:], alone.image)
    # The z-score is that of the rows with data.
    assert abs(alone.image.astype(float)[:, :, 4:].mean()) < 0.02


def test_a_task_of_nnunet_is_cropped_to_what_is_not_0() -> None:
    task = dataset_json.parse(dict(made_tasks.PLAIN, kdnet={"crops_zeros": True}), "dataset.json")
    assert dataset_json.parse(dataset_json.describe(task), "again") == task
    rng = np.random.default_rng(0)
    images = {name: rng.normal(100, 9, (12, 12, 12)) for name in ("t2", "adc")}
    images["t2"][:2], images["adc"][:3] = 0, 0
    options = {"task": task, "spacing": None, "case_id": "a", "patient_id": "a"}
    case = prepare.prepare_arrays(images, np.diag([-1.0, -1.0, 1.0, 1.0]), None, **options)
    assert case.image.shape == (12, 12, 10, 2)
    assert case.inside.all()


def test_the_order_is_the_task_s_and_a_record_keeps_the_inside() -> None:
    document = dict(made_tasks.REGIONS, kdnet={"normalisation": {"late": "zscore_nonzero"}})
    task = dataset_json.parse(document, "dataset.json")
    rng = np.random.default_rng(0)
    images = {name: rng.normal(100, 9, (12, 12, 12)) for name in ("late", "arterial", "venous")}
    for volume in images.values():
        volume[:2], volume[-2:], volume[:, :2], volume[:, -2:] = 0, 0, 0, 0
        volume[..., :2], volume[..., -2:] = 0, 0
    images["late"][2:4] = 0
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[5:8, 5:8, 5:8], labels[9] = 4, 5
    case = prepare.prepare_arrays(
        images,
        np.diag([-1.0, -1.0, 1.0, 1.0]),
        labels,
        task=task,
        spacing=None,
        case_id="a",
        patient_id="a",
    )
    assert case.modalities == ("arterial", "venous", "late")
    assert case.image.shape == (12, 12, 12, 3)
    # Stripped channels have a background of 0, the others none: all of the scan is inside.
    assert (case.image[..., 2] == 0).sum() >= 12**3 - 8**3 + 2 * 64
    assert (case.image[..., :2] != 0).all()
    assert case.inside.all()
    features = store.features(case.modalities, task)
    record = features.deserialize_example_np(features.serialize_example(store.to_record(case)))
    again = store.from_record(record, case.modalities)
    assert again.inside.dtype == bool
    np.testing.assert_array_equal(again.inside, case.inside)
    np.testing.assert_array_equal(again.label, case.label)
    assert set(np.unique(again.label)) == {0, 4, 5}


def test_a_repeated_mri_is_refused_and_two_windows_of_a_ct_are_not() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 9, (24, 24, 24))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])

    def prepared(kind: str) -> prepare.PreparedCase:
        own = {"normalisation": {"t2": kind, "adc": kind}}
        task = dataset_json.parse(dict(made_tasks.PLAIN, kdnet=own), "dataset.json")
        images = {"t2": volume, "adc": 2 * volume}
        return prepare.prepare_arrays(
            images, affine, None, task=task, spacing=None, case_id="a", patient_id="a"
        )

    with pytest.raises(UserError, match="adc repeats t2"):
        prepared("zscore")
    assert prepared("none").image.shape == (24, 24, 24, 2)
    assert prepared("rescale").image.max() == 1
