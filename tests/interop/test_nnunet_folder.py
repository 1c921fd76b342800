import json
import re
import shutil
import zipfile

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign
from kdnet_jax.runs.model import KnownCases
from tests.helpers import foreign_folders as folders


def test_a_folder_of_results(tmp_path) -> None:
    folder = folders.results(tmp_path, folds=(0, 1))
    model = foreign.read(folder)
    assert model.source == (
        "nnU-Net v2 results Dataset137_BraTS2021/nnUNetTrainer__nnUNetPlans__3d_fullres, folds 0, 1"
    )
    assert model.network == folders.PLAIN.__class__(**{**vars(folders.PLAIN), "bfloat16": None})
    assert (model.modalities, model.head) == (("t1", "t1ce", "t2", "flair"), "regions")
    assert model.order == (2, 1, 0)
    assert (model.axes, model.spacing, model.window) == ("SPL", 1.0, (8, 8, 16))
    assert (model.overlap, model.mirror, model.known) == (0.5, True, KnownCases())
    assert model.about["epochs"] == [1000, 1000]
    assert model.about["licence"] == "see the challenge"
    assert json.loads(json.dumps(model.about)) == model.about
    for seed, member in enumerate(model.members):
        wanted = folders.random_params(folders.PLAIN, 4, seed)
        jax.tree.map(np.testing.assert_array_equal, member, wanted)


def test_a_residual_encoder_and_the_best_checkpoint(tmp_path) -> None:
    folder = folders.results(tmp_path, folders.RESIDUAL, name="checkpoint_best.pth", folds=("all",))
    model = foreign.read(folder)
    assert type(model.network) is type(folders.RESIDUAL)
    assert list(model.about["sha256"]) == ["fold_all/checkpoint_best.pth"]


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_folder_above_with_one_choice(tmp_path, up) -> None:
    folder = folders.results(tmp_path / "nnUNet_results")
    path = [folder, *folder.parents][up]
    assert foreign.is_foreign(path)
    assert foreign.read(path).window == (8, 8, 16)


def test_copies_of_the_plans_beside_masks_are_no_choice(tmp_path) -> None:
    folder = folders.results(tmp_path / "nnUNet_results")
    masks = folder / "crossval_results_folds_0"
    masks.mkdir()
    for name in ("plans.json", "dataset.json"):
        shutil.copy(folder / name, masks / name)
    assert foreign.read(folder).window == (8, 8, 16)
    assert foreign.read(folder.parent).window == (8, 8, 16)


def test_several_choices_are_listed(tmp_path) -> None:
    folders.results(tmp_path)
    folders.results(tmp_path, configuration="3d_lowres")
    with pytest.raises(UserError, match=r"(?s)give one of.*3d_fullres\n.*3d_lowres"):
        foreign.read(tmp_path)


def test_folds_are_chosen_by_name(tmp_path) -> None:
    folder = folders.results(tmp_path, folds=(0, 1, "all"))
    assert len(foreign.read(folder).members) == 2  # "all" only where it is alone, or asked for
    chosen = foreign.read(folder, ("all", "fold_1"))
    assert chosen.source.endswith("folds all, 1")
    wanted = folders.random_params(folders.PLAIN, 4, 2)
    jax.tree.map(np.testing.assert_array_equal, chosen.members[0], wanted)
    with pytest.raises(UserError, match=r"no fold 3 .*there are 0, 1, all"):
        foreign.read(folder, ("3",))


def test_an_exported_zip(tmp_path) -> None:
    folder = folders.results(tmp_path / "results", folds=(0, 1))
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.rglob("*")):
            archive.write(each, each.relative_to(tmp_path / "results"))
        archive.writestr("Dataset137_BraTS2021/inference_information.json", "{}")
    assert foreign.is_foreign(path)
    found, wanted = foreign.read(path), foreign.read(folder)
    assert (found.source, found.about) == (wanted.source, wanted.about)
    jax.tree.map(np.testing.assert_array_equal, found.members, wanted.members)


