import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign
from kdnet_jax.runs.model import KnownCases
from tests.helpers import foreign_folders as folders

DEFINITION = folders.network_def()


def _transforms(*before: dict, normalise: dict | None = None) -> dict:
    """Returns inference.json with these transforms before the normalisation."""
    chain = [{"_target_": "LoadImaged", "keys": ["image"]}, *before]
    chain += [folders.normalise() if normalise is None else normalise]
    preprocessing = {"_target_": "Compose", "transforms": chain}
    return folders.inference(DEFINITION, preprocessing=preprocessing)


def test_the_bundle_of_the_model_zoo(tmp_path) -> None:
    """As brats_mri_segmentation: channels T1c T1 T2 FLAIR, outputs TC WT ET."""
    path = folders.bundle(tmp_path / "brats_mri_segmentation")
    assert foreign.is_foreign(path)
    model = foreign.read(path)
    assert model.source == "MONAI bundle brats_mri_segmentation 0.5.3"
    assert vars(model.network) == {**vars(folders.SEGRESNET), "bfloat16": None}
    assert model.modalities == ("t1ce", "t1", "t2", "flair")
    assert (model.head, model.order) == ("regions", (2, 0, 1))
    assert (model.axes, model.spacing) == ("LPS", None)
    assert (model.window, model.overlap, model.mirror) == ((16, 16, 8), 0.5, False)
    assert model.known == KnownCases()
    assert model.about["monai_version"] == "1.4.0"
    wanted = folders.random_params(folders.SEGRESNET, 4)
    jax.tree.map(np.testing.assert_array_equal, model.members[0], wanted)


def test_a_dynunet_with_orientation_and_spacing(tmp_path) -> None:
    made = _transforms(
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": ["image", "label"], "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
        {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"},
    )
    made["network_def"] = folders.network_def(folders.DYNUNET)
    model = foreign.read(folders.bundle(tmp_path / "b", folders.DYNUNET, inference_json=made))
    assert vars(model.network) == {**vars(folders.DYNUNET), "bfloat16": None}
    assert (model.axes, model.spacing) == ("RAS", 1.0)


def test_a_reader_that_turns_to_ras(tmp_path) -> None:
    made = _transforms({"_target_": "LoadImaged", "keys": "image", "as_closest_canonical": True})
    assert foreign.read(folders.bundle(tmp_path / "b", inference_json=made)).axes == "RAS"


def test_defaults_are_monais(tmp_path) -> None:
    """SegResNet(in_channels=4, out_channels=3, init_filters=8) and no more."""
    made = folders.inference(
        {
            "_target_": "monai.networks.nets.SegResNet",
            "_requires_": "@imports",
            "in_channels": 4,
            "out_channels": 3,
            "init_filters": 8,
            "dropout_prob": 0.2,
        }
    )
    config = type(folders.SEGRESNET)(init_filters=8, out_channels=3)
    model = foreign.read(folders.bundle(tmp_path / "b", config, inference_json=made))
    assert vars(model.network) == vars(config)


def test_references_and_literals_are_resolved(tmp_path) -> None:
    made = folders.inference(
        DEFINITION
        | {
            "in_channels": "@channels",
            "out_channels": "$@shape::outputs",
            "blocks_down": "$(1, 2)",
            "blocks_up": ["@shape#up#0"],
        },
        channels="@shape::inputs",
        shape={"inputs": 4, "outputs": 3, "up": [1]},
    )
    model = foreign.read(folders.bundle(tmp_path / "b", inference_json=made))
    assert vars(model.network) == {**vars(folders.SEGRESNET), "bfloat16": None}


@pytest.mark.parametrize("chain", ["@chain", "@parts#chain"])
def test_a_chain_that_is_referred_to_is_read(tmp_path, chain) -> None:
    """Not the training's, which has another orientation."""
    transforms = [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "@axcodes"},
        folders.normalise(),
    ]
    made = folders.inference(
        DEFINITION,
        preprocessing={"_target_": "Compose", "transforms": chain},
        chain=transforms,
        parts={"chain": transforms},
        axcodes="SPL",
    )
    path = folders.bundle(tmp_path / "b", inference_json=made)
    train = {"preprocessing": _transforms()["preprocessing"]}
    folders.write_json(path / "configs" / "train.json", train)
    assert foreign.read(path).axes == "SPL"


