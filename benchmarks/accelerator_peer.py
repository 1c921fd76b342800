"""PyTorch's side of `benchmarks.accelerator`: MONAI's DynUNet, AMP, channels last, torch.compile.

Each function returns a `measuring.Job` with its figures.
"""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from monai import inferers
from monai.networks import nets
from torch import nn
from torch.utils import flop_counter

from benchmarks import made_data, peer_unet
from benchmarks.measuring import Job

_WARM_UP = 3
_LAYOUT = peer_unet.LAYOUTS["channels_last"]


class Supervised(nn.Module):
    """DynUNet whose coarser logits are given at their own size.

    DynUNet itself would enlarge them to the full size, which is slower and which nnU-Net does not.
    """

    def __init__(self, widths: Sequence[int], supervision: bool) -> None:
        super().__init__()
        depth = len(widths)
        # As ours: no head at the coarsest decoder level.
        self.heads = max(depth - 3, 0) if supervision else 0
        self.network = nets.DynUNet(
            spatial_dims=3,
            in_channels=made_data.CHANNELS,
            out_channels=peer_unet.CLASSES,
            kernel_size=[3] * depth,
            strides=[1] + [2] * (depth - 1),
            upsample_kernel_size=[2] * (depth - 1),
            filters=list(widths),
            norm_name=("INSTANCE", {"affine": True}),
            deep_supervision=bool(self.heads),
            deep_supr_num=max(self.heads, 1),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the logits, finest first."""
        out = self.network.output_block(self.network.skip_layers(x))
        return [out, *self.network.heads[: self.heads]]


def supervised_loss(logits: Sequence[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
    """Dice + cross-entropy of each level, level i with weight 1 / 2^i."""
    total = torch.zeros((), device=label.device)
    for level, values in enumerate(logits):
        stride = 2**level
        coarse = label[:, ::stride, ::stride, ::stride]
        total = total + peer_unet.dice_ce(values.float(), coarse) / stride
    return total


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def _tune() -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def _step(
    network: nn.Module, forward: Callable[..., list[torch.Tensor]], bfloat16: bool
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    device = _device()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def step(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        # bfloat16 has float32's range: no scaling of the loss.
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = forward(x)
        loss = supervised_loss(logits, label)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        return loss.detach()

    return step


def training(
    *,
    widths: Sequence[int],
    patch: int,
    batch: int,
    steps_per_block: int,
    blocks: int,
    bfloat16: bool,
    supervision: bool,
    compiled: bool,
) -> Job:
    """Samples per second of DynUNet, each batch sent from pinned memory while the last computes."""
    _tune()
    device = _device()
    network = Supervised(widths, supervision).to(device, memory_format=_LAYOUT)
    forward = torch.compile(network) if compiled else network
    step = _step(network, forward, bfloat16)
    image, label = made_data.batch(batch, patch)
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3).contiguous(memory_format=_LAYOUT)
    y = torch.from_numpy(label)
    if device.type == "cuda":
        x, y = x.pin_memory(), y.pin_memory()

    def send() -> tuple[torch.Tensor, torch.Tensor]:
        sent = x.to(device, non_blocking=True, memory_format=_LAYOUT)
        return sent, y.to(device, non_blocking=True).long()

    try:
        with flop_counter.FlopCounterMode(display=False) as counter:
            _step(network, network, bfloat16)(*send())
        rates = []
        for block in range(blocks + 1):
            count = steps_per_block if block else _WARM_UP
            _wait(device)
            start = time.perf_counter()
            for _ in range(count):
                loss = step(*send())
            _wait(device)
            rates.append(count * batch / (time.perf_counter() - start))
    except torch.OutOfMemoryError:
        return Job(about={"out_of_memory": True})
    return Job(
        about={
            "rates": rates[1:],
            "loss": float(loss),
            "peak_gib": _peak_gib(device),
            "flops_a_step": counter.get_total_flops(),
            "parameters": sum(value.numel() for value in network.parameters()),
        }
    )


def prediction(
    *,
    widths: Sequence[int],
    patch: int,
    shape: Sequence[int],
    repetitions: int,
    bfloat16: bool,
    window_batch: int,
    compiled: bool,
) -> Job:
    """Seconds of a whole scan with 8 mirror images of each window, from host to host."""
    _tune()
    device = _device()
    network = Supervised(widths, supervision=False).to(device, memory_format=_LAYOUT).eval()
    forward = torch.compile(network) if compiled else network
    flips = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]

    def predict(windows: torch.Tensor) -> torch.Tensor:
        images = (torch.flip(windows, axes).contiguous(memory_format=_LAYOUT) for axes in flips)
        probs = (forward(image)[0].float().softmax(1) for image in images)
        return sum(torch.flip(each, axes) for each, axes in zip(probs, flips, strict=True)) / 8

    inferer = inferers.SlidingWindowInferer(
        (patch,) * 3, window_batch, 0.5, mode="gaussian", cache_roi_weight_map=True
    )
    image = torch.from_numpy(made_data.scan(shape)).permute(3, 0, 1, 2)[None].contiguous()
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            inferer(image.to(device), predict).cpu()
        seconds.append(time.perf_counter() - start)
    return Job(about={"seconds": seconds[1:]})
