"""Models of other tools that segment something else than a glioma, in and out."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.interop import conversion, foreign, writing
from kdnet_jax.models import heads
from kdnet_jax.runs import model_folder
from tests.helpers import foreign_folders as folders
from tests.helpers import own_tasks

PLAIN4 = dataclasses.replace(folders.PLAIN, out_channels=4)
RESULTS = "nnUNet_results/Dataset999_KDNet/nnUNetTrainer__nnUNetPlans__3d_fullres"


# ----------------------------------------------------------------------------- nnU-Net, in


def results(
    root: pathlib.Path, dataset: dict = own_tasks.DATASET, **changes: object
) -> pathlib.Path:
    """Writes a folder of results of `own_tasks.DATASET`."""
    plan = own_tasks.plan(patch_size=[8, 8, 16])
    plans = own_tasks.plans(plan, **changes)
    return folders.results(root, channels=2, plans_json=plans, dataset_json=dataset)


def test_the_task_is_that_of_its_dataset_as_its_plans_prepare_it(tmp_path) -> None:
    model = foreign.read(results(tmp_path, transpose_forward=[2, 0, 1]))
    assert model.task.name == "organs"
    assert model.task.channels == (
        task_lib.Channel(name="adc", normalisation="zscore"),
        task_lib.Channel(name="ct", normalisation="ct", statistics=own_tasks.STATISTICS),
    )
    assert (model.task.classes, model.task.ignore) == (("background", "organ", "lesion"), 3)
    assert (model.modalities, model.head, model.order) == (("adc", "ct"), "softmax", (0, 1, 2))
    # The thick slices lie along the network's first axis, which runs to the left.
    assert (model.axes, model.spacing) == ("LSP", (3.0, 0.5, 0.75))


def test_it_becomes_a_model_folder_of_that_task(tmp_path) -> None:
    found = conversion.convert(results(tmp_path / "r", transpose_forward=[2, 0, 1]))
    assert (found.model.spacing, found.model.window) == ((0.5, 0.75, 3.0), (8, 16, 8))
    assert found.model.outputs == ("background", "organ", "lesion")
    (tmp_path / "kept").mkdir()
    conversion.fill(tmp_path / "kept", found)
    assert model_folder.read(tmp_path / "kept").model == found.model


def test_without_a_name_the_task_has_that_of_the_plans(tmp_path) -> None:
    unnamed = {key: value for key, value in own_tasks.DATASET.items() if key != "name"}
    assert foreign.read(results(tmp_path, unnamed)).task.name == "Dataset137_BraTS2021"


def test_labels_of_one_value_are_classes_whatever_their_order_says(tmp_path) -> None:
    """nnU-Net's `LabelManager` then takes no region; outputs go by the values."""
    labels = {"background": 0, "lesion": [2], "organ": 1}
    dataset = own_tasks.DATASET | {"labels": labels, "regions_class_order": [2, 1]}
    model = foreign.read(results(tmp_path, dataset))
    assert (model.head, model.order) == ("softmax", (0, 1, 2))
    assert model.task.classes == ("background", "organ", "lesion")
    assert model.task.region_names == ("organ", "lesion")


@pytest.mark.parametrize(
    ("dataset", "plan"),
    [
        # A glioma's channels and labels, over all voxels; and channels that are not all known.
        (folders.dataset(), {"use_mask_for_norm": [False] * 4}),
        (folders.dataset(channel_names={"0": "T1", "1": "MRI", "2": "T2", "3": "ASL"}), {}),
    ],
)
def test_what_is_not_all_a_gliomas_is_a_task_of_its_own(tmp_path, dataset, plan) -> None:
    folder = folders.results(tmp_path, dataset_json=dataset, plan_changes=plan)
    model = foreign.read(folder)
    assert model.task.region_names == ("whole tumor", "tumor core", "enhancing tumor")
    assert model.task.modalities == tuple(n.lower() for n in dataset["channel_names"].values())
    assert (model.head, model.order) == ("regions", (0, 1, 2))
    expected = "zscore" if plan else "zscore_nonzero"
    assert {channel.normalisation for channel in model.task.channels} == {expected}
    assert ("taken as a task of its own" in str(model.about["notes"])) is bool(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0": {}, "1": {"mean": 1.0}}, r"per_channel\.1: 'percentile_00_5' is missing"),
        ({"0": {}}, "'1' is missing"),
        ({"0": {}, "1": own_tasks.properties()["1"] | {"std": 0.0}}, "the deviation above 0"),
    ],
)
def test_statistics_that_cannot_be_taken(tmp_path, changes, message) -> None:
    folder = results(tmp_path, foreground_intensity_properties_per_channel=changes)
    with pytest.raises(UserError, match=message):
        foreign.read(folder)


