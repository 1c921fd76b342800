"""Programs that the tests start in forked processes run as `python` would run them."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.helpers import commands

pytestmark = pytest.mark.once

_TOLD = "import os, sys; print(sys.argv, os.getcwd(), sys.path[0], os.environ.get('http_proxy'))"


@pytest.mark.parametrize(
    "code",
    [
        _TOLD,
        "raise SystemExit(3)",
        "import sys; sys.exit('a text')",
        "import atexit; atexit.register(print, 'last')",
        "import os; os.kill(os.getpid(), 9)",
        "import threading, time; threading.Timer(0.2, print, ['from a thread']).start()",
    ],
)
def test_it_ends_and_says_the_same(code: str, tmp_path: pathlib.Path) -> None:
    env = os.environ | {"http_proxy": "b c"}
    words = ["-c", code, "x", "y z"]
    expected = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    done = commands.python(*words, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (
        *(expected.returncode, expected.stdout, expected.stderr),
    )


def test_it_finds_programs_on_the_path_that_it_is_given(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho found\n", "utf-8")
    (tmp_path / "tool").chmod(0o755)
    code = "import subprocess; print(subprocess.run(['tool'], capture_output=True).stdout)"
    done = commands.python("-c", code, env=os.environ | {"PATH": str(tmp_path)})
    assert done.stdout.strip() == r"b'found\n'", done.stderr


def test_an_error_has_its_traceback() -> None:
    done = commands.python("-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_file_and_a_module_are_the_main_module(tmp_path: pathlib.Path) -> None:
    (tmp_path / "told.py").write_text(f"{_TOLD}\nprint(__name__, __file__)", "utf-8")
    for words in (["told.py", "x"], ["-m", "told", "x"]):
        expected = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        done = commands.python(*words, cwd=tmp_path)
        assert (done.stdout, done.stderr) == (expected.stdout, "")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=3", "3 cpu"),
        ("JAX_NUM_CPU_DEVICES", "2", "2 cpu"),
        ("JAX_DISABLE_MOST_OPTIMIZATIONS", "1", "1 cpu optimizations off"),
    ],
)
def test_jax_has_the_settings_of_the_environment(name: str, value: str, said: str) -> None:
    code = (
        "import jax; off = jax.config._read('jax_disable_most_optimizations');"
        "print(jax.device_count(), jax.default_backend(), *['optimizations off'] * off)"
    )
    done = commands.python("-c", code, env=os.environ | {name: value})
    assert done.stdout.strip() == said, done.stderr


def test_what_takes_too_long_is_killed_with_its_children(tmp_path: pathlib.Path) -> None:
    code = (
        "import pathlib, subprocess, time; child = subprocess.Popen(['sleep', '100']);"
        "pathlib.Path('pid').write_text(str(child.pid)); time.sleep(100)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        commands.python("-c", code, cwd=tmp_path, timeout=3)
    status = pathlib.Path("/proc", (tmp_path / "pid").read_text("utf-8"), "status")
    deadline = time.monotonic() + 20
    while status.exists() and "zombie" not in status.read_text("utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