def test_what_is_off_is_left_out(tmp_path) -> None:
    off = {"_disabled_": True}
    made = _transforms(
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL", "_disabled_": "True"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "_disabled_": False},
    )
    window = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25}
    made["inferer"] = [window | off, window | {"overlap": 0.5}]
    made["postprocessing"] = {"parts": [{"_target_": "Activationsd", "softmax": True}], **off}
    made["postprocessing"]["_target_"] = "Compose"
    model = foreign.read(folders.bundle(tmp_path / "b", inference_json=made))
    assert (model.axes, model.overlap) == ("RAS", 0.5)


def test_training_configs_serve_where_there_is_no_inference(tmp_path) -> None:
    path = folders.bundle(tmp_path / "b")
    (path / "configs" / "inference.json").unlink()
    chain = [
        {"_target_": "LoadImaged", "keys": ["image", "label"]},
        {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"},
        folders.normalise(),
    ]
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 16], "overlap": 0.25}
    random = {"_target_": "RandFlipd", "keys": ["image", "label"]}
    train = {
        "network_def": DEFINITION,
        "train": {
            "preprocessing_transforms": chain,
            "random_transforms": [random],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#preprocessing_transforms + @train#random_transforms",
            },
        },
        "validate": {"inferer": inferer},
    }
    folders.write_json(path / "configs" / "train.json", train)
    model = foreign.read(path)
    assert (model.window, model.overlap) == ((32, 32, 16), 0.25)


@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_weights_as_monais_saver_leaves_them(tmp_path, wrapped) -> None:
    path = folders.bundle(tmp_path / "b")
    state = {f"module.{k}": v for k, v in folders.state(folders.SEGRESNET, 4, 5).items()}
    folders.save(path / "models" / "model.pt", state if wrapped is None else {wrapped: state})
    wanted = folders.random_params(folders.SEGRESNET, 4, 5)
    jax.tree.map(np.testing.assert_array_equal, foreign.read(path).members[0], wanted)


def test_several_bundles_are_folds(tmp_path) -> None:
    for seed, name in enumerate(("first", "second")):
        folders.bundle(tmp_path / name, seed=seed)
    model = foreign.read(tmp_path)
    assert len(model.members) == 2
    assert list(model.about["folds"]) == ["first", "second"]
    only = foreign.read(tmp_path, ("second",))
    jax.tree.map(np.testing.assert_array_equal, only.members[0], model.members[1])
    with pytest.raises(UserError, match="no bundle third; there are first, second"):
        foreign.read(tmp_path, ("third",))


def test_bundles_that_differ_are_not_folds(tmp_path) -> None:
    folders.bundle(tmp_path / "first")
    inputs = {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}
    folders.bundle(tmp_path / "second", metadata_json=folders.metadata(inputs=inputs))
    with pytest.raises(UserError, match=r"first and second cannot be averaged.*modalities"):
        foreign.read(tmp_path)


