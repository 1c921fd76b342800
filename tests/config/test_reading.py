"""Configs to experiments and JSON and back, and damaged files."""

import json
import pathlib
import re
from typing import Any

import pytest
from ml_collections import config_dict

from configs import common, pretrain
from kdnet_jax import dataset_json
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, keys, reading, study
from kdnet_jax.errors import UserError
from kdnet_jax.models import networks


@pytest.mark.parametrize("role", keys.ROLES)
def test_json_and_back(tmp_path: pathlib.Path, role: str) -> None:
    experiment = reading.read(common.base_config(role, "smoke"))
    (tmp_path / "config.json").write_text(experiment.to_json(), "utf-8")
    restored = reading.read_run(tmp_path)
    assert restored == experiment
    assert restored.to_json() == experiment.to_json()
    assert restored.hash == experiment.hash


def test_a_student_has_the_experiment_of_the_teacher_that_it_trains_first() -> None:
    config = common.base_config("student", "smoke")
    config.teacher.update(modalities="t1,t2", widths=(2, 8), steps=3)
    student = reading.read(config)
    assert (student.teacher.checkpoint, student.teacher.folds) == ("", ())
    teacher = student.teacher.to_train
    assert (teacher.role, teacher.teacher, teacher.distillation) == ("teacher", None, None)
    assert (teacher.modalities, teacher.network.widths) == (("t1", "t2"), (2, 8))
    assert teacher.train.steps == 3
    assert teacher.data == student.data
    config.teacher.update(checkpoint="runs/t", folds="0, 2")
    given = reading.read(config).teacher
    assert (given.checkpoint, given.folds, given.to_train) == ("runs/t", ("0", "2"), None)


def test_a_config_of_another_version_is_one_message(tmp_path: pathlib.Path) -> None:
    experiment = reading.read(common.base_config("baseline", "smoke"))
    document = json.loads(experiment.to_json())
    del document["loader"]["cache"]
    document["model"]["planes"] = True
    (tmp_path / "config.json").write_text(json.dumps(document), "utf-8")
    words = "it has no loader.cache, an unknown model.planes. Use the version that wrote it"
    with pytest.raises(UserError, match=words) as error:
        reading.read_run(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "is not of this version of kdnet_jax" in str(error.value)


def test_another_family_takes_what_it_can_and_refuses_the_rest() -> None:
    config = common.base_config("baseline", "smoke")
    config.model.update(family="plain_conv_unet", blocks=3, convolutions="planes")
    network = reading.read(config).network
    assert networks.family(network) == "plain_conv_unet"
    assert network.network.blocks == (3, 3)
    assert network.convolutions == "planes"
    config.model.down = "strided"
    with pytest.raises(UserError, match=re.escape("Set --config.model.down=max_pool")):
        reading.read(config)


def test_differences_name_dotted_keys() -> None:
    ours, theirs = (common.base_config("baseline", "smoke").to_dict() for _ in range(2))
    theirs["train"]["steps"] = 7
    assert flat_keys.differences(ours, theirs) == [("train.steps", ours["train"]["steps"], 7)]


def test_an_operational_key_changes_neither_the_hash_nor_what_is_computed() -> None:
    config = common.base_config("baseline", "smoke")
    before = reading.read(config)
    config.loader.threads, config.train.log_every = 5, 1
    after = reading.read(config)
    assert len(flat_keys.differences(before.document, after.document)) == 2
    assert not flat_keys.changes(before.document, after.document)
    assert after.hash == before.hash
    config.seed = 1
    changed = reading.read(config)
    assert flat_keys.changes(before.document, changed.document) == [("seed", 0, 1)]
    assert changed.hash != before.hash


def test_channels_are_positions_among_the_data_s_sequences() -> None:
    config = common.base_config("baseline", "smoke")
    config.data.modalities, config.model.modalities = "t1ce,t2,flair", "t1ce,flair"
    assert reading.read(config).channels == (0, 2)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.convolutions", "yes", "model.convolutions is 'yes': choose one of auto, native"),
        ("data.resection_cavity", "tumour", "choose one of background, NCR"),
        ("split.seed", -1, "split.seed is -1: give a whole number from 0"),
        ("seed", -2, "seed is -2: give a whole number from 0"),
        ("inference.overlap", 1.0, "inference.overlap is 1.0"),
        ("inference.patch", (30, 31, 32), "inference.patch is"),
        ("loader.patch", (15, 16, 16), "loader.patch is"),
        ("model.modalities", "t1cee", "did you mean 't1ce'"),
        ("model.modalities", "t1gd", "did you mean 't1ce'"),
        ("model.modalities", "T1_Gd", "did you mean 't1ce'"),
        ("model.modalities", "t2f", "did you mean 'flair'"),
        ("data.modalities", "t2,flair", "model.modalities asks for t1ce"),
        ("model.deep_supervision", True, "model.widths has 2 levels: below four there is none"),
    ],
)
def test_a_value_that_cannot_be_is_named(key: str, value: object, words: str) -> None:
    config = common.base_config("baseline", "smoke")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(words)):
        reading.read(config)


