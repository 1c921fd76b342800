import dataclasses
import json
import pydoc

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign, writing
from kdnet_jax.models import heads, unet
from kdnet_jax.runs import model
from tests.helpers import foreign_folders as folders

KNOWN = folders.model_of(folders.PLAIN).known
RESULTS = "nnUNet_results/Dataset999_KDNet/nnUNetTrainer__nnUNetPlans__3d_fullres"
NETWORKS = (folders.PLAIN, folders.RESIDUAL, folders.DYNUNET, folders.SEGRESNET)


def write(folder, config, members=1, **changes: object) -> list[str]:
    return writing.write(folder, folders.model_of(config, members, **changes))


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("members", [1, 2])
def test_what_is_written_is_read_again(tmp_path, config, members) -> None:
    order, axes = (2, 0, 1), "RAS"
    write(tmp_path, config, members, order=order, axes=axes, modalities=("flair", "t1"))
    found = foreign.read(tmp_path)
    assert vars(found.network) == {**vars(config), "bfloat16": None}
    assert (found.modalities, found.head, found.order) == (("flair", "t1"), "regions", order)
    assert (found.axes, found.spacing, found.window) == (axes, 1.0, (16, 16, 16))
    assert (found.overlap, found.mirror, found.known) == (0.5, True, KNOWN)
    assert found.about["licence"] == "Apache-2.0"
    for seed, member in enumerate(found.members):
        wanted = folders.random_params(config, 2, seed)
        jax.tree.map(np.testing.assert_array_equal, member, wanted)


@pytest.mark.parametrize("head", ["regions", "softmax"])
@pytest.mark.parametrize("axes", ["SPL", "LSP"])
def test_nnunets_folder_says_the_same(tmp_path, head, axes) -> None:
    """Each of our outputs is the same function of the input, whatever nnU-Net's order of them."""
    outputs = heads.Head(task_lib.GLIOMA, head).outputs
    config = type(folders.PLAIN)(**{**vars(folders.PLAIN), "out_channels": len(outputs)})
    order = tuple(reversed(range(len(outputs))))
    said = write(tmp_path, config, 2, head=head, axes=axes, order=order)
    assert said[-1] == f"{RESULTS}: for nnUNetv2_predict"
    found = foreign.read(tmp_path / "nnUNet_results")
    assert (found.head, found.axes, found.spacing) == (head, axes, 1.0)
    assert (found.window, found.mirror) == ((16, 16, 16), True)
    assert (found.modalities, found.known) == (("t1ce",), KNOWN)
    assert found.about["licence"] == "Apache-2.0"
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    for seed, member in enumerate(found.members):
        theirs = folders.answer(found.network, member, x)[..., list(found.order)]
        params = folders.random_params(config, 1, seed)
        ours = folders.answer(config, params, x)[..., list(order)]
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_regions_are_painted_by_nnunet_as_here(tmp_path) -> None:
    """A voxel of all regions is ET (3), of core and whole NCR (1), of the whole alone ED (2)."""
    write(tmp_path, folders.PLAIN)
    dataset = json.loads((tmp_path / RESULTS / "dataset.json").read_text())
    regions = [np.atleast_1d(v) for k, v in dataset["labels"].items() if k != "background"]
    painted = {}
    for value in (1, 2, 3):
        for region, number in zip(regions, dataset["regions_class_order"], strict=True):
            if value in region:
                painted[value] = number
    assert painted == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
def test_pytorch_s_own_class_takes_what_is_written(tmp_path, config) -> None:
    """As the documents say; the class answers with one volume, deep supervision or not."""
    pytest.importorskip("monai")
    pytest.importorskip("dynamic_network_architectures")
    deep = {"deep_supervision": True} if hasattr(config, "deep_supervision") else {}
    write(tmp_path, dataclasses.replace(config, **deep))
    about = json.loads((tmp_path / "foreign.json").read_text())
    layers = ("conv_op", "norm_op", "nonlin")
    arguments = {
        name: pydoc.locate(value) if name in layers else value
        for name, value in about["arguments"].items()
    }
    network = pydoc.locate(about["class"])(**arguments)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 16, 1)).astype(np.float32)
    ours = folders.answer(config, folders.random_params(config, 1), x)
    np.testing.assert_allclose(
        folders.answer_of_torch(network, x), ours, atol=1e-5 * np.abs(ours).max()
    )


@pytest.mark.parametrize("known", [model.KnownCases(), model.KnownCases(("c1",), complete=False)])
def test_cases_of_which_some_are_unknown_stay_so(tmp_path, known) -> None:
    write(tmp_path, folders.PLAIN, known=known)
    assert foreign.read(tmp_path).known == known
    assert not foreign.read(tmp_path / "nnUNet_results").known.complete


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"spacing": None}, "to one voxel size"), ({"axes": "RAS"}, "turns them to RAS")],
)
def test_what_nnunet_cannot_say_is_told(tmp_path, changes, reason) -> None:
    said = write(tmp_path, folders.PLAIN, **changes)
    assert reason in said[-1]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["foreign.json", "model.pt"]


def test_monais_networks_have_no_folder_of_nnunet(tmp_path) -> None:
    said = write(tmp_path, folders.SEGRESNET)
    assert said == ["model.pt, foreign.json: weights for monai.networks.nets.SegResNet"]


def test_the_projects_own_network_is_refused() -> None:
    with pytest.raises(UserError, match="no class in nnU-Net or MONAI"):
        writing.check(unet.UNetConfig())
