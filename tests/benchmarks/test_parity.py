"""Our networks are nnU-Net's and MONAI's: the same layers, the same start, by their packages.

All settings: `python -m benchmarks.parity`.
"""

import dataclasses
import os

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks' peers need torch")
pytest.importorskip("monai", reason="one of the networks' peers")
pytest.importorskip("dynamic_network_architectures", reason="one of the networks' peers")

from benchmarks import parity, parity_cases, parity_peers  # noqa: E402
from kdnet_jax.interop import network_kinds  # noqa: E402
from kdnet_jax.models import monai, networks, unet  # noqa: E402

# Threads that wait for one another are slow where tests share the cores.
torch.set_num_threads(1)
# Between them: both norms, every kind of kernel and stride, deep supervision, all upsamplings.
_CHOSEN = (
    "2 channels, 5 slices, flat kernels and strides",
    "kernels of 5 and (3, 1, 5), strides (3, 1, 2)",
    "no biases, no scales, another epsilon and slope",
    "stem of 6, then equal widths",
    "2 channels, group norms, bias of up, ReLU",
    "residual, flat, 1 head, 5 slices",
    "residual, first stage and input of 8 channels",
    "residual, equal widths, one stride of 1, no scales",
    "2 channels, deconv",
    "1 channel, 2 stages, 4 groups",
)
_ALL = "KDNET_ALL_PARITY_CASES" in os.environ
CASES = [case for case in parity_cases.small() if _ALL or case.setting in _CHOSEN]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.network}: {case.setting}")
def test_every_layer_is_that_of_pytorch_and_the_weights_go_back(case: parity_cases.Case) -> None:
    row = parity.compare(case, "native")
    assert row.largest < 1e-4, row.where
    assert row.logits < 1e-4
    assert row.back == 0
    assert row.layers > 10


def test_strided_convolutions_of_the_cpu_are_those_of_pytorch() -> None:
    case = next(case for case in parity_cases.small() if "3, 1, 5" in case.setting)
    assert parity.compare(case, "planes").largest < 1e-4


@pytest.mark.parametrize("name", list(networks.FAMILIES))
def test_new_parameters_are_distributed_as_those_of_the_class(name: str) -> None:
    config = networks.FAMILIES[name].of_unet(
        unet.UNetConfig(widths=(16, 32, 64), head="regions", bfloat16=False)
    )
    if isinstance(config, monai.SegResNetConfig):
        config = dataclasses.replace(config, upsample_mode="deconv")
    kind = network_kinds.of_config(config)
    torch.manual_seed(0)
    peer = parity_peers.new(config, channels=4)
    if hasattr(peer, "initialize"):
        peer.apply(peer.initialize)  # as nnU-Net's trainer
    fresh = jax.jit(config.module().init)(jax.random.key(0), np.zeros((1, 8, 8, 8, 4), np.float32))
    ours = kind.weights.to_torch(config, fresh)
    theirs = parity_peers.state(peer)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].std() == pytest.approx(value.std(), rel=6 / np.sqrt(value.size)), key
        apart = 6 * value.std() * np.sqrt(2 / value.size) + 1e-9
        assert ours[key].mean() == pytest.approx(value.mean(), abs=apart), key
        # A uniform distribution ends, a normal one does not.
        if value.size > 1e4:
            ends = [np.abs(y).max() / y.std() for y in (ours[key], value)]
            assert (ends[0] < 2) == (ends[1] < 2), key
