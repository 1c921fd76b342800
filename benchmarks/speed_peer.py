"""PyTorch's side of `benchmarks.speed`: what its workers run. Each returns a `measuring.Job`."""

import itertools
import pathlib
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import made_data, peer_unet
from benchmarks.measuring import Job, forget_peak, memory_gib

_WINDOW_BATCHES = (1, 2)
_TRIALS = 3


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def _training(
    widths: Sequence[int],
    edge: int,
    batch: int,
    layout: str,
    threads: int,
    compiled: bool = False,
) -> Callable[[], Any]:
    _set_threads(threads)
    form = peer_unet.LAYOUTS[layout]
    network = peer_unet.UNet(made_data.CHANNELS, widths).to(memory_format=form)
    image, label = made_data.batch(batch, edge)
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3).contiguous(memory_format=form)
    return peer_unet.training_step(network, x, torch.from_numpy(label).long(), compiled)


def training_step(
    widths: Sequence[int],
    edge: int,
    batch: int,
    layout: str,
    threads: int,
    compiled: bool = False,
) -> Job:
    """The plain step of the same network, which torch.compile may compile."""
    return Job(_training(widths, edge, batch, layout, threads, compiled))


def training_memory(
    widths: Sequence[int], edge: int, batch: int, layout: str, threads: int, repetitions: int
) -> Job:
    """The most memory of a process that takes `repetitions` steps, from after the imports on."""
    forget_peak()
    start = memory_gib("VmRSS")
    step = _training(widths, edge, batch, layout, threads)
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return Job(about={"peak_gib": memory_gib("VmHWM") - start, "seconds": seconds})


class _Predictor:
    """MONAI's sliding window over the same network; counts the windows that it sees."""

    def __init__(
        self,
        network: peer_unet.UNet,
        patch: Sequence[int],
        overlap: float,
        layout: str,
        batch: int,
        bfloat16: bool,
    ) -> None:
        # Imported where it is needed: training is compared without MONAI too.
        from monai import inferers

        self._form, self._bfloat16 = peer_unet.LAYOUTS[layout], bfloat16
        self._network = network.to(memory_format=self._form).eval()
        # sigma_scale is ours too: an eighth of the window. Its weights are made once.
        self._inferer = inferers.SlidingWindowInferer(
            tuple(patch),
            sw_batch_size=batch,
            overlap=overlap,
            mode="gaussian",
            sigma_scale=0.125,
            cache_roi_weight_map=True,
        )
        self.windows = 0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.windows = 0
        with torch.inference_mode():
            return self._inferer(image, self._probabilities)

    def _probabilities(self, windows: torch.Tensor) -> torch.Tensor:
        self.windows += len(windows)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            logits = self._network(windows.contiguous(memory_format=self._form))
        return logits.float().softmax(1)


def _load(path: str, widths: Sequence[int]) -> peer_unet.UNet:
    network = peer_unet.UNet(made_data.CHANNELS, widths)
    params = pickle.loads(pathlib.Path(path).read_bytes())
    network.load_state_dict(peer_unet.state_from_flax(params))
    return network


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(3, 0, 1, 2)[None].contiguous()


def choose_prediction(
    path: str,
    widths: Sequence[int],
    patch: Sequence[int],
    overlap: float,
    bfloat16: bool,
    threads: int,
) -> Job:
    """Finds the fastest of the layouts and numbers of windows at once, on a scan of two windows."""
    _set_threads(threads)
    shape = (patch[0] + round(patch[0] * (1 - overlap)), *patch[1:])
    image = _as_tensor(made_data.scan(shape))
    seconds: dict[tuple[str, int], list[float]] = {}
    # A network each: `to` a layout changes it in place.
    choices = {
        (layout, batch): _Predictor(_load(path, widths), patch, overlap, layout, batch, bfloat16)
        for layout, batch in itertools.product(peer_unet.LAYOUTS, _WINDOW_BATCHES)
    }
    for _ in range(_TRIALS):
        for choice, predictor in choices.items():
            began = time.perf_counter()
            predictor(image)
            seconds.setdefault(choice, []).append(time.perf_counter() - began)
    medians = {choice: statistics.median(values[1:]) for choice, values in seconds.items()}
    layout, batch = min(medians, key=medians.__getitem__)
    tried = {f"{name}, {count} at once": value for (name, count), value in medians.items()}
    return Job(about={"layout": layout, "batch": batch, "tried_seconds": tried})


def prediction(
    path: str,
    widths: Sequence[int],
    shape: Sequence[int],
    patch: Sequence[int],
    overlap: float,
    bfloat16: bool,
    layout: str,
    batch: int,
    threads: int,
) -> Job:
    """MONAI's sliding-window probabilities of a whole scan."""
    _set_threads(threads)
    predictor = _Predictor(_load(path, widths), patch, overlap, layout, batch, bfloat16)
    image = _as_tensor(made_data.scan(shape))
    probs = torch.empty(0)

    def run() -> None:
        nonlocal probs
        probs = predictor(image)

    return Job(
        run, result=lambda: (probs[0].permute(1, 2, 3, 0).contiguous().numpy(), predictor.windows)
    )
