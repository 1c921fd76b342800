"""Start of several processes as one run, by `jax.distributed`, and their common end."""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pathlib
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import flags
from ml_collections import config_dict

from kdnet_jax import errors
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)
# Under this name a process that fails publishes its number and exit code.
_FAILED = "failed"
# Seconds between the news of another's failure and this process's end.
_ECHO_S = 2
# Seconds that processes wait for each other at their end, and, after a stop, before that.
_END_S, _STOP_S = 10, 60

_leaving = threading.Lock()

flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of the start.

    Attributes:
        mode: --distributed, "auto" or "off".
        coordinator: "HOST:PORT" of process 0, or "".
        processes: how many there are, if given.
        process: which of them this is, if given.
        start_timeout: seconds within which all have to be there.
    """

    mode: str = "auto"
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    start_timeout: float = 300.0


def define_flags() -> Callable[[], Options]:
    """Defines the flags of the start; the function returned reads them once they are parsed."""
    mode = flags.DEFINE_enum(
        "distributed",
        "auto",
        ("auto", "off"),
        "auto: the processes of the flags below, or else those that JAX finds (Slurm, Open "
        "MPI, Kubernetes, a TPU pod), or else one process; off: one process.",
    )
    coordinator = flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, the same on all processes"
    )
    count = flags.DEFINE_integer("processes", None, "How many processes make up the run", 1)
    process = flags.DEFINE_integer("process", None, "Which of them this is, from 0", 0)
    timeout = flags.DEFINE_float("start_timeout", 300.0, "Seconds until all must be there", 1.0)
    return lambda: Options(mode.value, coordinator.value, count.value, process.value, timeout.value)


@contextlib.contextmanager
def start(
    options: Options, config: config_dict.ConfigDict, workdir: pathlib.Path
) -> Iterator[None]:
    """Connects the run's processes; call it before any device is touched.

    With one process it does nothing. A mistake ends the program with its message and exit code 2.
    Only process 0 writes to standard output. Where the block ends, the processes wait for each
    other, after a failure for a few seconds.

    Args:
        options: the flags.
        config: the run's config, which all processes must share.
        workdir: the run's folder, which all processes must share.
    """
    found = []
    errors.exit_on_user_error(lambda: found.append(find_processes(options)))
    if found[0] is None:
        yield
        return
    import jax

    from kdnet_jax.parallel import processes

    try:
        errors.exit_on_user_error(lambda: _initialize(found[0], options))
        listener = threading.Thread(target=_end_with_another, daemon=True)
        listener.start()
        errors.exit_on_user_error(lambda: _check_alike(config, workdir, options))
        yield
        processes.gather("the end")
        jax.distributed.shutdown()
        listener.join()
    except SystemExit as end:
        _leave(int(end.code or 0))
    except BaseException:
        _leave(1, traceback.format_exc())


def find_processes(options: Options) -> typed.Json | None:
    """Returns arguments for `jax.distributed.initialize`; `None` if this is the only process.

    Raises:
        UserError: for flags that contradict each other.
    """
    given = {
        "--coordinator=HOST:PORT": options.coordinator,
        "--processes=N": options.processes,
        "--process=I": options.process,
    }
    missing = [flag for flag, value in given.items() if value in ("", None)]
    if options.mode == "off" and len(missing) < len(given):
        raise UserError(
            "--distributed=off starts one process, but --coordinator, --processes or --process is "
            "given too: leave them out, or leave out --distributed=off."
        )
    if options.mode == "off":
        return None
    if len(missing) == len(given):
        return {} if _count_by_jax(options) > 1 else None
    if missing:
        raise UserError(
            f"several processes need {', '.join(given)}; missing: {', '.join(missing)}. (In a "
            "Slurm step or on a TPU pod give none of them; they are found.)"
        )
    if not re.fullmatch(r".+:\d+", options.coordinator):
        raise UserError(
            f"--coordinator is {options.coordinator!r}: write the machine of process 0 and a free "
            "port there, such as node1:4242."
        )
    return {
        "coordinator_address": options.coordinator,
        "num_processes": options.processes,
        "process_id": options.process,
        "cluster_detection_method": "deactivate",
    }


def _count_by_jax(options: Options) -> int:
    """Returns how many processes JAX finds by the machine's environment; 1 if it finds nothing."""
    # jax.distributed.initialize raises where there is nothing to find, and gives the only task of
    # a Slurm step one of its GPUs.
    from jax._src import clusters

    try:
        count = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(options.start_timeout)
        )[1]
    except Exception as error:
        raise UserError(
            f"JAX cannot find out which processes make up the run: {_first_line(error)}. Give "
            "--coordinator, --processes and --process, or --distributed=off for one process."
        ) from error
    return count or 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_port(coordinator: str) -> None:
    """Raises UserError unless this machine can listen there: JAX 0.10 crashes if it cannot."""
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--coordinator={coordinator}: port {port} of this machine cannot be listened on "
            f"({error}). Wait for an earlier run that is still ending, or give another port, the "
            "same on all processes."
        ) from error


