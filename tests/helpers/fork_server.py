"""The process that forks: it imports what the commands import, once, and becomes each of them.

forks.py starts it and asks it. JAX's backend is not touched before the fork, so that a child starts
its own, with its own XLA_FLAGS.
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import math
import os
import pathlib
import runpy
import select
import signal
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# What the commands import where they need it.
_IMPORTED = (
    "cli",
    "data.records.building",
    "evaluation.cohort_segmentation",
    "evaluation.comparison",
    "evaluation.mask_evaluation",
    "experiment.studies",
    "interop.export.hand_over",
    "prediction.prediction_jobs",
    "prediction.prediction_outputs",
    "prediction.resuming_predictions",
    "prediction.segmenting",
    "reports.augmentation_sheet",
    "reports.comparison_figures",
    "reports.comparison_text",
    "reports.data_survey",
    "runs.run_folders",
)
# What JAX reads from the environment when it is imported, and takes until its backend starts.
TAKEN_LATER = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_NUM_CPU_DEVICES")
# A program with this in its environment draws no report of a run: half of the time of a tiny run.
WITHOUT_REPORT = "KDNET_TESTS_WITHOUT_REPORT"
_LARGEST = 1 << 17  # bytes of a request: its words and its environment


@dataclasses.dataclass
class _Child:
    """A running program: its process, the descriptor of that, and the pipe of who waits for it."""

    pid: int
    end: int
    result: int
    deadline: float
    timed_out: bool = False


def _wait_for_request(control: socket.socket) -> Mapping[str, Any] | None:
    """Returns in each child the request that it has to run, and in the server `None` at its end."""
    children: list[_Child] = []
    while True:
        polled = select.poll()
        polled.register(control, select.POLLIN)
        for child in children:
            polled.register(child.end, select.POLLIN)
            polled.register(child.result, 0)  # an error: nobody asks any more
        first = min((child.deadline for child in children), default=math.inf) - time.monotonic()
        ready = dict(polled.poll(None if first == math.inf else max(0, first) * 1000 + 1))
        for child in [child for child in children if child.end in ready]:
            children.remove(child)
            _tell_end(child)
        for child in children:
            child.timed_out = time.monotonic() > child.deadline
            if child.timed_out or child.result in ready:
                _kill_group(child.pid)
        if control.fileno() in ready:
            text, descriptors, _, _ = socket.recv_fds(control, _LARGEST, 3)
            if not text:
                for child in children:
                    _kill_group(child.pid)
                return None
            request = json.loads(text)
            if not (pid := _fork()):
                _keep_its_own(descriptors, [control.detach(), *_descriptors(children)])
                return request
            for descriptor in descriptors[:2]:
                os.close(descriptor)
            _tell(descriptors[2], {"pid": pid})
            deadline = time.monotonic() + request["limit_s"]
            children.append(_Child(pid, os.pidfd_open(pid), descriptors[2], deadline))


def _keep_its_own(descriptors: Sequence[int], others: Sequence[int]) -> None:
    """Gives a child its group, output and errors; it holds open nothing of the server's."""
    os.setpgid(0, 0)
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[1], 2)
    for descriptor in [*descriptors, *others]:
        os.close(descriptor)


def _descriptors(children: Sequence[_Child]) -> list[int]:
    return [each for child in children for each in (child.end, child.result)]


def _fork() -> int:
    # JAX and Python warn of forks; JAX's threads start with its backend, in the children.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def _tell_end(child: _Child) -> None:
    _, status, usage = os.wait4(child.pid, 0)
    said = {
        "code": os.waitstatus_to_exitcode(status),
        "timed_out": child.timed_out,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    _tell(child.result, said)
    os.close(child.result)
    os.close(child.end)


def _tell(asker: int, said: Mapping[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(asker, json.dumps(said).encode() + b"\n")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not yet the leader of its group
        os.kill(pid, signal.SIGKILL)


def _run(words: Sequence[str]) -> None:
    """Does what `python WORDS` does: `-m MODULE ...`, `-c CODE ...` or `FILE ...`."""
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = [words[1], *words[2:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        code = compile(words[1], "<string>", "exec")
    else:
        sys.argv = list(words)
        path = main.__file__ = os.path.abspath(words[0])
        sys.path.insert(0, os.path.dirname(path))
        code = compile(pathlib.Path(path).read_bytes(), path, "exec")
    exec(code, vars(main))


def _tell_jax(env: Mapping[str, str]) -> None:
    import jax

    for name in set(TAKEN_LATER) & set(env):
        value = int(env[name])
        jax.config.update(name.lower(), bool(value) if "DISABLE" in name else value)


def empty_report(folder: pathlib.Path, *_: object, **__: object) -> pathlib.Path:
    """Stands for `run_report.write`: an empty file."""
    (folder / "report.html").touch()
    return folder / "report.html"


def _leave_out_report() -> None:
    from kdnet_jax.reports import run_report

    run_report.write = empty_report


def _end_like_the_interpreter(words: Sequence[str]) -> NoReturn:
    """Runs the program and ends, without the second that clearing all modules would take."""
    code = 0
    try:
        _run(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    for _name in _IMPORTED:
        importlib.import_module(f"kdnet_jax.{_name}")
    importlib.import_module("tensorboardX")  # it brings PyTorch where there is one
    gc.collect()
    gc.freeze()  # what the children share is looked through by none of them
    if _request := _wait_for_request(socket.socket(fileno=int(sys.argv[1]))):
        os.environ.clear()
        os.environ.update(_request["env"])
        os.chdir(_request["cwd"])
        _tell_jax(os.environ)
        if WITHOUT_REPORT in os.environ:
            _leave_out_report()
        _end_like_the_interpreter(_request["words"])
