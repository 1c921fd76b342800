"""Mistakes on the command line: exit 2, one plain message, no traceback."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STUDENT = "--config=configs/student.py:smoke"
MISTAKES = {
    "unknown key": ([STUDENT, "--config.train.step=3"], ["--config.train.step", "steps"]),
    "unknown key of the default config": (["--config.tain=3"], ["--config.tain", "no key 'tain'"]),
    "unknown preset": (["--config=configs/student.py:smok"], ["smok", "did you mean 'smoke'"]),
    "wrong type": ([STUDENT, "--config.train.steps=many"], ["config.train.steps", "many"]),
    "extra word": ([STUDENT, "extra"], ["'extra' belongs to no flag"]),
    "missing config": (["--config=configs/absent.py"], ["absent.py", "configs/student.py"]),
    "unknown flag": ([STUDENT, "--workdri=x"], ["workdri"]),
    "one number": ([STUDENT, "--config.loader.patch=16"], ["loader.patch"]),
    "missing folder": ([STUDENT, "--config.data.data_dir=/absent/scans"], ["/absent/scans"]),
    "uneven mesh": ([STUDENT, "--config.mesh.data=3"], ["mesh.data"]),
    "no scans": (["--config=configs/baseline.py:brats"], ["data.data_dir"]),
}


@pytest.fixture(scope="module")
def ended(
    command_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """Exit status and standard error of every mistake, by name."""
    folder = tmp_path_factory.mktemp("mistakes")

    def start(number: int, words: Sequence[str]) -> subprocess.Popen[str]:
        words = [*words, f"--workdir={folder / str(number)}"]
        return subprocess.Popen(
            [sys.executable, "-m", "kdnet_jax.main", *words],
            cwd=ROOT,
            env=command_env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    ended, names = {}, list(MISTAKES)
    for first in range(0, len(names), 2):  # two at a time
        pair = names[first : first + 2]
        running = {name: start(names.index(name), MISTAKES[name][0]) for name in pair}
        for name, process in running.items():
            said = process.communicate(timeout=120)[1]
            ended[name] = (process.returncode, said)
    return ended


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_plain_message(ended: dict[str, tuple[int, str]], name: str) -> None:
    code, said = ended[name]
    assert code == 2, said
    assert said.startswith("error: "), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    for words in MISTAKES[name][1]:
        assert words in said
