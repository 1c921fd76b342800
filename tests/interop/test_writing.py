import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from kdnet_jax import conventions
from kdnet_jax.errors import UserError
from kdnet_jax.interop import foreign, writing
from kdnet_jax.models import unet
from tests.helpers import foreign_folders as folders

USE = {
    "modalities": ("t1ce",),
    "head": "regions",
    "order": (0, 1, 2),
    "axes": "SPL",
    "spacing": 1.0,
    "window": (16, 16, 16),
    "overlap": 0.5,
    "mirror": True,
    "known_cases": ("c1", "c2"),
    "about": {"licence": "Apache-2.0"},
}
RESULTS = "nnUNet_results/Dataset999_KDNet/nnUNetTrainer__nnUNetPlans__3d_fullres"
NETWORKS = (folders.PLAIN, folders.RESIDUAL, folders.DYNUNET, folders.SEGRESNET)


def write(folder, config, members=1, **changes: object) -> list[str]:
    use = USE | changes
    channels = len(use["modalities"])
    params = [folders.random_params(config, channels, seed) for seed in range(members)]
    return writing.write(folder, config, params, **use)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("members", [1, 2])
def test_what_is_written_is_read_again(tmp_path, config, members) -> None:
    order, axes = (2, 0, 1), "RAS"
    write(tmp_path, config, members, order=order, axes=axes, modalities=("flair", "t1"))
    model = foreign.read(tmp_path)
    assert vars(model.network) == {**vars(config), "bfloat16": None}
    assert (model.modalities, model.head, model.order) == (("flair", "t1"), "regions", order)
    assert (model.axes, model.spacing, model.window) == (axes, 1.0, (16, 16, 16))
    assert (model.overlap, model.mirror, model.known_cases) == (0.5, True, ("c1", "c2"))
    for seed, member in enumerate(model.members):
        wanted = folders.random_params(config, 2, seed)
        jax.tree.map(np.testing.assert_array_equal, member, wanted)


@pytest.mark.parametrize("head", ["regions", "softmax"])
@pytest.mark.parametrize("axes", ["SPL", "LSP"])
def test_nnunets_folder_says_the_same(tmp_path, head, axes) -> None:
    """Each of our outputs is the same function of the input, whatever nnU-Net's order of them."""
    outputs = conventions.REGIONS if head == "regions" else conventions.CLASSES
    config = type(folders.PLAIN)(**{**vars(folders.PLAIN), "out_channels": len(outputs)})
    order = tuple(reversed(range(len(outputs))))
    said = write(tmp_path, config, 2, head=head, axes=axes, order=order)
    assert said[-1] == f"{RESULTS}: for nnUNetv2_predict"
    model = foreign.read(tmp_path / "nnUNet_results")
    assert (model.head, model.axes, model.spacing) == (head, axes, 1.0)
    assert (model.window, model.mirror) == ((16, 16, 16), True)
    assert (model.modalities, model.known_cases) == (("t1ce",), ("c1", "c2"))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    for seed, member in enumerate(model.members):
        theirs = folders.answer(model.network, member, x)[..., list(model.order)]
        params = folders.random_params(config, 1, seed)
        ours = folders.answer(config, params, x)[..., list(order)]
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_regions_are_painted_by_nnunet_as_here(tmp_path) -> None:
    """A voxel of all regions is ET (3), of core and whole NCR (1), of the whole alone ED (2)."""
    write(tmp_path, folders.PLAIN)
    dataset = json.loads((tmp_path / RESULTS / "dataset.json").read_text())
    regions = [v for k, v in dataset["labels"].items() if k != "background"]
    painted = {}
    for value in (1, 2, 3):
        for region, number in zip(regions, dataset["regions_class_order"], strict=True):
            if value in region:
                painted[value] = number
    assert painted == {1: 1, 2: 2, 3: 3}


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


def test_the_projects_own_network_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no class in nnU-Net or MONAI"):
        writing.check(unet.UNetConfig())