def test_a_zip_of_several_configurations(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("3d_fullres", "3d_lowres"):
            for file in ("plans.json", "dataset.json"):
                archive.writestr(f"Dataset137_BraTS2021/a__b__{name}/{file}", "{}")
    with pytest.raises(UserError, match=r"unpack it, and give one of .*a__b__3d_lowres\.$"):
        foreign.read(tmp_path / "a.zip")


def test_a_zip_of_something_else(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("scan.nii", "x")
    with pytest.raises(UserError, match="nnUNetv2_export_model_to_zip"):
        foreign.read(tmp_path / "a.zip")


def test_plans_of_before_2_4(tmp_path) -> None:
    older = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 3,
        "n_conv_per_stage_encoder": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "num_pool_per_axis": [1, 2, 2],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    }
    config = type(folders.PLAIN)(**{**vars(folders.PLAIN), "features": (2, 3, 3)})
    changes = {"architecture": None, **older}
    folder = folders.results(tmp_path, config, plan_changes=changes)
    assert vars(foreign.read(folder).network) == {**vars(config), "bfloat16": None}


def test_a_configuration_that_inherits(tmp_path) -> None:
    plans = folders.plans(
        {
            "3d_fullres": folders.plan(),
            "big": {"inherits_from": "3d_fullres", "patch_size": [16, 16, 32]},
            "bigger": {"inherits_from": "big", "batch_size": 4},
        }
    )
    folder = folders.results(tmp_path, plans_json=plans, configuration="bigger")
    assert foreign.read(folder).window == (16, 16, 32)


def test_axes_in_another_order(tmp_path) -> None:
    """`transpose_forward` gives the reader's axes, S P L, in the network's order."""
    plans = folders.plans({"3d_fullres": folders.plan()}, transpose_forward=[2, 0, 1])
    assert foreign.read(folders.results(tmp_path, plans_json=plans)).axes == "LSP"
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    (tmp_path / "b").mkdir()
    assert foreign.read(folders.results(tmp_path / "b", plans_json=plans)).axes == "RSA"


def test_mirroring_along_some_axes_is_none_and_told(tmp_path) -> None:
    folder = folders.results(tmp_path, folds=())
    content = folders.checkpoint(folders.state(folders.PLAIN, 4), "3d_fullres", 0)
    path = folder / "fold_0" / "checkpoint_final.pth"
    for axes, mirror, told in (
        ((0, 1), False, True),
        (None, False, False),
        ((2, 1, 0), True, False),
    ):
        folders.save(path, content | {"inference_allowed_mirroring_axes": axes})
        model = foreign.read(folder)
        assert model.mirror is mirror
        assert ("mirrors along its axes [0, 1] only" in model.about["notes"][0]) is told


def test_known_cases(tmp_path) -> None:
    folder = folders.results(tmp_path, folds=(0, 1))
    # Validated cases may be some of the training's, whose numTraining is 4.
    for fold, names in ((0, "ab"), (1, "c")):
        cases = [{"prediction_file": f"/somewhere/validation/{name}.nii.gz"} for name in names]
        summary = folder / f"fold_{fold}" / "validation" / "summary.json"
        folders.write_json(summary, {"metric_per_case": cases})
    assert foreign.read(folder).known == KnownCases(("a", "b", "c"), False)
    folders.write_json(folder / "dataset.json", folders.dataset(numTraining=3))
    assert foreign.read(folder).known == KnownCases(("a", "b", "c"), True)
    listed = [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}]
    folders.write_json(folder / "dataset.json", folders.dataset(training=listed))
    assert foreign.read(folder).known == KnownCases(("BRATS_001",), True)
    splits = [{"train": ["p", "q"], "val": ["r"]}, {"train": ["r"], "val": ["s"]}]
    folders.write_json(folder.parent / "splits_final.json", splits)
    assert foreign.read(folder).known == KnownCases(("p", "q", "r", "s"), True)
    assert foreign.read(folder, ("0",)).known == KnownCases(("p", "q", "r"), True)
    folders.write_json(folder.parent / "splits_final.json", {"no": "splits"})
    with pytest.raises(UserError, match=r"splits_final\.json cannot be read"):
        foreign.read(folder)


# ------------------------------------------------------------------------------------- refusals

ARCHITECTURE = folders.plan()["architecture"]


