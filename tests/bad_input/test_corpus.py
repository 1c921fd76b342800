"""The corpus of malformed inputs: exit 2, one plain message, no traceback, nothing written.

A part of the command lines is run; KDNET_WHOLE_CORPUS=1 runs all of them, which takes some minutes.
"""

import os
import pathlib
import re
from collections.abc import Iterable

import pytest

from tests.bad_input import corpus
from tests.helpers import commands, forks

pytestmark = pytest.mark.once

# A process that has read nothing yet holds up to 550.
_MOST_MIB = 900
_BAR = re.compile(r"\d+(case|file|\[|%\|)")
Tried = list[tuple[corpus.Trial, forks.Ended, pathlib.Path]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("bad_input")


@pytest.fixture(scope="module")
def tried(folder: pathlib.Path) -> Tried:
    """Every trial, how it ended, and the folder that it ran in; the inputs are as they were."""
    trials = corpus.build(folder)
    if not os.environ.get("KDNET_WHOLE_CORPUS"):
        trials = corpus.part(trials)
    lines = corpus.lines(trials, folder / "cwd")
    before = _snapshot(folder / "sound") | _snapshot(folder / "inputs")
    ended = forks.run(lines)
    assert _snapshot(folder / "sound") | _snapshot(folder / "inputs") == before
    return list(zip(trials, ended, [line.cwd for line in lines], strict=True))


def _snapshot(folder: pathlib.Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            stat = os.lstat(path)
            found[path] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def _said(ended: forks.Ended) -> list[str]:
    """Returns the lines on standard error, without progress bars."""
    return [line for line in ended.err.splitlines() if line.strip() and not _BAR.search(line)]


def _told(wrong: Iterable[str]) -> str:
    return "\n".join(wrong)


def test_the_corpus_is_large_and_meets_every_command(tried: Tried) -> None:
    inputs = {trial.name.rsplit(":", 1)[0] for trial, _, _ in tried}
    assert len(inputs) > 300
    assert {trial.command for trial, _, _ in tried} == {
        *("main", "predict", "evaluate", "compare", "export"),
        *("check_data", "build_data", "preview_augmentation"),
    }


def test_the_exit_status_is_that_of_a_user_s_mistake(tried: Tried) -> None:
    wrong = [
        f"{trial.name}: {ended.code}, not {trial.code}: {ended.err[-500:]}"
        for trial, ended, _ in tried
        if ended.code != trial.code
    ]
    assert not wrong, _told(wrong)


def test_there_is_one_message_and_it_names_the_file_or_key(tried: Tried) -> None:
    wrong = []
    for trial, ended, _ in tried:
        said = _said(ended)
        if "Traceback" in ended.err or (trial.code < 2 and said):
            wrong.append(f"{trial.name}: {ended.err[-500:]}")
        if trial.code < 2:
            continue
        first = said[0] if said else ""
        # Further lines are a list that belongs to the message.
        others = [line for line in said[1:] if not line.startswith("  ") and line != _LAYOUTS]
        if not first.startswith("error: ") or others or trial.says not in ended.err:
            wrong.append(f"{trial.name} (expected {trial.says!r}): {ended.err[-500:]}")
    assert not wrong, _told(wrong)


_LAYOUTS = "Known layouts:"


def test_check_data_lists_what_is_wrong(tried: Tried) -> None:
    wrong = []
    for trial, ended, _ in tried:
        rows = [line for line in ended.out.splitlines() if line.startswith("error: ")]
        if trial.code == 1 and not any(trial.says in row for row in rows):
            wrong.append(f"{trial.name} (expected {trial.says!r}): {rows}")
    assert not wrong, _told(wrong)


def test_nothing_is_written(tried: Tried) -> None:
    wrong = []
    for trial, _, cwd in tried:
        if trial.code == 0:
            continue
        left = {os.path.relpath(path, cwd) for path in _snapshot(cwd)}
        if left := sorted(path for path in left if not _is_frame(path)):
            wrong.append(f"{trial.name}: {left}")
    assert not wrong, _told(wrong)


def _is_frame(path: str) -> bool:
    """Whether this is the frame of a build that was begun: folders, the lock, TFDS's own notes."""
    parts = pathlib.Path(path).parts
    return parts[0] == "datasets" and (len(parts) < 4 or ".config" in parts or parts[-1] == ".lock")


def test_memory_stays_small(tried: Tried) -> None:
    wrong = [
        f"{trial.name}: {ended.peak_mib:.0f} MiB"
        for trial, ended, _ in tried
        if ended.peak_mib > _MOST_MIB
    ]
    assert not wrong, _told(wrong)


def test_nothing_is_unpickled(tried: Tried, folder: pathlib.Path) -> None:
    del tried  # It has to have run.
    assert not list(folder.rglob("UNPICKLED"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check_data", ["--data_dir=/nowhere/at/all"]),
        ("main", ["--config=configs/student.py:smoke", "--config.optimizer.learning_rate=nan"]),
    ],
)
def test_a_process_of_its_own_ends_alike(command: str, words: list[str]) -> None:
    done = commands.run_anew(command, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
