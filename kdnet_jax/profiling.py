"""`--config.profile=N`: a trace of N steps of a training, and a page that says where the time goes.

The run itself does not change: the same steps, the same order, the same numbers.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdnet_jax import files, memory, trace
from kdnet_jax.models import layers, networks, unet
from kdnet_jax.reporting import profile_page

FOLDER = "profile"
# Steps before the trace: the first ones still fill caches and queues.
WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a profile found.

    Attributes:
        steps: traced.
        seconds: that they took together. The loop runs ahead of the device, so the time of each
            alone is not known.
        waiting_seconds: of these, waiting for data.
        operations: of all traced steps.
        flops: of a step, see `flops.count`.
        peak_flops: per second, measured on this device (`measure_peak`).
        device: what it ran on.
        step_bytes: memory of a step by XLA's plan.
    """

    steps: int
    seconds: float
    waiting_seconds: float
    operations: list[trace.Operation]
    flops: int
    peak_flops: float
    device: str
    step_bytes: int

    def summary(self) -> dict[str, Any]:
        """Returns the figures as JSON; seconds are per step."""
        scopes = {operation.scope for operation in self.operations}
        groups = {
            name: {
                key: seconds / self.steps
                for key, seconds in trace.totals(
                    self.operations, {scope: function(scope) for scope in scopes}
                ).items()
            }
            for name, function in (
                ("phase", trace.phase),
                ("kind", trace.kind),
                ("level", trace.level),
                ("phase and kind", lambda s: f"{trace.phase(s)}: {trace.kind(s)}"),
                ("operation", lambda s: s),
            )
        }
        each = self.seconds / self.steps
        return {
            "steps": self.steps,
            "device": self.device,
            "step_seconds": each,
            "waiting_share": self.waiting_seconds / self.seconds,
            "device_idle_share": max(0.0, 1 - trace.busy_seconds(self.operations) / self.seconds),
            "flops": self.flops,
            "flops_per_second": self.flops / each,
            "peak_flops_per_second": self.peak_flops,
            "share_of_peak": self.flops / each / self.peak_flops,
            "step_bytes": self.step_bytes,
            "operation_seconds": groups,
        }


class Profiler:
    """Traces `steps` steps of a loop that tells it of each; then writes the summary.

    Args:
        folder: of the run.
        steps: to trace.
        program: the compiled step's text.
        about: the figures of `Profile` that are known beforehand.
    """

    def __init__(
        self, folder: pathlib.Path, steps: int, program: str, about: dict[str, Any]
    ) -> None:
        self._folder = folder / FOLDER
        self._steps = steps
        self._program = program
        self._about = about
        self._seen = 0
        self._marks: list[tuple[float, float]] = []

    def after_step(self, metrics: Any, waited: float) -> str:
        """Notes that a step was dispatched.

        Args:
            metrics: its results, to wait for where the trace begins and ends.
            waited: seconds that the loop has waited for data in all.

        Returns:
            What to tell the user, once, when the summary is written.
        """
        self._seen += 1
        if self._seen == WARM_UP:
            self._mark(metrics, waited)
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder)
        if self._seen == WARM_UP + self._steps:
            self._mark(metrics, waited)
            jax.profiler.stop_trace()
            return self._write()
        return ""

    def _mark(self, metrics: Any, waited: float) -> None:
        jax.block_until_ready(metrics)
        self._marks.append((time.perf_counter(), waited))

    def close(self) -> str:
        """Ends a trace that the end of the training cut short; returns what to tell the user."""
        if self._seen >= WARM_UP + self._steps:
            return ""
        if self._seen >= WARM_UP:
            jax.profiler.stop_trace()
            shutil.rmtree(self._folder)
        return (
            f"profile: {WARM_UP} + {self._steps} steps were asked for, and this training had "
            f"{self._seen}; no profile was written. Lower --config.profile, or raise "
            "--config.train.steps."
        )

    def _write(self) -> str:
        (start, waited), (end, waited_since) = self._marks
        profile = Profile(
            steps=self._steps,
            seconds=end - start,
            waiting_seconds=waited_since - waited,
            operations=trace.read(self._folder, self._program),
            **self._about,
        )
        summary = profile.summary()
        files.write_text(self._folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        profile_page.write(self._folder / "summary.html", summary)
        return profile_page.text(summary) + f"\nProfile: {self._folder / 'summary.html'}"


def make_profiler(
    folder: pathlib.Path, steps: int, network: networks.Network, compiled: Any, flops: int
) -> Profiler:
    """Returns the profiler of a run; measures the device's peak.

    Args:
        folder: of the run.
        steps: to trace.
        network: that is trained.
        compiled: the step.
        flops: of a step.
    """
    about = {
        "flops": flops,
        "peak_flops": jax.device_count() * measure_peak(network),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "step_bytes": memory.step_bytes(compiled),
    }
    return Profiler(folder, steps, compiled.as_text(), about)


def measure_peak(network: networks.Network) -> float:
    """Returns the operations per second of a large matrix product in the network's type.

    A yardstick measured on the spot; on CPU, where oneDNN's convolution is faster than XLA's matrix
    product, the faster of both.
    """
    dtype = unet.compute_type(network)
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    a = jnp.ones((size, size), dtype)
    rates = [2 * size**3 / _best_seconds(jax.jit(jnp.matmul), a, a)]
    if on_cpu and layers.choose_form(network.convolutions) == "onednn":
        x, kernel = jnp.ones((2, 32, 32, 32, 64)), jnp.ones((3, 3, 3, 64, 64))
        convolve = jax.jit(lambda x, k: layers.convolve(x, k, jnp.zeros(64), "onednn"))
        rates.append(2 * x.size * 27 * 64 / _best_seconds(convolve, x, kernel))
    return max(rates)


def _best_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