def _initialize(found: typed.Json, options: Options) -> None:
    import jax

    if found.get("process_id") == 0:
        _check_port(options.coordinator)
    # Its SIGTERM handler would replace the one that saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(options.start_timeout, _give_up, [options])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **found,
            # JAX would abort the program then.
            initialization_timeout=int(options.start_timeout) + 60,
            shutdown_timeout_seconds=_END_S,
        )
        jax.devices()
    except (RuntimeError, ValueError) as error:
        raise UserError(_not_started(options, _first_line(error))) from error
    finally:
        timer.cancel()
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    _LOG.info(
        f"{jax.process_count()} processes with {jax.device_count()} x {jax.default_backend()} "
        "devices"
    )


def _give_up(options: Options) -> None:
    print("error:", _not_started(options, "not all of them are there"), file=sys.stderr, flush=True)
    os._exit(errors.EXIT_USER_ERROR)


def _not_started(options: Options, reason: str) -> str:
    return (
        f"the processes cannot start together: {reason}. Start all of them within --start_timeout="
        f"{options.start_timeout:g} seconds, with the same --coordinator=HOST:PORT (a free port of "
        "the machine of process 0, open to the others) and --processes, each with its own "
        "--process from 0."
    )


def _check_alike(config: config_dict.ConfigDict, workdir: pathlib.Path, options: Options) -> None:
    """Raises UserError, with the names of what differs, unless all processes run the same."""
    import jax
    from flax import traverse_util
    from jax.experimental import multihost_utils

    from kdnet_jax import __version__
    from kdnet_jax.core import provenance
    from kdnet_jax.parallel import processes

    settings = traverse_util.flatten_dict(config.to_dict(), sep=".")
    own = {
        "--workdir": str(workdir.absolute()),
        "--processes": options.processes,
        **{f"config.{key}": repr(value) for key, value in settings.items()},
        "the version of kdnet_jax": __version__,
        "the code's commit": provenance.commit(),
        "the version of JAX": jax.__version__,
        "the devices of a process": f"{jax.local_device_count()} {jax.default_backend()}",
    }
    first, *others = processes.gather(own)
    for number, other in enumerate(others, 1):
        differing = [
            f"{key} is {first.get(key)} on process 0 and {other.get(key)} on process {number}"
            for key in {**first, **other}
            if first.get(key) != other.get(key)
        ]
        if differing:
            raise UserError(
                f"the processes do not run the same: {'; '.join(differing[:5])}. Start all of them "
                "with the same command and code; independent runs need --distributed=off."
            )
    # Now that all are here: Gloo gives the first exchange 30 seconds.
    multihost_utils.sync_global_devices("kdnet_jax start")


def _end_with_another() -> None:
    """Ends this process some seconds after another one failed: it may be about to do the same."""
    import jax

    from kdnet_jax.parallel import processes

    try:
        number, code = processes.read(_FAILED)
    except jax.errors.JaxRuntimeError:  # The run is over.
        return
    time.sleep(_ECHO_S)
    _leave(
        code,
        f"error: process {number} ended with exit code {code}; see its message. This process ends "
        "with it.\n",
    )


def _leave(code: int, message: str = "") -> NoReturn:
    """Ends this process: the usual way out would wait for computations that the others left."""
    import jax
    from jax._src import distributed

    from kdnet_jax.parallel import processes

    if not _leaving.acquire(blocking=False):
        threading.Event().wait()  # The other thread ends this process.
    sys.stderr.write(message)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.suppress(Exception):  # Another failed first, or there is no connection.
        if code > 128:  # A stop that saved: process 0 may still be writing.
            processes.meet("stop", _STOP_S)
        processes.publish(_FAILED, [distributed.global_state.process_id, code])
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
