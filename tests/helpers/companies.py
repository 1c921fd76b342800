"""Several real processes of one run, on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

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
    path = os.pathsep.join([str(commands.ROOT), os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=commands.ROOT,
            env=os.environ | {"PYTHONPATH": path} | dict(own),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, own in zip(command_lines, environments or [{}] * len(command_lines), strict=True)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, said, strict=True)
    ]
