"""Every value of the files of other tools replaced by wrong ones: refused in words, or taken."""

import dataclasses
import pathlib

import pytest

pytest.importorskip("torch")

from kdnet_jax import model
from kdnet_jax.interop import described_weights, foreign, nnunet_plans
from tests.helpers import foreign_folders as folders
from tests.helpers import wrong_values

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


@pytest.mark.parametrize("name", ["metadata.json", "inference.json"])
def test_of_monai(tmp_path: pathlib.Path, name: str) -> None:
    bundle = folders.bundle(tmp_path / "b")
    wrong_values.try_all(bundle / "configs" / name, lambda: foreign.read(bundle))


def test_of_described_weights(tmp_path: pathlib.Path) -> None:
    bundle = folders.bundle(tmp_path / "b")
    file = bundle / "models" / described_weights.FILE
    given = dataclasses.replace(foreign.read(bundle), known=model.KnownCases(("a",), True))
    text = described_weights.describe(given)
    file.write_text(text, "utf-8")
    wrong_values.try_all(file, lambda: foreign.read(file.parent))
