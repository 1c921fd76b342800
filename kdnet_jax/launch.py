"""How several processes are started as one run, and how they end together.

Each finds its place among them (places.py); they call the roll (roll_call.py), compare what they
were asked to do, and start jax.distributed. From then on each learns at once when another one ends.
"""

import contextlib
import logging
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import config_dict

from kdnet_jax import errors, own_streams, places, roll_call
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# Another process was lost (sysexits.h, EX_TEMPFAIL): nothing is wrong with the command; try again.
EXIT_LOST = 75
# An exception may be but the echo of another's end: so long the news of it is waited for.
_ECHO_S = 5.0
# Stopped processes wait for each other: process 0 may still be writing the last save.
_STOP_S = 60.0

_company: "_Company | None" = None

flags.disclaim_key_flags()


def define_flags() -> Callable[[], places.Options]:
    """Defines the flags of the start; the function returned reads them once they are parsed."""
    holders = (
        flags.DEFINE_enum(
            "distributed",
            "auto",
            places.MODES,
            "Who says which processes make up the run; auto: the flags below, or else a Slurm step "
            "of several tasks or a TPU pod of several hosts; otherwise the run is one process.",
        ),
        flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, the same on all processes"),
        flags.DEFINE_integer("processes", None, "How many processes make up the run", 1),
        flags.DEFINE_integer("process", None, "Which of them this is, from 0", 0),
        flags.DEFINE_float("start_timeout", 300.0, "Seconds until all must be there", 1.0),
    )
    return lambda: places.Options(*(holder.value for holder in holders))


@contextlib.contextmanager
def start(
    options: places.Options, config: config_dict.ConfigDict, workdir: pathlib.Path
) -> Iterator[None]:
    """Starts the run's other processes' company; call it before any device is touched.

    With one process it does nothing. A mistake ends the program with its message and exit code 2.
    While the block runs, the end of another process ends this one: with the same exit code, or
    with `EXIT_LOST` if it vanished. A block that ends well, or by a stop that saved (128 + signal),
    waits for the others; any other end of it is told to them.

    Args:
        options: the flags.
        config: the run's config, which all processes must share.
        workdir: the run's folder, which all processes must share.
    """
    global _company
    place = _or_exit(lambda: places.find_place(options))
    if place is None:
        yield
        return
    own_streams.separate(place.process)
    _LOG.info(
        f"{place.processes} processes, by {place.told_by}; this is process {place.process}, on "
        f"{socket.gethostname()}. Waiting for all at {place.host}:{place.port}, at most "
        f"{options.start_timeout:g} s"
    )
    _company = _or_exit(lambda: _Company(place, options.start_timeout))
    with _company.till_the_end():
        _or_exit(lambda: _join(place, _company.member, options.start_timeout, config, workdir))
        yield


def member() -> roll_call.Member | None:
    """Returns this process's connection to the others; `None` where `start` found no others.

    Its `gather` may wait for hours and takes no devices: Gloo gives up after 30 minutes.
    """
    return _company.member if _company else None


def _or_exit(action: Callable[[], T]) -> T:
    """Returns what the action does; a UserError is its message and exit code 2."""
    results = []
    errors.exit_on_user_error(lambda: results.append(action()))
    return results[0]


def _join(
    place: places.Place,
    member: roll_call.Member,
    limit_s: float,
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
) -> None:
    # The coordinator refuses at the limit; what takes longer hangs.
    with _limit(limit_s + 20, "the processes found each other, but their start"):
        everybody = member.gather(_facts(config, workdir), None)
        check_alike([each["same"] for each in everybody], [each["host"] for each in everybody])
        try:
            _initialize(place, everybody[0]["port"], limit_s)
            _check_devices(member)
        except RuntimeError as error:
            _let_others_speak(member)
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"JAX cannot start on the devices of process {place.process}, on "
                f"{socket.gethostname()}: {first_line}"
            ) from error


def _let_others_speak(member: roll_call.Member) -> None:
    """Returns after a while, unless an exception here is but the echo of another process's end."""
    if member.ended.wait(_ECHO_S):
        threading.Event().wait()  # The listening thread is ending this process.


