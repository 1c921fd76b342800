"""Runs Python programs, each in a process of its own, without paying each one's imports.

A server (fork_server.py) imports what the commands import, and forks for every program. There is
one for every environment that is asked for, as much of it is read when modules are imported.
"""

import atexit
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import BinaryIO

from tests.helpers import fork_server

ROOT = pathlib.Path(__file__).parents[2]
# Read by nothing that is imported, but by what starts later.
_READ_LATE = (
    "JOB_COMPLETION_INDEX",
    "PATH",
    "PYTEST_CURRENT_TEST",
    "XLA_FLAGS",
    "http_proxy",
    "https_proxy",
    fork_server.WITHOUT_REPORT,
    *fork_server.TAKEN_LATER,
)
# Each holds some 400 MB.
_SERVERS = 2


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line: `python -m kdnet_jax.<command> <words>`, and the folder that it runs in."""

    command: str
    words: tuple[str, ...]
    cwd: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended, what it said, and the most memory that it held, in MiB."""

    code: int
    out: str
    err: str
    peak_mib: float
    timed_out: bool


def run(
    lines: Sequence[Line],
    *,
    limit_s: float = 60,
    at_once: int = 2,
    env: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Runs the command lines, `at_once` at a time, with `env` besides the tests' environment."""

    def end(line: Line) -> Ended:
        words = ["-m", f"kdnet_jax.{line.command}", *line.words]
        return python(words, cwd=line.cwd, env=os.environ | dict(env or {}), limit_s=limit_s)

    with futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(end, lines))


def python(
    words: Sequence[str],
    *,
    cwd: pathlib.Path,
    env: Mapping[str, str],
    limit_s: float,
    packages: pathlib.Path = ROOT,
) -> Ended:
    """Runs `python WORDS`, killed with its children after `limit_s` seconds.

    Args:
        words: `-m MODULE ...`, `-c CODE ...` or `FILE ...`.
        cwd: the folder that it runs in.
        env: its environment; `packages` comes first in its PYTHONPATH.
        limit_s: seconds.
        packages: where kdnet_jax is imported from.
    """
    env = with_packages(env, packages)
    with started(words, cwd=cwd, env=env, limit_s=limit_s) as running:
        return running.wait()


@contextlib.contextmanager
def started(
    words: Sequence[str], *, cwd: pathlib.Path, env: Mapping[str, str], limit_s: float
) -> Iterator["Running"]:
    """Starts `python WORDS`; it is killed at the end of the context."""
    request = {"words": words, "cwd": str(cwd), "env": env, "limit_s": limit_s}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        # The server kills what nobody waits for.
        _server(env).ask(request, out.fileno(), err.fileno()) as answer,
    ):
        yield Running(json.loads(answer.readline())["pid"], answer, out, err)


class Running:
    """A program that runs.

    Attributes:
        pid: its process.
    """

    def __init__(self, pid: int, answer: io.FileIO, out: BinaryIO, err: BinaryIO) -> None:
        self.pid = pid
        self._answer = answer
        self._files = (out, err)

    def is_over(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self._answer], [], [], 0)[0])

    def kill(self) -> None:
        """Sends it SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Waits for its end; to be called once."""
        ended = json.loads(self._answer.readline())
        texts = map(_text, self._files)
        return Ended(ended["code"], *texts, ended["peak_mib"], ended["timed_out"])


def with_packages(env: Mapping[str, str], packages: pathlib.Path = ROOT) -> dict[str, str]:
    """Returns the environment with a folder, the checkout, first in its PYTHONPATH."""
    path = [str(packages), *filter(None, [env.get("PYTHONPATH")])]
    return dict(env) | {"PYTHONPATH": os.pathsep.join(path)}


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


class _Server:
    """A server, ended by the end of the process that asks it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        without = {name: value for name, value in env.items() if name not in _READ_LATE}
        with other:
            self._process = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(other.fileno())],
                env=without,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )

    def ask(self, request: Mapping[str, object], out: int, err: int) -> io.FileIO:
        """Starts the program of a request; returns where a line each tells its start and end."""
        result, other = os.pipe()
        answer = io.FileIO(result)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [out, err, other])
        finally:
            os.close(other)
        return answer

    def end(self) -> None:
        self._socket.close()
        self._process.wait()


_lock = threading.Lock()
# By environment, the one that was asked last at the end.
_servers: dict[frozenset, _Server] = {}


def _server(env: Mapping[str, str]) -> _Server:
    key = frozenset(item for item in env.items() if item[0] not in _READ_LATE)
    with _lock:
        if key not in _servers and len(_servers) == _SERVERS:
            _servers.pop(next(iter(_servers))).end()
        _servers[key] = _servers.pop(key, None) or _Server(env)
        return _servers[key]


@atexit.register
def _end() -> None:
    for server in _servers.values():
        server.end()
