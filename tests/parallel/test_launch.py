"""Real processes on loopback: they start together, or say why not, and end together."""

import pathlib
import signal
import socket
import subprocess
from collections.abc import Sequence

import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.parallel import launch
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


def said(process: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns what a process wrote on standard output, without what Gloo prints from C++."""
    return [line for line in process.stdout.splitlines() if not line.startswith("[Gloo]")]


def test_two_processes_exchange_and_the_first_alone_speaks() -> None:
    first, second = together([], [])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert said(first) == ["2 processes with 2 x cpu devices", "numbers [0, 1]", SAID]
    assert said(second) == []
    assert "process 1 works\n" in second.stderr


@pytest.mark.once
@pytest.mark.parametrize("number", [0, 1])
def test_when_one_is_killed_the_other_ends(number: int) -> None:
    words = [f"--then={number}:kill"]
    done = together(words, words)
    assert done[number].returncode == -signal.SIGKILL
    # An exchange that breaks is an exception; where JAX notices first, it aborts.
    assert done[1 - number].returncode in (1, -signal.SIGABRT)


@pytest.mark.once
@pytest.mark.parametrize("number", [0, 1])
def test_a_mistake_of_one_ends_all_with_exit_code_2(number: int) -> None:
    words = [f"--then={number}:mistake"]
    done = together(words, words)
    assert [each.returncode for each in done] == [2, 2], done
    assert "error: case 7 is gone\n" in done[number].stderr
    other = done[1 - number].stderr
    assert f"error: process {number} ended with exit code 2; see its message" in other
    assert "Traceback" not in done[0].stderr + done[1].stderr


@pytest.mark.once
def test_a_bug_of_one_ends_all_with_its_traceback() -> None:
    words = ["--then=1:bug"]
    first, second = together(words, words)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "ZeroDivisionError: a mistake in the code" in second.stderr
    assert "Traceback" not in first.stderr


def test_all_leave_together_after_a_stop_that_saved() -> None:
    words = ["--then=0:stopped"]
    assert [each.returncode for each in together(words, words)] == [143, 143]


@pytest.mark.once
def test_different_configs_are_named_to_all() -> None:
    done = together(["--config.train.steps=6"], ["--config.train.steps=8", "--workdir=other"])
    for each in done:
        assert each.returncode == 2, each.stderr
        assert "the processes do not run the same: " in each.stderr
        assert "config.train.steps is 6 on process 0 and 8 on process 1" in each.stderr
        assert "--workdir is " in each.stderr
        assert "Traceback" not in each.stderr


@pytest.mark.once
def test_processes_that_are_missing_and_different_numbers_of_them() -> None:
    port = companies.free_port()
    start = ["tests.helpers.launched", f"--coordinator=127.0.0.1:{port}", "--start_timeout=4"]
    for counts in ((3, 3), (3, 2), (2, 3)):
        done = companies.run(
            [[*start, f"--processes={n}", f"--process={i}"] for i, n in enumerate(counts)]
        )
        for each in done:
            assert each.returncode == 2, each.stderr
            said = "--processes is 2 on process 0 and 3 on process 1"
            assert "not all of them are there" in each.stderr or said in each.stderr
            assert "Traceback" not in each.stderr


def test_unequal_devices_are_refused() -> None:
    two = {"JAX_NUM_CPU_DEVICES": "2"}
    for each in together([], [], environments=[two, {}]):
        assert each.returncode == 2, each.stderr
        assert (
            "the devices of a process is 2 cpu on process 0 and 1 cpu on process 1" in each.stderr
        )


def test_a_coordinator_that_is_not_there(tmp_path: pathlib.Path) -> None:
    port = companies.free_port()
    done = commands.run(
        "main",
        "--config=configs/student.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--coordinator=127.0.0.1:{port}",
        "--processes=2",
        "--process=1",
        "--start_timeout=3",
    )
    assert done.returncode == 2
    assert "error: the processes cannot start together: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        words = [f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process=0"]
        (done,) = companies.run([["tests.helpers.launched", *words]])
    assert done.returncode == 2
    assert f"port {port} of this machine cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--process=1"], "error: several processes need"),
        (
            ["--coordinator=127.0.0.1:9", "--processes=4", "--process=4"],
            "error: the processes cannot start together: process_id and num_processes must be",
        ),
    ],
)
def test_a_mistake_in_the_flags_of_main(flags: list[str], said: str) -> None:
    done = commands.run("main", "--config=configs/student.py:smoke", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinator": ""}, "missing: --coordinator=HOST:PORT"),
        ({"processes": None}, "missing: --processes=N"),
        ({"process": None}, "missing: --process=I"),
        ({"coordinator": "node1"}, "--coordinator is 'node1': .* such as node1:4242"),
        ({"coordinator": "node1:"}, "--coordinator is 'node1:'"),
        ({"mode": "off"}, "--distributed=off starts one process"),
    ],
)
def test_contradictions_between_flags(change: dict, said: str) -> None:
    given = {"coordinator": "node1:4242", "processes": 4, "process": 3}
    with pytest.raises(UserError, match=said):
        launch.find_processes(launch.Options(**given | change))


SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_NTASKS": "3"}, {}),
    ],
)
def test_jax_finds_the_processes(
    environment: dict, found: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*SLURM, "SLURM_NTASKS"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.find_processes(launch.Options()) == found
    assert launch.find_processes(launch.Options("off")) is None


def test_one_process_starts_no_service() -> None:
    program = """
import pathlib, sys, jax
from kdnet_jax.parallel import launch
with launch.start(launch.Options(), {}, pathlib.Path("run")):
    print("alone", jax.distributed.is_initialized())
"""
    done = commands.python("-c", program)
    assert done.stdout == "alone False\n", done.stderr