def test_a_folder_that_is_no_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"is no run of kdnet_jax"):
        reading.read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]"])
def test_a_damaged_config(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        reading.read_run(tmp_path)


# ---------------------------------------------------------------------------------- of other tasks

PROSTATE = {
    "name": "prostate",
    "channel_names": {"0": "T2", "1": "ADC", "2": "DWI"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2, "ignore": 3},
}


def _of_task(
    folder: pathlib.Path, role: str, document: dict[str, Any] | None = None
) -> config_dict.ConfigDict:
    path = folder / "dataset.json"
    path.write_text(json.dumps(document or PROSTATE), "utf-8")
    config = common.base_config(role, "smoke")
    config.task = str(path)
    return config


def test_the_task_fills_in_the_channels_that_a_config_leaves_open() -> None:
    everything = "t1,t1ce,t2,flair"
    teacher, baseline, student = (
        flat_keys.flatten(reading.read(common.base_config(role, "smoke")).document)
        for role in keys.ROLES
    )
    for each, seen in ((teacher, everything), (baseline, "t1ce"), (student, "t1ce")):
        assert (each["data.modalities"], each["model.modalities"]) == (everything, seen)
    assert student["teacher.modalities"] == everything


@pytest.mark.parametrize("role", keys.ROLES)
def test_channels_that_a_config_names_stay(role: str) -> None:
    config = common.base_config(role, "smoke")
    config.data.modalities, config.model.modalities = "t1,t2,flair", "flair"
    done = reading.read(config)
    assert (done.data.modalities, done.modalities) == (("t1", "t2", "flair"), ("flair",))
    if done.teacher:
        assert done.teacher.to_train.modalities == ("t1", "t2", "flair")
    assert reading.of_document(done.document) == done
    config.data.modalities = config.model.modalities = ""
    expected = {"teacher": ("t1", "t1ce", "t2", "flair")}.get(role, ("t1ce",))
    assert reading.read(config).modalities == expected
    assert config.model.modalities == ""  # what is given is not changed


def test_a_dataset_json_is_a_task(tmp_path: pathlib.Path) -> None:
    config = _of_task(tmp_path, "teacher")
    values = reading.read(config)
    assert values.task == dataset_json.read(tmp_path)
    assert values.modalities == ("t2", "adc", "dwi")
    assert values.head.outputs == ("background", "PZ", "TZ")
    assert values.network.out_channels == 3
    config.model.head = "regions"
    values = reading.read(config)
    assert (values.head.outputs, values.network.out_channels) == (("PZ", "TZ"), 2)


def test_a_task_that_names_no_channel_for_a_student(tmp_path: pathlib.Path) -> None:
    for role in ("student", "baseline"):
        with pytest.raises(UserError, match=r"model.modalities to one of t2, adc, dwi") as error:
            reading.read(_of_task(tmp_path, role))
        assert "the task prostate names no channel for a student" in str(error.value)
    config = _of_task(tmp_path, "student", PROSTATE | {"kdnet": {"student": "adc"}})
    assert reading.read(config).channels == (1,)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1.5, 1.5),
        (2, 2.0),
        (0, None),
        (0.0, None),
        ((3, 1, 0.5), (3.0, 1.0, 0.5)),
        ((2, 2.0, 2), 2.0),
    ],
)
def test_working_voxels_are_one_number_or_three(
    given: Any, expected: experiment_lib.Spacing
) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.spacing = given
    assert reading.read(config).data.spacing == expected


@pytest.mark.parametrize("given", [(3.0, 0.0, 1.0), (0, 0, 0)])
def test_no_axis_keeps_its_own_voxels_alone(given: tuple[float, ...]) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.spacing = given
    words = f"data.spacing is {','.join(f'{mm:g}' for mm in given)}: give three numbers above 0"
    with pytest.raises(UserError, match=words):
        reading.read(config)


@pytest.mark.parametrize("given", [(3.0, 1.0), "fine", (1.0, -1.0, 1.0), -1.0, (1.0, 1.0, 101.0)])
def test_other_voxels_cannot_be(given: Any) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.spacing = given
    words = "give a number from 0 to 100, or 3 values with commas, each a number from 0 to 100"
    with pytest.raises(UserError, match=f"data.spacing is .*{words}"):
        reading.read(config)


def test_thick_slices_are_halved_later(tmp_path: pathlib.Path) -> None:
    config = _of_task(tmp_path, "teacher")
    config.data.spacing = (4.0, 1.0, 1.0)
    network = reading.read(config).network
    assert network.level_strides[0] == (1, 2, 2)
    config.model.strides = ((2, 2, 2),)
    assert reading.read(config).network.strides == ((2, 2, 2),)


