"""Real processes on loopback: they start together, or say why not, and end together."""

import pathlib
import signal
import subprocess
from collections.abc import Sequence

import pytest

from kdnet_jax import launch
from kdnet_jax.errors import UserError
from tests.helpers import commands, companies

SAID = "said [{'process': 0}, {'process': 1}]"


def together(
    *own_words: Sequence[str], environments: Sequence[dict] = (), module: str = "launched"
) -> list[subprocess.CompletedProcess[str]]:
    """Runs tests/helpers/<module>.py once for each list of words, as one run."""
    start = [f"--coordinator=127.0.0.1:{companies.free_port()}", f"--processes={len(own_words)}"]
    return companies.run(
        [
            [f"tests.helpers.{module}", *start, f"--process={number}", *words]
            for number, words in enumerate(own_words)
        ],
        environments,
    )


def test_two_processes_exchange_and_the_first_alone_speaks() -> None:
    # A proxy for the web must not stand between them.
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    first, second = together([], [], environments=[proxy, proxy])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("2 processes, by flags; this is process 0, on ")
    assert lines[1:] == ["All are there: 2 x 1 cpu devices", "numbers [0, 1]", SAID]
    assert first.stderr == "process 0 works\n"
    assert second.stdout == ""
    assert second.stderr == "[process 1] process 1 works\n"


@pytest.mark.parametrize("what", ["kill", "kill while others rest"])
def test_when_one_is_killed_the_other_says_so_and_ends(what: str) -> None:
    words = [f"--then=1:{what}"]
    first, second = together(words, words)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == launch.EXIT_LOST == 75
    said = first.stderr.splitlines()
    assert len(said) == 2, first.stderr
    assert said[1].startswith("error: process 1 on ")
    assert "was lost: it was killed, ran out of memory" in said[1]


def test_when_the_first_is_killed_the_other_ends() -> None:
    words = ["--then=0:kill"]
    first, second = together(words, words)
    assert first.returncode == -signal.SIGKILL
    # JAX's own service dies with process 0; the other learns of it from both at the same time,
    # and JAX may abort before the message is out.
    assert second.returncode in (launch.EXIT_LOST, -signal.SIGABRT)
    assert "process 0, which the others report to, was lost" in second.stderr or (
        "JAX distributed service detected fatal errors" in second.stderr
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_mistake_of_one_ends_all_with_exit_code_2(number: int) -> None:
    words = [f"--then={number}:mistake"]
    done = together(words, words)
    assert [each.returncode for each in done] == [2, 2], done
    assert "error: case 7 is gone\n" in done[number].stderr
    other = done[1 - number].stderr
    assert f"error: process {number} on " in other
    assert "ended with exit code 2; see its message" in other
    assert "Traceback" not in done[0].stderr + done[1].stderr


def test_a_bug_of_one_ends_all_with_its_traceback() -> None:
    words = ["--then=1:bug"]
    first, second = together(words, words)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "[process 1] ZeroDivisionError: a mistake in the code" in second.stderr
    assert "Traceback" not in first.stderr


def test_all_leave_together_after_a_stop_that_saved() -> None:
    words = ["--then=0:stopped"]
    assert [each.returncode for each in together(words, words)] == [143, 143]


def test_different_configs_are_named_to_all() -> None:
    done = together(["--config.train.steps=6"], ["--config.train.steps=8", "--workdir=other"])
    for each in done:
        assert each.returncode == 2, each.stderr
        assert "the processes do not run the same: " in each.stderr
        assert "config.train.steps is 6 on process 0 (" in each.stderr
        assert "and 8 on process 1 (" in each.stderr
        assert "--workdir is " in each.stderr
        assert "Traceback" not in each.stderr


def test_unequal_devices_are_refused() -> None:
    two = {"JAX_NUM_CPU_DEVICES": "2"}
    for each in together([], [], environments=[two, {}]):
        assert each.returncode == 2, each.stderr
        assert "different devices (process 0: 2 cpu; process 1: 1 cpu)" in each.stderr


def test_a_coordinator_that_is_not_there(tmp_path: pathlib.Path) -> None:
    port = companies.free_port()
    done = commands.run(
        "main",
        "--config=configs/student.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--coordinator=127.0.0.1:{port}",
        "--processes=2",
        "--process=1",
        "--start_timeout=1",
    )
    assert done.returncode == 2
    assert f"error: the coordinator 127.0.0.1:{port} did not answer within 1 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_flags_of_main() -> None:
    done = commands.run("main", "--config=configs/student.py:smoke", "--process=1")
    assert done.returncode == 2
    assert "error: several processes need" in done.stderr
    assert done.stdout == ""


def test_one_process_starts_no_service() -> None:
    program = """
import pathlib, sys, jax
from kdnet_jax import launch, places
with launch.start(places.Options(), {}, pathlib.Path("run")):
    print("alone", jax.distributed.is_initialized(), launch.member())
"""
    done = commands.python("-c", program)
    assert done.stdout == "alone False None\n", done.stderr


def test_check_alike_names_the_first_five_differences() -> None:
    same = {f"config.k{i}": "1" for i in range(9)}
    launch.check_alike([same, dict(same)], ["a", "b"])
    other = dict.fromkeys(same, "2")
    with pytest.raises(UserError, match=r"config.k4 is 1 on process 0 \(a\) and 2 on .* 4 more"):
        launch.check_alike([same, dict(same), other], ["a", "b", "c"])
    absent = dict.fromkeys(list(same)[1:], "1")
    with pytest.raises(UserError, match=r"config.k0 is 1 on process 0 .* and None on process 1"):
        launch.check_alike([same, absent], ["a", "b"])