def _facts(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    import jax
    from flax import traverse_util

    from kdnet_jax import __version__, provenance

    settings = traverse_util.flatten_dict(config.to_dict(), sep=".")
    return {
        "host": socket.gethostname(),
        "port": _free_port(),
        "same": {
            "--workdir": str(workdir.absolute()),
            **{f"config.{key}": repr(value) for key, value in settings.items()},
            "kdnet_jax's version": __version__,
            "the code's commit": provenance.commit(),
            "JAX's version": jax.__version__,
        },
    }


def check_alike(facts: list[dict[str, str]], hosts: list[str]) -> None:
    """Raises UserError, with the names of what differs, unless all processes run the same.

    Args:
        facts: name -> value of what has to be the same, of each process.
        hosts: the machine of each process.
    """
    for process, own in enumerate(facts):
        differing = [key for key in {**facts[0], **own} if facts[0].get(key) != own.get(key)]
        if differing:
            listed = "; ".join(
                f"{key} is {facts[0].get(key)} on process 0 ({hosts[0]}) and {own.get(key)} on "
                f"process {process} ({hosts[process]})"
                for key in differing[:5]
            )
            more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"the processes do not run the same: {listed}{more}. Start all of them with the "
                "same command and code; runs of their own need --distributed=off."
            )


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return listener.getsockname()[1]


def _initialize(place: places.Place, port: int, limit_s: float) -> None:
    import jax

    # Its SIGTERM handler would replace the one that saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    # A proxy for the web is no way to another process; gRPC would take it.
    os.environ.update(no_grpc_proxy=place.host)
    jax.config.update("jax_check_proxy_envs", False)
    host = f"[{place.host}]" if ":" in place.host else place.host
    jax.distributed.initialize(
        f"{host}:{port}",
        place.processes,
        place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(limit_s),
        shutdown_timeout_seconds=60,
    )


def _check_devices(member: roll_call.Member) -> None:
    """Raises UserError unless all processes have as many devices, and exchange a first value."""
    import jax
    from jax.experimental import multihost_utils

    own = f"{jax.local_device_count()} {jax.default_backend()}"
    all_devices = member.gather(own, None)
    if len(set(all_devices)) > 1:
        listed = "; ".join(f"process {i}: {each}" for i, each in enumerate(all_devices[:16]))
        raise UserError(
            f"the processes have different devices ({listed}). Give each as many of one kind."
        )
    multihost_utils.sync_global_devices("kdnet_jax start")
    _LOG.info(f"All are there: {len(all_devices)} x {own} devices")


class _Company:
    """The run's processes as this one meets them: how it ends, and learns of the others' ends."""

    def __init__(self, place: places.Place, limit_s: float) -> None:
        self._coordinator = None
        if place.process == 0:
            self._coordinator = roll_call.Coordinator(place.port, place.processes, limit_s)
        self.member = roll_call.Member(
            (place.host, place.port),
            place.process,
            place.processes,
            limit_s,
            self._end_with_another,
        )

    @contextlib.contextmanager
    def till_the_end(self) -> Iterator[None]:
        """Ends this process as its block does, with the others told or waited for."""
        code: Any = 0
        try:
            yield
        except SystemExit as end:
            code = end.code or 0
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except BaseException:
            _let_others_speak(self.member)
            traceback.print_exc()
            code = 1
        if not isinstance(code, int):  # sys.exit("a text")
            print(code, file=sys.stderr)
            code = 1
        self._leave(code)

    def _leave(self, code: int) -> None:
        """Leaves in step with the others if all is well or saved, else at once."""
        if code == 0 or code > 128:
            with contextlib.suppress(TimeoutError):
                self.member.gather(code, None if code == 0 else _STOP_S, last=True)
                if code:
                    sys.exit(code)
                return
        self.member.tell_end(code)
        self._exit(code)

    def _end_with_another(self, what: str, code: int | None) -> None:
        if code is None:
            message = (
                f"error: {what}: it was killed, ran out of memory, or its machine is gone; see "
                "its own output. Everything up to the last save is kept; the same command goes on "
                "from there."
            )
            self._exit(EXIT_LOST, message)
        # It has said why; this process may be about to say the same.
        time.sleep(_ECHO_S / 2)
        self._exit(code, f"error: {what}; see its message. This process ends with it.")

    def _exit(self, code: int, message: str = "") -> NoReturn:
        if message:
            print(message, file=sys.stderr)
        if self._coordinator:
            # JAX's service ends with process 0, and aborts those that are still there.
            self._coordinator.wait_for_the_others_to_go(2 * _ECHO_S)
        _exit_now(code)


def _exit_now(code: int) -> NoReturn:
    """Ends this process: the usual way out would wait for the others in a hanging exchange."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


@contextlib.contextmanager
def _limit(seconds: float, what: str) -> Iterator[None]:
    """Ends the program if the block, which may hang outside of Python, takes longer."""

    def give_up() -> None:
        print(
            f"error: {what} was not done within {seconds:g} s. A firewall between the machines, or "
            "a process that found no accelerator, can be the cause; see the others' output.",
            file=sys.stderr,
        )
        _exit_now(errors.EXIT_USER_ERROR)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