# ---------------------------------------------------------------------------- nnU-Net, out


def write(folder: pathlib.Path, config: object = folders.PLAIN, **changes: object) -> list[str]:
    given = {"task": own_tasks.REGIONS, "modalities": ("c", "a", "b"), "order": (2, 0, 1)}
    return writing.write(folder, folders.model_of(config, **given | changes))


@pytest.mark.parametrize("of", ["", RESULTS])
def test_regions_go_out_and_come_in_again(tmp_path, of) -> None:
    """By `foreign.json`, and by nnU-Net's folder: each region is the same function of the scan."""
    said = write(tmp_path, spacing=(3.0, 0.5, 0.75), window=(8, 16, 16))
    assert said[-1] == f"{RESULTS}: for nnUNetv2_predict"
    found = foreign.read(tmp_path / of)
    # nnU-Net's channels are the model's alone, in its order.
    channels = tuple(own_tasks.REGIONS.channel(name) for name in ("c", "a", "b"))
    wanted = dataclasses.replace(own_tasks.REGIONS, channels=channels) if of else own_tasks.REGIONS
    assert found.task == wanted
    assert (found.modalities, found.head) == (("c", "a", "b"), "regions")
    assert (found.spacing, found.window) == ((3.0, 0.5, 0.75), (8, 16, 16))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 3)).astype(np.float32)
    theirs = folders.answer(found.network, found.members[0], x)[..., list(found.order)]
    params = folders.random_params(folders.PLAIN, 3)
    ours = folders.answer(folders.PLAIN, params, x)[..., [2, 0, 1]]
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_nnunet_s_plans_normalise_as_the_task(tmp_path) -> None:
    write(tmp_path)
    plans = json.loads((tmp_path / RESULTS / "plans.json").read_text())
    plan = plans["configurations"]["3d_fullres"]
    assert plan["normalization_schemes"] == [
        *("CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization")
    ]
    assert plan["use_mask_for_norm"] == [False, False, False]
    assert plans["foreground_intensity_properties_per_channel"] == {
        "0": {"percentile_00_5": -100.0, "percentile_99_5": 300.0, "mean": 40.0, "std": 80.0},
        "1": {},
        "2": {},
    }


def test_classes_of_a_task_of_regions_are_plain_labels(tmp_path) -> None:
    order = (3, 1, 0, 2)
    write(tmp_path, PLAIN4, head="softmax", order=order)
    dataset = json.loads((tmp_path / RESULTS / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "ring": 1, "rim": 2, "dot": 3}
    assert "regions_class_order" not in dataset
    found = foreign.read(tmp_path)
    assert (found.task, found.head, found.order) == (own_tasks.REGIONS, "softmax", order)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {
                "task": dataset_json.parse(own_tasks.DATASET, "organs"),
                "modalities": ("adc",),
                "order": (1, 0),
            },
            "a sigmoid only where a region is of several classes",
        ),
        (
            {
                "task": dataset_json.parse(own_tasks.DATASET, "organs"),
                "modalities": ("ct",),
                "head": "softmax",
                "order": (1, 0, 2),
            },
            "the intensities of ct that a CT is cut at are not known",
        ),
    ],
)
def test_what_nnunet_cannot_do_is_reported(tmp_path, changes, reason) -> None:
    config = dataclasses.replace(folders.PLAIN, out_channels=len(changes["order"]))
    said = write(tmp_path, config, **changes)
    assert reason in said[-1]
    assert not (tmp_path / "nnUNet_results").exists()
    assert foreign.read(tmp_path).task == changes["task"]


# ----------------------------------------------------------------------------- foreign.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, r"task is None; expected an object"),
        ({"task": {"labels": {}}}, r"foreign\.json: task: 'channel_names'"),
        ({"normalisation": "nonzero z-score per sequence"}, "both task and normalisation"),
        ({"channels": ["c", "a", "t1"]}, "channels is 'c', 'a', 't1': expected .* task's a, b, c"),
        ({"channels": ["c", "a", "a"]}, "once, of the task's a, b, c"),
        (
            {"outputs": ["all", "core"]},
            "expected the task's regions core, dot, all, or its classes",
        ),
    ],
)
def test_descriptions_that_contradict_their_task(tmp_path, changes, message) -> None:
    write(tmp_path)
    file = tmp_path / "foreign.json"
    folders.write_json(file, json.loads(file.read_text()) | changes)
    with pytest.raises(UserError, match=message):
        foreign.read(tmp_path)


# ----------------------------------------------------------------------------------- MONAI


