"""The command lines of the documents."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping

from tests.helpers import commands

ROOT = pathlib.Path(__file__).parents[2]
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MODULE = r"python -m (?:kdnet_jax|data_builders|benchmarks|docs|notebooks)\.(?!NAME)"
_INLINE = re.compile(rf"`({_MODULE}[^`]+)`")
_VARIABLE = re.compile(r'^(\w+)="([^"]*)"$', re.MULTILINE)


def blocks(document: pathlib.Path) -> Iterator[str]:
    """Yields what stands in the fenced blocks of a document, lines that go on joined."""
    for match in _FENCED.finditer(document.read_text("utf-8")):
        yield match.group(1).replace("\\\n", " ")


def shell_lines(document: pathlib.Path) -> list[str]:
    """Returns the lines of the fenced blocks that run a module, in their order."""
    lines = [line for block in blocks(document) for line in block.splitlines()]
    return [line for line in lines if re.match(_MODULE, line)]


def all_commands(document: pathlib.Path) -> Iterator[list[str]]:
    """Yields the words of every `python -m` of a document, in fenced blocks and in its text.

    Left out is what stands for something else: brackets around what may be given, "...".
    """
    text = document.read_text("utf-8")
    inline = [" ".join(found.split()) for found in _INLINE.findall(_FENCED.sub("", text))]
    for block in [*blocks(document), *inline]:
        variables = dict(_VARIABLE.findall(block))
        for line in block.splitlines():
            for part in line.split("&&"):
                if found := re.search(_MODULE, part):
                    yield _words(part[found.start() :], variables)


def _words(line: str, variables: Mapping[str, str]) -> list[str]:
    line = re.sub(r"\$(\w+)", lambda match: variables[match.group(1)], line)
    words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    words = [word.removesuffix("...") for word in words[2:]]
    return [word for word in words if word and not word.endswith("=")]


def replaced(line: str, by: Mapping[str, str]) -> str:
    """Returns a command line with each text of the table replaced, in the table's order."""
    for old, new in by.items():
        line = line.replace(old, new)
    return line


def run(
    line: str, packages: pathlib.Path, folder: pathlib.Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a shell, as it is written; it has to succeed.

    Args:
        line: the command line.
        packages: where kdnet_jax is imported from.
        folder: where the command runs.
        env: the other variables of the environment.
    """
    if not re.search(r"[$*?~<>|;&`(){}\\]", line):
        words = shlex.split(line, comments=True)
        done = commands.python(*words[1:], cwd=folder, env=env, packages=packages)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**env, "PATH": path, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done
