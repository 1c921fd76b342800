import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from tests.helpers import made_tasks

PLAIN = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2},
}
WHERE = "prostate/dataset.json"


@pytest.mark.parametrize("document", [made_tasks.PLAIN, made_tasks.REGIONS, PLAIN])
def test_a_task_is_read_back_as_it_was_written(document: dict[str, Any]) -> None:
    task = dataset_json.parse(document, WHERE)
    written = json.loads(json.dumps(dataset_json.describe(task)))
    assert dataset_json.parse(written, "elsewhere/dataset.json") == task


def test_the_glioma_is_read_back_as_it_was_written() -> None:
    written = json.loads(json.dumps(dataset_json.describe(task_lib.GLIOMA)))
    assert dataset_json.parse(written, WHERE) == task_lib.GLIOMA


def test_a_fingerprint_is_of_all_that_a_task_says_but_its_name() -> None:
    task = dataset_json.parse(PLAIN, WHERE)
    other = dataclasses.replace(task, noun="prostate")
    assert dataset_json.fingerprint(task) != dataset_json.fingerprint(other)
    assert dataset_json.fingerprint(dataset_json.parse(PLAIN, WHERE)) == dataset_json.fingerprint(
        task
    )
    # The name may be that of its folder.
    moved = dataclasses.replace(task, name="moved")
    assert dataset_json.fingerprint(moved) == dataset_json.fingerprint(task)


def test_plain_labels_are_a_region_for_each_class() -> None:
    labels = {"background": 0, "TZ": 2, "PZ": 1}
    task = dataset_json.parse(PLAIN | {"labels": labels}, WHERE)
    assert task.name == "prostate"  # the folder's, where the file has none
    assert task.modalities == ("t2", "adc")
    assert task.classes == ("background", "PZ", "TZ")
    assert [region.members for region in task.regions] == [(1,), (2,)]
    assert not task.has_regions
    np.testing.assert_array_equal(task.mask(np.array([0, 1, 2]), "TZ"), [False, False, True])


def test_regions_overlap_and_are_painted_in_the_order_of_the_labels() -> None:
    task = dataset_json.parse(made_tasks.REGIONS, WHERE)
    assert task.region_names == ("organ", "sick", "vessel")
    assert [region.paint for region in task.regions] == [1, 2, 3]
    assert task.hull == (1, 2, 3, 4)
    assert task.ignore == 5
    assert task.classes[4] == "class 4"  # in two regions, alone in none


def test_reserved_names_choose_the_normalisation() -> None:
    names = {"0": "CT", "1": "T1", "2": "noNorm", "3": "rescale_to_0_1"}
    task = dataset_json.parse(PLAIN | {"channel_names": names}, WHERE)
    found = [channel.normalisation for channel in task.channels]
    assert found == ["ct", "zscore", "none", "rescale"]


def test_the_decathlon_s_spelling_is_read() -> None:
    document = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
    task = dataset_json.parse(document, WHERE)
    assert (task.modalities, task.classes) == (("ct",), ("background", "liver"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "T2", "2": "ADC"}}, "has the keys 0, 2"),
        ({"channel_names": {"0": "T2", "1": "t2"}}, "a name of its own"),
        ({"channel_names": {}}, r"\(none\)"),
        ({"labels": {"PZ": 1}}, "no 'background'"),
        ({"labels": {"background": 0}}, "nothing but the background"),
        ({"labels": {"background": 0, "PZ": 2}}, "without a gap"),
        ({"labels": {"background": 0, "PZ": 1, "TZ": 1}}, "the same value"),
        ({"labels": {"background": 0, "PZ": "1"}}, "whole number"),
        ({"labels": {"background": 0, "PZ": 1, "both": [1, 2]}}, "no 'regions_class_order'"),
        ({"labels": {"background": 0, "PZ": 1, "ignore": 3}}, "expected the number after"),
        (
            {"labels": {"background": 0, "all": [1, 2], "TZ": 2}, "regions_class_order": [1, 7]},
            "expected one of the labels' values",
        ),
        (
            {"labels": {"background": 0, "all": [0, 1]}, "regions_class_order": [1]},
            "which is the background",
        ),
        ({"file_ending": ".png"}, "'file_ending' is '.png': choose one of"),
        ({"kdnet": {"normalisation": {"T1": "zscore"}}}, "a channel of 'normalisation' is 't1'"),
        ({"kdnet": {"normalisation": {"T2": "minmax"}}}, "the normalisation of t2 is 'minmax'"),
        ({"kdnet": {"statistics": {"T2": [5, 1, 0, 1]}}}, "low below high"),
        ({"kdnet": {"classes": ["background", "PZ"]}}, "expected 3 different names"),
        ({"kdnet": {"regions": ["PZ"]}}, "each of PZ, TZ once"),
        ({"kdnet": {"fallback": {"ET": "PZ"}}}, "a region of 'fallback' is 'ET'"),
        ({"kdnet": {"fallback": {"PZ": "ET"}}}, "the fallback of PZ is 'ET'"),
        ({"kdnet": {"student": "t1"}}, "'student' is 't1'"),
        ({"kdnet": {"crops_zeros": "no"}}, "expected true or false"),
        ({"kdnet": {"stduent": "t2"}}, "did you mean 'student'"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        dataset_json.parse(PLAIN | change, WHERE)
    assert WHERE in str(error.value)


def test_a_task_is_named_by_its_file_or_by_its_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(PLAIN))
    task = dataset_json.read(tmp_path)
    assert task == dataset_json.read(tmp_path / "dataset.json")
    assert dataset_json.read("glioma") is task_lib.GLIOMA
    with pytest.raises(UserError, match="neither glioma nor a file"):
        dataset_json.read(tmp_path / "none.json")


def test_channels_are_chosen_in_the_task_s_order() -> None:
    task = dataset_json.parse(PLAIN, WHERE)
    assert task.read_modalities("ADC, t2", "key") == ("t2", "adc")
    with pytest.raises(UserError, match="key holds 'acd'; did you mean 'adc'"):
        task.read_modalities("acd", "key")
    with pytest.raises(UserError, match="once"):
        task.read_modalities("t2,t2", "key")


def test_own_files_hold_the_glioma_by_name_and_other_tasks_whole() -> None:
    other = dataset_json.parse(made_tasks.REGIONS, WHERE)
    assert dataset_json.to_json(task_lib.GLIOMA) == "glioma"
    for task in (task_lib.GLIOMA, other):
        written = json.loads(json.dumps(dataset_json.to_json(task)))
        assert dataset_json.from_json(written, "its task") == task
    with pytest.raises(UserError, match="its task is 'prostate'; expected an object"):
        dataset_json.from_json("prostate", "its task")