def test_a_run_of_another_task_comes_back_with_it(tmp_path: pathlib.Path) -> None:
    values = reading.read(_of_task(tmp_path, "teacher"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(values.to_json(), "utf-8")
    written = json.dumps(dataset_json.describe(values.task))
    (run / dataset_json.TASK_FILE).write_text(written, "utf-8")
    (tmp_path / "dataset.json").unlink()  # the run does not need it any more
    assert reading.read_run(run) == values


def test_a_folder_of_maps_is_a_teacher_without_features() -> None:
    config = common.base_config("student", "smoke")
    config.teacher.maps, config.distillation.latent_weight = "maps", 0.0
    teacher = reading.read(config).teacher
    assert (teacher.maps, teacher.checkpoint, teacher.to_train) == ("maps", "", None)
    config.teacher.checkpoint = "runs/t"
    with pytest.raises(UserError, match=r"teacher.maps is 'maps' and teacher.checkpoint is 'runs"):
        reading.read(config)
    config.teacher.checkpoint, config.distillation.latent_weight = "", 1.0
    with pytest.raises(UserError, match=r"Set --config.distillation.latent_weight=0"):
        reading.read(config)
    config.distillation.latent_weight, config.distillation.affinity_weight = 0.0, 1.0
    config.distillation.init_from_teacher = True
    words = r"affinity_weight=0 --config.distillation.init_from_teacher=false"
    with pytest.raises(UserError, match=words):
        reading.read(config)
    config.distillation.confidence = "agreement"
    with pytest.raises(UserError, match="one map of a case does not say how far"):
        reading.read(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.over_batch": True}, "has no use for loss.over_batch"),
        ({"inference.thresholds": "validation"}, "--config.inference.thresholds=fixed"),
        ({"loss.mask_edge": 16}, r"of the 1 cubes of a patch of \(16, 16, 16\) 1 would"),
        ({"loss.mask_share": 0.01}, "of the 8 cubes of .* 0 would be hidden"),
    ],
)
def test_a_reconstruction_that_cannot_be(changes: dict[str, object], words: str) -> None:
    config = pretrain.get_config("smoke")
    assert reading.read(config).uses_unlabelled
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        reading.read(config)


def test_neither_a_student_nor_a_study_is_pretrained() -> None:
    config = common.base_config("student", "smoke")
    config.loss.form = "reconstruction"
    with pytest.raises(UserError, match="has no use for a teacher"):
        reading.read(config)
    config = common.base_config("study", "smoke")
    config.loss.form = "reconstruction"
    with pytest.raises(UserError, match="a study compares networks that segment"):
        study.parts(config, pathlib.Path("nowhere"))


def test_a_student_starts_from_one_network_and_its_teacher_from_none() -> None:
    config = common.base_config("student", "smoke")
    config.train.start = "runs/pretrained"
    student = reading.read(config)
    assert student.train.start == "runs/pretrained"
    assert student.teacher.to_train.train.start == ""
    config.distillation.init_from_teacher = True
    with pytest.raises(UserError, match="a student starts from one network"):
        reading.read(config)


def test_sequences_are_dropped_only_where_a_network_that_sees_several_is_trained() -> None:
    config = common.base_config("baseline", "smoke")
    config.augment.modality_dropout = 0.3
    with pytest.raises(UserError, match="the network sees t1ce alone"):
        reading.read(config)
    config.model.modalities = "t1ce,flair"
    assert reading.read(config).augment.modality_dropout == 0.3
    # A student says it for the teacher that it trains.
    config = common.base_config("student", "smoke")
    config.augment.modality_dropout = 0.3
    student = reading.read(config)
    assert student.teacher.to_train.augment.modality_dropout == 0.3
    config.teacher.checkpoint = "runs/t"
    with pytest.raises(UserError, match="the teacher is trained already"):
        reading.read(config)


def test_a_teacher_that_is_to_see_gaps_trains_with_gaps() -> None:
    config = common.base_config("student", "smoke")
    config.data.incomplete = True
    with pytest.raises(UserError, match=r"data.incomplete is true and augment.modality_dropout is"):
        reading.read(config)
    config.augment.modality_dropout = 0.3
    student = reading.read(config)
    assert student.modality_dropout == 0.0
    assert student.teacher.to_train.modality_dropout == 0.3
    # Of one sequence there is nothing to miss, and a baseline leaves incomplete cases out.
    config.augment.modality_dropout, config.teacher.modalities = 0.0, "t1ce"
    assert reading.read(config).teacher.to_train.modalities == ("t1ce",)
    config = common.base_config("baseline", "smoke")
    config.data.incomplete, config.model.modalities = True, "t1ce,t2"
    assert reading.read(config).modality_dropout == 0.0
