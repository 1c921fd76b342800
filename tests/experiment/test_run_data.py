"""The cases of a run: what a config says of them reaches the dataset."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import run_checks, run_data
from kdnet_jax.parallel import sharding
from tests.helpers import made_tasks


@pytest.mark.once
def test_the_label_convention_reaches_the_dataset(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = _config(tiny_cohort, built)
    config.data.label_convention = "brats2020"
    data = run_data.open_data(reading.read(config))
    assert data.cases.label_convention == "brats2020"


def test_every_part_of_the_split_needs_a_case(
    tiny_cohort: pathlib.Path, built: pathlib.Path
) -> None:
    config = _config(tiny_cohort, built)
    config.split.train, config.split.validation, config.split.test = 0.5, 0.0, 0.5
    with pytest.raises(UserError, match="leaves no case for validation"):
        run_data.open_data(reading.read(config))


def test_no_training_case_is_refused(tiny_cohort: pathlib.Path, built: pathlib.Path) -> None:
    config = _config(tiny_cohort, built)
    config.split.train, config.split.validation, config.split.test = 0.0, 0.5, 0.5
    with pytest.raises(UserError, match="leaves no case for train"):
        run_data.open_data(reading.read(config))


def test_an_unknown_place_is_named(tiny_cohort: pathlib.Path, built: pathlib.Path) -> None:
    config = _config(tiny_cohort, built)
    config.loader.cache = "gpu"
    with pytest.raises(UserError, match=r"loader\.cache is 'gpu': choose one of auto, device"):
        reading.read(config)


@pytest.mark.parametrize("place", ["auto", "device", "host", "stream"])
def test_the_place_is_said_and_changes_no_batch(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    caplog.set_level("INFO")
    config = _config(tiny_cohort, built)
    config.loader.cache = place
    config.augment.preset = "nnunet"
    values = reading.read(config)
    data, mesh = run_data.open_data(values), sharding.make_mesh()
    with run_data.open_batches(values, data, mesh, tmp_path) as batches:
        found = jax.device_get(list(itertools.islice(batches, 2)))
    assert f"loader.cache={place}: " in caplog.text
    # Rotated patches are taken from larger crops, whose middle they are before they are rotated.
    crop = augment.source_patch(values.loader.patch, values.augment)
    assert found[0]["image"].shape == (1, *crop, 4)
    assert all(edge > size for edge, size in zip(crop, values.loader.patch, strict=True))
    config.loader.cache = "stream"
    values = reading.read(config)
    with run_data.open_batches(values, data, mesh, tmp_path) as batches:
        for ours, theirs in zip(found, itertools.islice(batches, 2), strict=True):
            np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_a_patch_larger_than_every_case_is_noted(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    config = _config(tiny_cohort, built)
    config.loader.patch = (64, 16, 16)
    values = reading.read(config)
    data = run_data.open_data(values)
    run_data.open_batches(values, data, sharding.make_mesh(), tmp_path).close()
    assert "patch of 64 x 16 x 16 is larger along some axis than every" in caplog.text


def test_labels_are_kept_of_so_many_cases_and_a_student_alone_learns_from_the_others(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    config = _config(tiny_cohort, built)
    config.split.labelled = 3
    values = reading.read(config)
    data = run_data.open_data(values)
    assert len(data.split.train) == 3
    assert run_data.unlabelled_cases(values, data) == []
    assert "1 training case without a reference in use" in caplog.text
    caplog.clear()
    student = common.base_config("student", "smoke")
    student.data, student.split = config.data, config.split
    values = reading.read(student)
    assert run_data.unlabelled_cases(values, data) == data.indices("unlabelled")
    with run_data.open_batches(values, data, sharding.make_mesh(), tmp_path) as batches:
        labels = [jax.device_get(next(batches)["label"]) for _ in range(2)]
    assert [(label == task_lib.NO_LABEL).all() for label in labels] == [False, True]
    assert "the 4 training cases would take" in caplog.text
    student.loader.unlabelled_share = 0.0
    assert run_data.unlabelled_cases(reading.read(student), data) == []
    run_checks.check_taught(reading.read(student), data)
    student.distillation.kd_weight = student.distillation.latent_weight = 0.0
    with pytest.raises(UserError, match="would learn nothing from its teacher"):
        run_checks.check_taught(reading.read(student), data)
    student.loader.unlabelled_share = 0.5
    run_checks.check_taught(reading.read(student), data)
    student.distillation.unlabelled_weight = 0.0
    with pytest.raises(UserError, match="unlabelled_weight is 0 on the 1 without"):
        run_checks.check_taught(reading.read(student), data)
    _check_losses_of_unlabelled(student, data)
    config.split.labelled = 5
    with pytest.raises(UserError, match=r"split\.labelled is 5, but the training part has 4"):
        run_data.open_data(reading.read(config))


def _check_losses_of_unlabelled(student: config_dict.ConfigDict, data: run_data.Data) -> None:
    """A mixture with a case without a reference has none; a batch's Dice needs all classes."""
    student.loader.batch = 2
    student.distillation.update(mixup=1.0, kd_weight=1.0, unlabelled="soft", unlabelled_weight=1.0)
    run_checks.check_unlabelled(reading.read(student), data)
    for key, value in (("kd_weight", 0.5), ("unlabelled", "hard"), ("affinity_weight", 0.1)):
        changed = student.copy_and_resolve_references()
        changed.distillation[key] = value
        with pytest.raises(UserError, match="mixup is 1, and 1 training case without"):
            run_checks.check_unlabelled(reading.read(changed), data)
        changed.loader.unlabelled_share = 0.0
        run_checks.check_unlabelled(reading.read(changed), data)
    student.distillation.mixup, student.loss.over_batch = 0.0, True
    with pytest.raises(UserError, match="over_batch is true, and 1 training case without"):
        run_checks.check_unlabelled(reading.read(student), data)
    student.distillation.unlabelled = "hard"
    run_checks.check_unlabelled(reading.read(student), data)


@pytest.mark.once
def test_cases_without_a_label_file_train_without_a_reference(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "scans", 5)
    for name in ("made_01", "made_03"):
        (folder / "labelsTr" / f"{name}.nii.gz").unlink()
    config = _config(folder, tmp_path / "root")
    config.task, config.model.modalities = str(folder), "t2"
    config.data.modalities, config.data.spacing = "", 4.0
    config.split.train = config.split.validation = config.split.test = 1 / 3
    data = run_data.open_data(reading.read(config))
    assert data.split.unlabelled == ("made_01", "made_03")
    assert {*data.split.train, *data.split.validation, *data.split.test} == {
        *("made_00", "made_02", "made_04"),
    }
    path = tmp_path / "split.json"
    path.write_text('{"train": ["made_01"], "validation": ["made_00"], "test": ["made_02"]}')
    config.split.file = str(path)
    with pytest.raises(UserError, match=r"train part have no reference \(such as made_01\)"):
        run_data.open_data(reading.read(config))


def _config(cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(cohort), str(built)
    return config
