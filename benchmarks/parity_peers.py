"""A PyTorch network, ours with its weights, and how far apart their layers are."""

import importlib
import math
import pydoc
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util
from jaxtyping import Float
from torch import nn

from benchmarks import parity_cases
from kdnet_jax.interop import monai_weights, network_kinds, nnunet_weights
from kdnet_jax.models import adapted, nnunet, torch_layers

Volume = Float[np.ndarray, "b d h w c"]
LOGITS = "logits"


def new(config: adapted.RawConfig, channels: int) -> nn.Module:
    """Returns the class's own network, as it is made."""
    kind = network_kinds.of_config(config)
    found = {
        key: pydoc.locate(value) if str(value).startswith("torch.") else value
        for key, value in kind.write(config, channels).items()
    }
    return getattr(importlib.import_module(kind.module), kind.name)(**found)


def make(case: parity_cases.Case) -> nn.Module:
    """Returns the network of a case, with weights, scales and biases that all matter."""
    network = new(case.config, case.channels)
    _randomise(network)
    return network.eval()


def _randomise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            fan_in = math.prod(module.kernel_size) * module.in_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        elif isinstance(module, nn.InstanceNorm3d | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, std=0.3)


def state(network: nn.Module) -> dict[str, np.ndarray]:
    """Returns its state dict as NumPy arrays."""
    return {name: value.numpy() for name, value in network.state_dict().items()}


def image(case: parity_cases.Case) -> Volume:
    """Returns an input of batch 2."""
    shape = (2, *case.edges, case.channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def their_layers(case: parity_cases.Case, network: nn.Module, x: Volume) -> dict[str, Volume]:
    """Returns what every convolution gives, by its path in our tree, and the logits."""
    found: dict[str, Volume] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            del module, inputs
            found[path] = _last(output)

        return hook

    for path, name in _convolutions(case).items():
        network.get_submodule(name).register_forward_hook(keep(path))
    with torch.inference_mode():
        y = network(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))))
    return found | {LOGITS: _last(y[0] if isinstance(y, list) else y)}


def _last(y: torch.Tensor) -> Volume:
    # A copy: PyTorch's activations work in place.
    return np.moveaxis(y.numpy(), 1, -1).copy()


def _convolutions(case: parity_cases.Case) -> dict[str, str]:
    """Returns the name in PyTorch of each of our convolutions."""
    if isinstance(case.config, nnunet.PlainConvConfig):
        entries = nnunet_weights.entries(case.config)
    else:
        entries = monai_weights.entries(case.config, case.channels)
    return {
        entry.path.removesuffix("/kernel"): entry.names[0].removesuffix(".weight")
        for entry in entries
        if entry.path.endswith("/kernel")
    }


def our_layers(config: adapted.RawConfig, params: Any, x: Volume) -> dict[str, Volume]:
    """Returns what every convolution gives, by its path, and the logits."""
    kinds = (torch_layers.Conv, torch_layers.TransposedConv)

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        return config.module().apply(
            params,
            x,
            capture_intermediates=lambda module, _: isinstance(module, kinds),
            mutable=["intermediates"],
        )

    (logits, _), kept = run(params, x)
    flat = traverse_util.flatten_dict(kept["intermediates"], sep="/")
    found = {path.removesuffix("/__call__"): np.asarray(y) for path, (y,) in flat.items()}
    return found | {LOGITS: np.asarray(logits)}


def differences(ours: dict[str, Volume], theirs: dict[str, Volume]) -> dict[str, float]:
    """Returns the largest difference of each layer of theirs.

    A head that deep supervision alone needs is computed on our side in any case.

    Raises:
        ValueError: we have no such layer, or it gives another shape.
    """
    apart = {}
    for path, y in theirs.items():
        if path not in ours or ours[path].shape != y.shape:
            found = ours[path].shape if path in ours else "missing"
            raise ValueError(f"{path} is {found}, in PyTorch {y.shape}")
        apart[path] = float(np.abs(ours[path] - y).max())
    return apart
