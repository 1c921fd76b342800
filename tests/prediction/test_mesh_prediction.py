"""Prediction on four devices: windows and whole scans as one device answers, and nothing gathered.

The device count is fixed when JAX starts, so this file runs itself as a script in a process with
four: `python test_mesh_prediction.py OUTPUT.npz`.
"""

import json
import os
import sys
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import collectives
from configs import common
from kdnet_jax import task as task_lib
from kdnet_jax.config import reading
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import inference, predictors
from kdnet_jax.runs import model
from tests.helpers import commands

# Neither is a multiple of anything.
SCAN = (21, 18, 15)
# A case, the answer of one device, and that of four.
CASES = ("windows", "windows of a split depth", "whole")


def answers(space: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of one device and of all, as a run's validation computes them."""
    config = common.base_config("baseline", "smoke")
    config.inference.update(patch=(16, 16, 16), mirror=True, whole=whole)
    config.mesh.space, config.model.convolutions = space, "planes"
    values = reading.read(config)
    params = networks.init_params(values.network, 1, jax.random.key(0))
    image = np.random.default_rng(0).normal(size=(*SCAN, 1)).astype(np.float32)
    network, divisor = unet.UNet(values.network), values.network.divisor
    predict = inference.make_predict(network.apply, heads.Head(values.task), mirror=True)
    # The same padding: zeros beside a scan count in the statistics of the norms.
    window = inference.whole_window(SCAN, divisor, 4) if whole else values.inference.patch
    one = inference.sliding_window(lambda windows: predict(params, windows), image, window)
    predictor = predictors.predictor([model.of_experiment(values)])
    return one, predictor.probabilities(predictor.place([params]), image)


def sent(convolutions: Any) -> list[list[str]]:
    """What devices send each other in one mirrored pass over a scan of a split depth."""
    config = unet.UNetConfig(widths=(4, 4, 8), blocks=1, convolutions=convolutions)
    apply = unet.UNet(config).apply
    predict = inference.make_predict(
        apply, heads.Head(task_lib.GLIOMA), mirror=True, entropies=True, mesh=sharding.local_mesh(4)
    )
    params = jax.eval_shape(lambda: networks.init_params(config, 1, jax.random.key(0)))
    windows = jax.ShapeDtypeStruct((1, 32, 16, 16, 1), np.float32)
    text = predict.lower(params, windows).compile().as_text()
    return [[each.kind, str(each.shape)] for each in collectives.of_program(text)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("prediction") / "four.npz"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = commands.python(__file__, output, env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(output) as saved:
        return dict(saved)


@pytest.mark.parametrize("case", CASES)
def test_four_devices_answer_as_one(results: dict[str, np.ndarray], case: str) -> None:
    one, four = results[f"{case}/one"], results[f"{case}/four"]
    assert four.shape == (*SCAN, 4)
    # Sums of the norms in another order: float32 rounding.
    np.testing.assert_allclose(four, one, atol=1e-5)
    assert np.ptp(one) > 0.01


@pytest.mark.parametrize("form", ["planes", "native"])
def test_a_whole_scan_is_not_gathered(results: dict[str, np.ndarray], form: str) -> None:
    found = json.loads(str(results[form]))
    # Halos of depth, planes of a mirrored scan; the two sums of each norm.
    assert {kind for kind, _ in found} == {"collective-permute", "all-reduce"}
    sums = [shape for kind, shape in found if kind == "all-reduce"]
    assert set(sums) == {"(1, 4)", "(1, 8)"}


if __name__ == "__main__":
    arrays: dict[str, Any] = {}
    for name, split, in_one in zip(CASES, (1, 2, 1), (False, False, True), strict=True):
        arrays[f"{name}/one"], arrays[f"{name}/four"] = answers(split, in_one)
    for form_name in ("planes", "native"):
        arrays[form_name] = np.array(json.dumps(sent(form_name)))
    np.savez(sys.argv[1], **arrays)
