"""The cost of a method's step: every published combination is known, and its step runs."""

import pathlib
import re

import pytest

from benchmarks import methods
from tests.helpers import commands

pytestmark = pytest.mark.once


def test_every_method_is_timed() -> None:
    folder = pathlib.Path(__file__).parents[2] / "configs/methods"
    assert set(methods.METHODS) == {path.stem for path in folder.glob("[!_]*.py")}


def test_a_method_with_a_projector_and_one_with_mixtures(command_env: dict[str, str]) -> None:
    words = ["--preset=smoke", "--rounds=1", "--method=fitnets", "--method=patient"]
    done = commands.python("-m", "benchmarks.methods", *words, env=command_env)
    assert done.returncode == 0, done.stderr
    ratios = dict(re.findall(r"^(\w+) .* ([\d.]+) of the baseline's$", done.stdout, re.MULTILINE))
    assert list(ratios) == ["baseline", "fitnets", "patient"]
    assert ratios["baseline"] == "1.00"
    assert all(float(ratio) > 0 for ratio in ratios.values())
