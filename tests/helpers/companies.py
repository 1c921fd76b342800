"""Several real processes of one run, on this machine."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent import futures

from tests.helpers import commands


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run(
    command_lines: Sequence[Sequence[object]],
    environments: Sequence[Mapping[str, str]] = (),
    timeout: float = 120,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs `python -m WORDS` for each command line at the same time, to the end of all.

    Args:
        command_lines: the words after `python -m` of each process.
        environments: what each process's environment has besides that of the tests.
        timeout: seconds after which a process counts as hanging, and the test fails.
    """

    def end(words: Sequence[object], own: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return commands.python("-m", *words, env=os.environ | dict(own), timeout=timeout)

    with futures.ThreadPoolExecutor(len(command_lines)) as pool:
        return list(pool.map(end, command_lines, environments or [{}] * len(command_lines)))
