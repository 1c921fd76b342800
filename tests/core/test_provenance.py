"""What is needed to repeat a number."""

import pathlib
import re
import shlex
import sys

import pytest

from kdnet_jax.core import provenance


def test_versions_machine_and_command() -> None:
    found = provenance.collect()
    assert {"kdnet_jax", "commit", "python", "jax", "flax", "device", "command"} <= found.keys()
    assert all(found.values())
    assert re.match(r"\d+ x ", found["device"])


def test_outside_of_a_checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site" / "core" / "provenance.py"))
    assert provenance.commit() == "unknown"


def test_the_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=configs/student.py:smoke", "--x=a b"])
    assert shlex.split(provenance.command())[-2:] == sys.argv[1:]
