"""Bundles that MONAI's own parser and savers read and write, and students for its own classes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

import torch
from monai import bundle, transforms

from kdnet_jax.data.scans import prepare
from kdnet_jax.interop import foreign
from kdnet_jax.models import adapted
from tests.helpers import foreign_folders as folders
from tests.helpers import tiny_cases

NETWORKS = [folders.SEGRESNET, folders.DYNUNET]


@pytest.mark.parametrize("config", NETWORKS, ids=["segresnet", "dynunet"])
def test_what_a_bundle_trains_predicts_the_same(tmp_path, config) -> None:
    """The network is MONAI's, made of the bundle's config by MONAI's parser."""
    path = folders.bundle(tmp_path / "b", config)
    parser = bundle.ConfigParser()
    parser.read_config(str(path / "configs" / "inference.json"))
    torch.manual_seed(1)
    network = parser.get_parsed_content("network_def")
    torch.save({"model": network.state_dict()}, path / "models" / "model.pt")
    model = foreign.read(path)
    x = np.random.default_rng(0).normal(size=(2, 16, 8, 16, 4)).astype(np.float32)
    found = folders.answer(model.network, model.members[0], x)
    np.testing.assert_allclose(found, folders.answer_of_torch(network, x), atol=1e-4)


@pytest.mark.parametrize("axcodes", [None, "RAS", "PIR"])
def test_it_sees_what_monai_sees(tmp_path, axcodes) -> None:
    """A scan through the bundle's transforms and through ours, then the network, agree."""
    case = tiny_cases.write_case(tmp_path / "cohort", 3, edge=24, spacing=1.0, radius=6.0)
    names = {m: case / f"{case.name}_{m}.nii.gz" for m in ("t1", "t1ce", "t2", "flair")}
    turn = {"_target_": "Orientationd", "keys": "image", "axcodes": axcodes}
    chain = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([turn] if axcodes else []),
        folders.normalise(),
    ]
    preprocessing = {"_target_": "Compose", "transforms": chain}
    made = folders.inference(folders.network_def(), preprocessing=preprocessing)
    path = folders.bundle(tmp_path / "b", inference_json=made)
    model = foreign.read(path)
    parser = bundle.ConfigParser(json.loads((path / "configs" / "inference.json").read_text()))
    preprocess: transforms.Compose = parser.get_parsed_content("preprocessing")
    files = [str(names[modality]) for modality in model.modalities]
    theirs = np.asarray(preprocess({"image": files})["image"]).transpose(1, 2, 3, 0)

    prepared, _ = prepare.prepare_case(prepare.unlabelled_case(names), spacing=model.spacing)
    ours = np.asarray(prepared.image, np.float32)
    channels = [prepared.modalities.index(name) for name in model.modalities]
    # A network that returns its input, in place of the bundle's: what it is shown.
    shown = []

    @dataclasses.dataclass(frozen=True)
    class Eye(type(model.network)):
        def module(self):  # noqa: ANN202
            class Look(adapted.nn.Module):
                def __call__(self, x: jax.Array) -> tuple[jax.Array, dict]:
                    shown.append(np.asarray(x[0]))
                    return x[..., :3], {}

            return Look()

    eye = Eye(**vars(model.network))
    config = adapted.AdaptedConfig(eye, model.head, model.order, model.axes)
    config.module().apply({"params": {}}, jnp.asarray(ours[None][..., channels]))
    # The brain's box: ours is cropped to it.
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(np.any(theirs != 0, axis=-1)))
    own = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(np.any(shown[0] != 0, axis=-1)))
    np.testing.assert_allclose(shown[0][own], theirs[box], atol=5e-3)  # ours is float16
