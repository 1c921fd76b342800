"""The same U-Net, loss and step in PyTorch, with the names of our parameters.

`tests/benchmarks/test_peer_unet.py` shows by our own parameters that logits, loss and gradients
are those of `kdnet_jax.models.unet` and `kdnet_jax.losses.segmentation`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import nn
from torch.nn import functional

# Memory layouts of PyTorch, by the name under which they are reported.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
CLASSES = 4


class Block(nn.Module):
    """Convolution 3x3x3, InstanceNorm, LeakyReLU(0.01)."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv3d(channels, features, 3, padding=1)
        self.InstanceNorm_0 = nn.InstanceNorm3d(features, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        return functional.leaky_relu(self.InstanceNorm_0(self.Conv_0(x)), 0.01, inplace=True)


class UNet(nn.Module):
    """`kdnet_jax.models.unet.UNet` with its defaults: max-pooling and trilinear upsampling.

    Args:
        channels: of the input.
        widths: channels of each level, finest first.
        blocks: a level.
        last_blocks: of the finest decoder level.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int = 2, last_blocks: int = 3
    ) -> None:
        super().__init__()
        self.depth = len(widths)
        for level, width in enumerate(widths):
            inputs = widths[level - 1] if level else channels
            self._add(f"encoder_{level}", inputs, width, blocks)
        for level in range(self.depth - 1):
            inputs = widths[level + 1] + widths[level]
            count = blocks if level else last_blocks
            self._add(f"decoder_{level}", inputs, widths[level], count)
        self.head = nn.Conv3d(widths[0], CLASSES, 1)

    def _add(self, name: str, inputs: int, features: int, count: int) -> None:
        for index in range(count):
            self.add_module(f"{name}_{index}", Block(inputs if not index else features, features))

    def _apply_level(self, x: torch.Tensor, name: str) -> torch.Tensor:
        for child, block in self.named_children():
            if child.startswith(name):
                x = block(x)
        return x

    def forward(self, x: Float[torch.Tensor, "b m d h w"]) -> Float[torch.Tensor, "b k d h w"]:
        """Returns the logits."""
        skips = []
        for level in range(self.depth):
            if level:
                x = functional.max_pool3d(x, 2)
            x = self._apply_level(x, f"encoder_{level}_")
            skips.append(x)
        for level in reversed(range(self.depth - 1)):
            wide = functional.interpolate(x, scale_factor=2, mode="trilinear")
            x = self._apply_level(torch.cat([wide, skips[level]], 1), f"decoder_{level}_")
        return self.head(x)


def state_from_flax(params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the state of `UNet` that has the values of our parameters.

    Kernels "kd kh kw c o" become "o c kd kh kw".
    """
    state = {}
    for path, value in flatten(params["params"]).items():
        array = np.asarray(value)
        kernel = path.endswith("kernel")
        name = path.removesuffix("kernel").removesuffix("scale") + "weight"
        name = path if path.endswith("bias") else name
        array = array.transpose(4, 3, 0, 1, 2) if kernel else array
        state[name] = torch.tensor(np.ascontiguousarray(array))
    return state


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by their path, joined by dots."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        leaves |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return leaves


def dice_ce(
    logits: Float[torch.Tensor, "b k d h w"], label: Integer[torch.Tensor, "b d h w"]
) -> Float[torch.Tensor, ""]:
    """1 - soft Dice (squared form, over the tumour classes) + cross-entropy, mean of the batch."""
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1, 1)
    y = (label[:, None] == classes)[:, 1:].float()
    p = logits.softmax(1)[:, 1:]
    overlap, total = (p * y).sum((2, 3, 4)), (p * p).sum((2, 3, 4)) + y.sum((2, 3, 4))
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    return (1 - dice).mean() + functional.cross_entropy(logits, label)


def training_step(
    network: nn.Module, image: torch.Tensor, label: torch.Tensor, compiled: bool = False
) -> Callable[[], float]:
    """Returns one training step with Adam and gradient clipping; it returns its loss.

    Args:
        network: on the logits of 4 classes.
        image: a batch.
        label: its classes.
        compiled: network and loss by torch.compile.
    """
    # The fastest of PyTorch's own: one loop over all parameters.
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def loss_of(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return dice_ce(network(image), label)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(image, label)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        return loss.item()

    return step
