"""Two sides of a comparison by turns: each in a process of its own, on the same cores.

A worker imports its side, builds what is measured, and waits. On request it does one repetition and
returns the seconds that it took, while the other workers sleep. So neither side's threads
disturb the other's, and whatever else the machine does falls on both.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import psutil
import tqdm

from kdnet_jax.errors import UserError

# Threads that have just worked may spin for a moment before they sleep.
_SETTLE_SECONDS = 0.05


class Job(NamedTuple):
    """What a worker's function returns.

    Attributes:
        run: does one repetition and returns when all its results are there.
        about: what the parent should know: settings, or the measurement itself.
        result: returns the outcome of the last repetition.
    """

    run: Callable[[], None] = lambda: None
    about: Mapping[str, Any] = {}
    result: Callable[[], Any] = lambda: None


class Worker:
    """A process that holds one `Job`.

    Args:
        place: "module:function" in this package; the function returns the job. A name, so that the
            parent need import neither side.
        cores: how many cores the process may use.
        options: arguments of the function.

    Attributes:
        about: of the job.
        others: cores that all other processes used on average, for each repetition.
        faults: page faults of the last repetition.

    Raises:
        RuntimeError: the function failed; the message holds its traceback.
    """

    def __init__(self, place: str, cores: int, **options: Any) -> None:
        self._place = place
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, place, cores, options), daemon=True
        )
        self._process.start()
        # This side's copy: without it the end of the process is seen as the end of the pipe.
        other.close()
        self.others: list[float] = []
        self.faults = 0
        self.about = self._receive()

    def repeat(self) -> float:
        """Does one repetition; returns its seconds."""
        time.sleep(_SETTLE_SECONDS)
        own = psutil.Process(self._process.pid)
        before, used, start = busy_seconds(), sum(own.cpu_times()[:2]), time.perf_counter()
        seconds, self.faults = self._ask("run")
        spent = sum(own.cpu_times()[:2]) - used
        elapsed = time.perf_counter() - start
        self.others.append(max(busy_seconds() - before - spent, 0.0) / elapsed)
        return seconds

    def result(self) -> Any:
        """Returns the outcome of the last repetition."""
        return self._ask("result")

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise RuntimeError(
                f"{self._place} ended with exit code {self._process.exitcode}; -9 means that the "
                "system stopped it, mostly for want of memory."
            ) from None
        if kind == "failed":
            raise RuntimeError(f"{self._place} failed:\n{value}")
        return value


def _serve(pipe: connection.Connection, place: str, cores: int, options: dict[str, Any]) -> None:
    # ^C is for the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Before the libraries start their threads, whose number follows from it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        module, name = place.split(":")
        function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
        job: Job = function(**options)
        pipe.send(("done", dict(job.about)))
        _answer(pipe, job)
    except EOFError:  # the parent is done
        return
    except Exception:  # reported to the parent in full
        pipe.send(("failed", traceback.format_exc()))


def _answer(pipe: connection.Connection, job: Job) -> None:
    while True:
        if pipe.recv() == "result":
            pipe.send(("done", job.result()))
            continue
        faults, start = _page_faults(), time.perf_counter()
        job.run()
        pipe.send(("done", (time.perf_counter() - start, _page_faults() - faults)))


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def busy_seconds() -> float:
    """Returns the processor time that this machine has spent since its start, of all cores."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


@contextlib.contextmanager
def workers(
    places: Mapping[str, tuple[str, Mapping[str, Any]]], cores: int
) -> Iterator[dict[str, Worker]]:
    """Starts workers by name, one after the other, and ends them.

    Args:
        places: name -> ("module:function", its arguments).
        cores: of each worker.
    """
    with contextlib.ExitStack() as stack:
        started = {}
        for name, (place, options) in places.items():
            started[name] = Worker(place, cores, **options)
            stack.callback(started[name].close)
        yield started


def once(place: str, cores: int, **options: Any) -> dict[str, Any]:
    """Runs one function in a process of its own and returns its job's `about`."""
    worker = Worker(place, cores, **options)
    worker.close()
    return worker.about


def take_turns(
    started: Mapping[str, Worker], repetitions: int, text: str
) -> dict[str, tuple[float, ...]]:
    """Returns the seconds of `repetitions` by each worker, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in started}
    rounds = tqdm.trange(repetitions + 1, desc=text, unit="round", leave=False, disable=None)
    for _ in rounds:
        for name, worker in started.items():
            seconds[name].append(worker.repeat())
    for worker in started.values():
        del worker.others[0]
    return {name: tuple(all_seconds[1:]) for name, all_seconds in seconds.items()}


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Returns the name with the smallest median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


# -- Memory -----------------------------------------------------------------------------------


def memory_gib(key: str) -> float:
    """Returns "VmRSS" (held now) or "VmHWM" (the most so far) of this process, GiB."""
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    return int(re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)[1]) / 2**20


def forget_peak() -> None:
    """Sets "VmHWM" back to what is held now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", "utf-8")


# -- Checks at the start ----------------------------------------------------------------------


def check_machine(cores: int) -> None:
    """Raises UserError unless this is Linux with so many cores."""
    if sys.platform != "linux":
        raise UserError(f"The benchmarks read /proc, so they need Linux; this is {sys.platform}.")
    there = len(os.sched_getaffinity(0))
    if not 1 <= cores <= there:
        raise UserError(f"--cores is {cores}, but this process has {there}: give 1 to {there}.")


def check_peers(*modules: str) -> None:
    """Raises UserError for a peer's package that is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not installed, and the peer's side needs it. Run `pip "
            "install -r requirements-benchmarks.txt`, or choose rows without it by --only."
        )