def _changed(**changes: object) -> dict:
    arguments = ARCHITECTURE["arch_kwargs"] | changes
    return {"architecture": ARCHITECTURE | {"arch_kwargs": arguments}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [64, 64]}, "a 2D configuration"),
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"spacing": [3.0, 1.0]}, r"spacing is \[3.0, 1.0\]; expected the edge of a voxel"),
        ({"patch_size": [8, 8, 15]}, r"window is \(8, 8, 15\).*Write \(8, 8, 16\)"),
        (
            {"normalization_schemes": ["ZScoreNormalization"] * 3 + ["RGBTo01Normalization"]},
            "'RGBTo01Normalization'; only ZScoreNormalization, CTNormalization, ",
        ),
        (
            {"normalization_schemes": ["ZScoreNormalization"] * 3 + ["CTNormalization"]},
            "'foreground_intensity_properties_per_channel' is missing",
        ),
        ({"use_mask_for_norm": [True] * 3}, "use_mask_for_norm 3 values; expected .* 4 channels"),
        ({"use_mask_for_norm": [True, True, "no", True]}, "use_mask_for_norm is 'no'"),
        ({"architecture": ARCHITECTURE | {"network_class_name": "my.UMamba"}}, "'my.UMamba'; the"),
        (_changed(nonlin="torch.nn.ReLU"), "nonlin is 'torch.nn.ReLU'; only LeakyReLU"),
        (_changed(norm_op="torch.nn.BatchNorm3d"), "only InstanceNorm3d"),
        (_changed(dropout_op="torch.nn.Dropout3d"), "dropout_op is"),
        (_changed(attention=True), "'attention' not known"),
        (_changed(strides=[[1, 1], [2, 2], [2, 2]]), "strides is .*edges of three axes"),
        (_changed(strides=[2, 2, 2]), "strides that begin with 1"),
        (_changed(n_conv_per_stage=[2, 2]), "n_conv_per_stage is .*only 3 whole numbers"),
        (_changed(n_stages="three"), "n_stages is 'three'"),
        (_changed(features_per_stage=[2, 3, 5]), r"fold_0.*have the shape"),
        (_changed(n_conv_per_stage=[1, 2, 2]), r"fold_0.*lack "),
    ],
)
def test_plans_that_cannot_be_taken(tmp_path, changes, message) -> None:
    folder = folders.results(tmp_path, plan_changes=changes)
    with pytest.raises(UserError, match=message) as caught:
        foreign.read(folder)
    assert str(folder) in str(caught.value) or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {"0": "T1", "1": "T1", "2": "T2", "3": "Flair"}}, "'channel_names' are"),
        ({"channel_names": {"0": "MRI", "1": "MRI 2"}}, "2 values; expected|4 values; expected"),
        ({"channel_names": {"1": "T1", "2": "T1ce"}}, 'expected {"0": "name"'),
        # The network has three outputs.
        ({"labels": {"background": 0, "liver": 1, "tumour": 2, "vessel": 3}}, "expected .4, 3"),
        ({"labels": {"liver": 1, "tumour": 2}}, "'labels' has no 'background'"),
        ({"labels": folders.REGIONS | {"oedema": 5}}, "'regions_class_order' is"),
        ({"labels": folders.REGIONS | {"tumor core": [1, 2]}}, "contradict the names"),
    ],
)
def test_datasets_that_cannot_be_taken(tmp_path, changes, message) -> None:
    folder = folders.results(tmp_path, dataset_json=folders.dataset(**changes))
    with pytest.raises(UserError, match=message):
        foreign.read(folder)


def test_other_refusals(tmp_path) -> None:
    plans = folders.plans({"3d_fullres": folders.plan()}, image_reader_writer="Tiff3DIO")
    folder = folders.results(tmp_path, plans_json=plans)
    with pytest.raises(UserError, match="image_reader_writer is 'Tiff3DIO'"):
        foreign.read(folder)
    loop = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
    for plans, configuration, message in (
        (folders.plans({"other": folders.plan()}), "3d_fullres", "'3d_fullres' is missing"),
        (folders.plans(loop), "a", "'a' is its own heir"),
    ):
        where = tmp_path / configuration
        folder = folders.results(where, plans_json=plans, configuration=configuration)
        with pytest.raises(UserError, match=message):
            foreign.read(folder)
    (folder / "plans.json").write_text("{")
    with pytest.raises(UserError, match=r"plans\.json cannot be read as JSON"):
        foreign.read(folder)
    folders.save(folder / "fold_0" / "checkpoint_final.pth", {"model": {}})
    with pytest.raises(UserError, match="no checkpoint of nnU-Net v2"):
        foreign.read(folder)
    empty = folders.results(tmp_path / "empty", folds=())
    with pytest.raises(UserError, match=r"no fold with a checkpoint_final\.pth or"):
        foreign.read(empty)


def test_what_is_no_model_is_not_foreign(tmp_path) -> None:
    run = tmp_path / "run"
    folders.write_json(run / "config.json", {})
    (run / "checkpoints").mkdir()
    (run / "left_here.pt").write_bytes(b"")  # somebody's weights in a run
    for path in (run, run / "config.json", tmp_path, tmp_path / "missing"):
        assert not foreign.is_foreign(path)
        with pytest.raises(UserError, match=re.escape(str(path))):
            foreign.read(path)
