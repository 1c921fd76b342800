"""The kernels are compiled once, and where they are unavailable the reason is reported."""

import os
import pathlib
import subprocess
import sys

import pytest

from kdnet_jax.models.kernels import build
from tests.helpers import kernels

CHOOSE = "from kdnet_jax.models import layers; print(layers.choose_form({!r}))"


def choose(setting: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Chooses the form in a process of its own, since the library is loaded once in each."""
    command = [sys.executable, "-c", CHOOSE.format(setting)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.once
@kernels.needs_onednn
def test_compiled_once_and_then_taken_from_the_cache(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    env = command_env | {"XDG_CACHE_HOME": os.fspath(tmp_path)}
    first, second = choose("auto", env), choose("auto", env)
    assert [done.stdout.strip() for done in (first, second)] == ["onednn", "onednn"]
    assert "Compiling the CPU kernels" in first.stderr
    assert "Compiling" not in second.stderr
    # One library and nothing left beside it.
    assert [path.suffix for path in (tmp_path / "kdnet_jax").iterdir()] == [".so"]


def test_without_a_compiler_xlas_own_form_serves_and_the_remedy_is_told(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    env = command_env | {"XDG_CACHE_HOME": os.fspath(tmp_path), "PATH": os.fspath(tmp_path)}
    env.pop("CXX", None)
    done = choose("auto", env)
    assert done.stdout.strip() == "planes"
    assert done.stderr.count("no C++ compiler was found: install g++") == 1
    asked = choose("onednn", env)
    assert asked.returncode != 0
    assert "model.convolutions is onednn, but that is unavailable: no C++ compiler" in asked.stderr


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    env = command_env | {"XDG_CACHE_HOME": os.fspath(cache), "CXX": os.fspath(compiler)}
    done = choose("auto", env)
    assert done.stdout.strip() == "planes"
    assert f"{compiler} could not compile them (fatal: no such thing)" in done.stderr
    assert list((cache / "kdnet_jax").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = choose("auto", command_env | {"XDG_CACHE_HOME": os.fspath(blocked)})
    assert done.stdout.strip() == "planes"
    assert f"{blocked}/kdnet_jax cannot be written" in done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(build.Unavailable, match="pip install onednn-that-is-not"):
        build._installed("onednn-that-is-not", "libdnnl.so.3")
