"""Every value of `model.json` replaced by wrong ones: refused in words, or taken."""

import pathlib

import jax
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.core import files
from kdnet_jax.models import networks, unet
from kdnet_jax.runs import calibration, model_folder, trained
from kdnet_jax.runs import model as model_lib
from tests.helpers import wrong_values

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", ["unet", "plain_conv_unet", "dynunet", "segresnet"])
def test_a_damaged_document_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    network = unet.UNetConfig(widths=(8, 16, 32))
    if name != networks.UNET:
        network = networks.of_family(name, network)
    model = model_lib.Model(
        task_lib.GLIOMA,
        "student",
        network,
        ("t2",),
        1.5,
        (8, 16, 24),
        orientation="LPS",
        calibration=calibration.Calibration(
            1.25, (0.0, 0.5, -0.5, 0.0), (calibration.VolumeError(-0.5, 0.75, 5),) * 3
        ),
    )
    params = networks.init_params(network, 1, jax.random.key(0))
    folder = tmp_path / "model"
    with files.new_folder(folder) as beside:
        model_folder.fill(
            beside, model, params, step=7, known=model_lib.KnownCases(("a",), True), about={}
        )

    shapes = {}

    def read() -> None:
        found = model_folder.read(folder).model
        if (found.network, len(found.modalities)) not in shapes:
            shapes[found.network, len(found.modalities)] = trained.expected_params(found)

    keys = frozenset(
        {
            "format",
            "version",
            "known_cases",
            "known_cases_complete",
            "step",
            *model_lib.to_json(model),
        }
    )
    wrong_values.try_all(folder / model_folder.FILE, read, keys)
