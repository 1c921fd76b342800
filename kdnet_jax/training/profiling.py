"""Profile of a training (`--config.profile=N`): a trace of N steps, FLOP/s and the data wait.

The run does not change: the same steps, in the same order, with the same numbers.
"""

import json
import pathlib
import shutil
import time

import jax
from jaxtyping import PyTree

from kdnet_jax.core import files

FOLDER = "profile"
# Steps before the trace: the first ones still fill caches and queues.
WARM_UP = 5


class Profiler:
    """Traces `steps` steps of a loop that reports each of them; then writes the summary.

    Args:
        folder: of the run.
        steps: to trace.
        flops: of a step over all devices, see `flops.count`.
    """

    def __init__(self, folder: pathlib.Path, steps: int, flops: int) -> None:
        self._folder, self._steps, self._flops = folder / FOLDER, steps, flops
        # Beside a profile of an earlier start, which stays until this one is whole.
        self._unfinished = folder / f".{FOLDER}"
        self._seen = 0
        self._start = self._waited = 0.0

    def after_step(self, metrics: PyTree, waited: float) -> str:
        """Notes that a step was dispatched.

        Args:
            metrics: its results, to wait for where the trace begins and ends: the loop runs ahead
                of the device.
            waited: seconds that the loop has waited for data in all.

        Returns:
            What to print, once, when the summary is written; else "".
        """
        self._seen += 1
        if self._seen == WARM_UP:
            jax.block_until_ready(metrics)
            self._start, self._waited = time.perf_counter(), waited
            shutil.rmtree(self._unfinished, ignore_errors=True)  # of a start that was killed
            jax.profiler.start_trace(self._unfinished)
        if self._seen == WARM_UP + self._steps:
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - self._start
            jax.profiler.stop_trace()
            return self._write(seconds, waited - self._waited)
        return ""

    def close(self) -> str:
        """Drops a trace that the end of the training cut short; returns what to print."""
        if self._seen >= WARM_UP + self._steps:
            return ""
        if self._seen >= WARM_UP:
            jax.profiler.stop_trace()
            shutil.rmtree(self._unfinished)
        return (
            f"profile: {WARM_UP} + {self._steps} steps were requested, and this training took "
            f"{self._seen}; no profile was written. Lower --config.profile, or raise "
            "--config.train.steps."
        )

    def _write(self, seconds: float, waiting: float) -> str:
        summary = {
            "steps": self._steps,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "step_seconds": seconds / self._steps,
            "waiting_share": waiting / seconds,
            "flops": self._flops,
            "flops_per_second": self._flops * self._steps / seconds,
        }
        files.write_text(self._unfinished / "summary.json", json.dumps(summary, indent=2) + "\n")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._unfinished.rename(self._folder)
        return (
            f"A step takes {1e3 * summary['step_seconds']:.1f} ms (mean of {self._steps}) on "
            f"{summary['device']}, and does {self._flops / 1e9:.4g} GFLOP: "
            f"{summary['flops_per_second'] / 1e12:.3g} TFLOP/s. The loop waits for data "
            f"{summary['waiting_share']:.1%} of the time.\n"
            f"To see the trace: pip install xprof && xprof --logdir={self._folder}"
        )
