"""Every value of the files of other tools replaced by wrong ones: refused in words, or taken."""

import dataclasses
import pathlib

import pytest

pytest.importorskip("torch")

from kdnet_jax import dataset_json
from kdnet_jax.interop import described_weights, foreign, nnunet_plans
from kdnet_jax.runs import model
from tests.helpers import foreign_folders as folders
from tests.helpers import own_tasks, wrong_values

pytestmark = pytest.mark.once

# As plans of before nnU-Net 2.4 have it.
_OLDER = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 16,
    "n_conv_per_stage_encoder": [1, 1],
    "n_conv_per_stage_decoder": [1],
    "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_of_nnunet(tmp_path: pathlib.Path, older: bool, name: str) -> None:
    plan = folders.plan()
    if older:
        del plan["architecture"]
        plan |= _OLDER
    plans = folders.plans({"base": plan, "3d_fullres": {"inherits_from": "base"}})
    folder = folders.results(tmp_path, plans_json=plans, folds=())
    wrong_values.try_all(folder / name, lambda: nnunet_plans.read(folder, "3d_fullres"))


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_of_nnunet_s_of_another_task(tmp_path: pathlib.Path, name: str) -> None:
    """Also what this project adds to a dataset.json."""
    document = dataset_json.describe(own_tasks.REGIONS)
    plan = folders.plan(channels=3) | {
        "normalization_schemes": [*("CTNormalization", "NoNormalization", "ZScoreNormalization")],
        "use_mask_for_norm": [False, False, True],
    }
    properties = {"0": own_tasks.properties()["1"]}
    plans = own_tasks.plans(plan, foreground_intensity_properties_per_channel=properties)
    folder = folders.results(tmp_path, plans_json=plans, dataset_json=document, folds=())
    wrong_values.try_all(folder / name, lambda: nnunet_plans.read(folder, "3d_fullres"))


@pytest.mark.parametrize("name", ["metadata.json", "inference.json"])
def test_of_monai(tmp_path: pathlib.Path, name: str) -> None:
    bundle = folders.bundle(tmp_path / "b")
    wrong_values.try_all(bundle / "configs" / name, lambda: foreign.read(bundle))


@pytest.mark.parametrize("name", ["metadata.json", "inference.json"])
def test_of_monai_s_of_another_task(tmp_path: pathlib.Path, name: str) -> None:
    resample = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0]}
    bundle = own_tasks.bundle(tmp_path / "b", resample, own_tasks.WINDOW)
    keys = frozenset({"network_data_format", "preprocessing", "postprocessing"})
    wrong_values.try_all(bundle / "configs" / name, lambda: foreign.read(bundle), keys)


def test_of_described_weights(tmp_path: pathlib.Path) -> None:
    bundle = folders.bundle(tmp_path / "b")
    file = bundle / "models" / described_weights.FILE
    given = dataclasses.replace(foreign.read(bundle), known=model.KnownCases(("a",), True))
    text = described_weights.describe(given)
    file.write_text(text, "utf-8")
    wrong_values.try_all(file, lambda: foreign.read(file.parent))


def test_of_a_described_task(tmp_path: pathlib.Path) -> None:
    network = folders.SEGRESNET
    given = folders.model_of(network, task=own_tasks.REGIONS, modalities=("a", "b", "c"))
    folders.save(tmp_path / "model.pt", folders.state(network, 3))
    file = tmp_path / described_weights.FILE
    file.write_text(described_weights.describe(given), "utf-8")
    keys = frozenset({"task", "channels", "outputs"})
    wrong_values.try_all(file, lambda: foreign.read(tmp_path), keys)