def test_a_bundle_of_a_ct(tmp_path) -> None:
    turn = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
    resample = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.0, 2.0]}
    again = turn | {"axcodes": "SPL"}
    model = foreign.read(
        own_tasks.bundle(tmp_path / "spleen", turn, resample, again, own_tasks.WINDOW)
    )
    (channel,) = model.task.channels
    assert (model.task.name, model.task.classes) == ("spleen", ("background", "spleen"))
    assert (channel.name, channel.normalisation) == ("image", "ct")
    assert (model.modalities, model.head, model.order) == (("image",), "softmax", (0, 1))
    # 1.5 mm from left to right, 1 mm to the front, 2 mm upwards; then the axes are turned.
    assert (model.axes, model.spacing) == ("SPL", (2.0, 1.0, 1.5))
    assert "turns no scan" not in str(model.about["notes"])
    wanted = folders.random_params(own_tasks.SEGRESNET, 1)
    jax.tree.map(np.testing.assert_array_equal, model.members[0], wanted)


@pytest.mark.parametrize(("bottom", "top"), [(0.0, 1.0), (-1.0, 1.0), (0.25, 3.0)])
def test_a_range_is_scaled_as_by_monai(tmp_path, bottom, top) -> None:
    transforms = pytest.importorskip("monai.transforms")
    given = own_tasks.WINDOW | {"b_min": bottom, "b_max": top}
    (channel,) = foreign.read(own_tasks.bundle(tmp_path / "b", given)).task.channels
    low, high, mean, deviation = channel.statistics
    x = np.linspace(-200, 300, 41, dtype=np.float32)
    names = ("a_min", "a_max", "b_min", "b_max", "clip")
    theirs = transforms.ScaleIntensityRange(**{name: given[name] for name in names})(x)
    ours = (np.clip(x, low, high) - mean) / deviation
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (folders.normalise(), "zscore_nonzero"),
        (folders.normalise(nonzero=False), "zscore"),
        (folders.normalise(nonzero=False, channel_wise=False), "zscore"),
        ({"_target_": "ScaleIntensityd", "keys": "image"}, "rescale"),
    ],
)
def test_normalisations_of_bundles(tmp_path, transform, expected) -> None:
    model = foreign.read(own_tasks.bundle(tmp_path / "b", transform))
    assert "turns no scan" in str(model.about["notes"])
    (channel,) = model.task.channels
    assert (channel.normalisation, channel.statistics) == (expected, None)


def test_one_sigmoid_is_one_region(tmp_path) -> None:
    config = dataclasses.replace(own_tasks.SEGRESNET, out_channels=1)
    path = own_tasks.bundle(
        tmp_path / "b", own_tasks.WINDOW, config=config, outputs=("spleen",), post=own_tasks.SIGMOID
    )
    model = foreign.read(path)
    assert (model.task.classes, model.head) == (("background", "spleen"), "regions")
    assert heads.Head(model.task, model.head).outputs == ("spleen",)


@pytest.mark.parametrize(
    ("transforms", "changes", "message"),
    [
        ([own_tasks.WINDOW], {"post": []}, "have no Activationsd with softmax or sigmoid"),
        (
            [own_tasks.WINDOW],
            {"post": own_tasks.SIGMOID},
            "2 outputs with a sigmoid each .*which classes.*foreign.json",
        ),
        (
            [own_tasks.WINDOW],
            {"outputs": ("spleen", "background")},
            "begins with 'spleen'; expected the back",
        ),
        ([own_tasks.WINDOW], {"outputs": ("background", "ignore")}, "nothing but the background"),
        ([own_tasks.WINDOW | {"clip": False}], {}, "ScaleIntensityRanged is .*with clip=true"),
        ([own_tasks.WINDOW | {"b_max": None}], {}, "b_min and b_max as numbers"),
        ([own_tasks.WINDOW | {"a_max": -60}], {}, "a_min below a_max"),
        (
            [own_tasks.WINDOW, folders.normalise()],
            {},
            "NormalizeIntensityd comes after another normalis",
        ),
        ([folders.normalise(divisor=[2.0])], {}, "by the scan's own mean"),
        (
            [{"_target_": "ScaleIntensityd", "keys": "image", "minv": -1}],
            {},
            r"ScaleIntensityd is .*to 0\.\.1",
        ),
        (
            [folders.normalise(channel_wise=False)],
            {"channels": ("t2", "adc")},
            "only channel_wise=true",
        ),
        ([], {}, "has no NormalizeIntensityd or ScaleIntensityRanged or ScaleIntensityd"),
        ([own_tasks.WINDOW], {"channels": ("ct", "CT")}, "a name of its own for each channel"),
    ],
)
def test_bundles_that_do_not_say_enough(tmp_path, transforms, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        foreign.read(own_tasks.bundle(tmp_path / "b", *transforms, **changes))