def test_several_weights_of_one_bundle_are_folds(tmp_path) -> None:
    path = folders.bundle(tmp_path / "b")
    for seed in (1, 2):
        state = folders.state(folders.SEGRESNET, 4, seed)
        folders.save(path / "models" / f"fold{seed}.pt", state)
    assert list(foreign.read(path).about["sha256"]) == ["model.pt"]
    assert list(foreign.read(path, ("fold2", "fold1.pt")).about["sha256"]) == [
        "fold2.pt",
        "fold1.pt",
    ]
    (path / "models" / "model.pt").unlink()
    assert len(foreign.read(path).members) == 2


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_target_": "scripts.networks.SegResNet"}, "'scripts.networks.SegResNet'; the networks"),
        ({"_target_": "SwinUNETR"}, "networks that can be read are DynUNet"),
        ({"_target_": "SegResNetVAE"}, "did you mean 'SegResNet'"),
        ({"_target_": "$monai.networks.nets.SegResNet"}, "an expression"),
        ({"in_channels": "$len(@names)"}, r"in_channels is '\$len\(@names\)', an expression"),
        ({"in_channels": "$__import__('os').mkdir('CANARY')"}, "No code of a bundle is run"),
        ({"in_channels": "@missing"}, "'@missing', which inference.json does not have"),
        ({"in_channels": 3}, "3 input and 3 output channels, but the metadata name 4 and 3"),
        ({"upsample_mode": "pixelshuffle"}, "upsample_mode is 'pixelshuffle'"),
        ({"spatial_dims": 2}, "spatial_dims is 2"),
        ({"act": "PRELU"}, "act is 'prelu'"),
        ({"norm": "BATCH"}, "norm is 'batch'"),
        ({"use_conv_final": False}, "use_conv_final is False"),
        ({"attention": True}, "'attention' not known"),
        ({"blocks_down": [1, 2, 2]}, "blocks_up is"),
        ({"_disabled_": True}, "no definition of a network"),
    ],
)
def test_networks_that_cannot_be_taken(tmp_path, monkeypatch, changes, message) -> None:
    monkeypatch.chdir(tmp_path)
    made = folders.inference(DEFINITION | changes)
    with pytest.raises(UserError, match=message) as caught:
        foreign.read(folders.bundle(tmp_path / "b", inference_json=made))
    assert "inference.json" in str(caught.value)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_name": "batch"}, "norm_name is 'batch'"),
        ({"act_name": "prelu"}, "act_name is 'prelu'"),
        ({"strides": [2, 2, 2]}, "strides that begin with 1"),
        ({"kernel_size": [3, 3]}, "kernel_size is"),
        ({"filters": [8, 16, 32]}, r"model\.pt.*have the shape"),
    ],
)
def test_dynunets_that_cannot_be_taken(tmp_path, changes, message) -> None:
    made = folders.inference(folders.network_def(folders.DYNUNET) | changes)
    with pytest.raises(UserError, match=message):
        foreign.read(folders.bundle(tmp_path / "b", folders.DYNUNET, inference_json=made))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (_transforms(normalise=folders.normalise(nonzero=False)), "only nonzero=true"),
        (_transforms(normalise=folders.normalise(channel_wise=False)), "only nonzero=true"),
        (_transforms(normalise=folders.normalise(divisor=[1.0])), "only nonzero=true"),
        (_transforms(normalise={"_target_": "EnsureTyped", "keys": "image"}), "has no Normalize"),
        (
            _transforms({"_target_": "ScaleIntensityd", "keys": "image"}),
            "ScaleIntensityd, which has no counterpart",
        ),
        (_transforms({"_target_": "Lambdad", "keys": "image", "func": "$f"}), "is Lambdad, which"),
        (
            _transforms({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, -1]}),
            "edge of a voxel",
        ),
        (
            _transforms({"_target_": "Orientationd", "keys": "image", "axcodes": "RAX"}),
            "axcodes is 'RAX'",
        ),
        (
            _transforms({"_target_": "Orientationd", "keys": "image", "_disabled_": "$not @turn"}),
            "Orientationd has _disabled_ '[$]not @turn'; expected true or false",
        ),
        (
            folders.inference(
                DEFINITION,
                inferer={"_target_": "SlidingWindowInferer", "roi_size": 8, "_disabled_": "@a"},
            ),
            "SlidingWindowInferer has _disabled_ '@a'; expected true or false",
        ),
        (folders.inference(DEFINITION, preprocessing=None), "lists the transforms"),
        (folders.inference(DEFINITION, inferer=None), "no SlidingWindowInferer"),
        (
            folders.inference(
                DEFINITION, inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16]}
            ),
            "three positive whole numbers",
        ),
        (
            folders.inference(
                DEFINITION, postprocessing=[{"_target_": "Activationsd", "softmax": True}]
            ),
            "whose activation is a sigmoid, but .* has a softmax",
        ),
    ],
)
def test_configs_that_cannot_be_taken(tmp_path, made, message) -> None:
    with pytest.raises(UserError, match=message):
        foreign.read(folders.bundle(tmp_path / "b", inference_json=made))


def test_metadata_that_cannot_be_taken(tmp_path) -> None:
    swapped = {"0": "Enhancing tumor", "1": "Whole tumor", "2": "Tumor core"}
    to_regions = {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"}
    for metadata, message in (
        (folders.metadata(outputs=swapped), "contradicts .*tumor core, whole tumor"),
        (folders.metadata(outputs={"0": "liver"}), "'liver': expected the regions"),
        (folders.metadata(inputs={"0": "CT"}), "'CT' is none"),
        (folders.metadata(inputs=None), "channel_def is None"),
        ({"version": "1"}, "'network_data_format' is missing"),
    ):
        made = _transforms(to_regions)
        with pytest.raises(UserError, match=message):
            foreign.read(
                folders.bundle(tmp_path / "b", inference_json=made, metadata_json=metadata)
            )


def test_weights_that_cannot_be_taken(tmp_path) -> None:
    path = folders.bundle(tmp_path / "b")
    (path / "models" / "model.pt").unlink()
    torch.jit.script(torch.nn.ReLU()).save(str(path / "models" / "model.ts"))
    with pytest.raises(UserError, match=r"no model\.pt .*model\.ts is TorchScript"):
        foreign.read(path)
    with pytest.raises(UserError, match=r"model\.pt beside it"):
        foreign.read(path / "models" / "model.ts")
    (path / "configs" / "inference.json").unlink()
    with pytest.raises(UserError, match=r"'network_def' .*YAML"):
        foreign.read(path)
