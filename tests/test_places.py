"""Which of a run's processes this is, from flags and from schedulers' environments."""

import pathlib
import subprocess
import sys

import pytest

from kdnet_jax import places
from kdnet_jax.errors import UserError
from tests.helpers import commands

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
FLAGS = {"coordinator": "node1:4242", "processes": 4, "process": 3}


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*SLURM, "JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES", "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)


def _set(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_alone_where_nothing_says_otherwise() -> None:
    assert places.find_place(places.Options()) is None


def test_flags() -> None:
    place = places.find_place(places.Options(**FLAGS))
    assert place == places.Place("node1", 4242, 4, 3, "flags")
    ipv6 = places.find_place(places.Options("flags", "[fd00::1]:99", 2, 0))
    assert (ipv6.host, ipv6.port) == ("fd00::1", 99)


def test_one_process_by_flags_is_alone() -> None:
    assert places.find_place(places.Options("auto", "node1:4242", 1, 0)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinator": ""}, "missing: --coordinator=HOST:PORT"),
        ({"processes": None}, "missing: --processes=N"),
        ({"process": None}, "missing: --process=I"),
        ({"process": 4}, "--process is 4 of --processes=4: .* the last one is 3"),
        ({"coordinator": "node1"}, "--coordinator is 'node1': .* such as node1:4242"),
        ({"coordinator": "node1:0"}, "--coordinator is 'node1:0'"),
        ({"coordinator": "node1:70000"}, "--coordinator is 'node1:70000'"),
        ({"mode": "off"}, "--distributed=off starts one process"),
        ({"mode": "slurm"}, "leave out --coordinator"),
        ({"mode": "kubernetes"}, "reads JOB_COMPLETION_INDEX, which is not set here"),
    ],
)
def test_contradictions(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        places.find_place(places.Options(**FLAGS | change))


@pytest.mark.parametrize("mode", ["slurm", "tpu"])
def test_a_scheduler_that_is_not_there(mode: str) -> None:
    with pytest.raises(UserError, match=f"--distributed={mode}: .* cannot be found here"):
        places.find_place(places.Options(mode))


@pytest.mark.parametrize("mode", ["auto", "slurm"])
def test_a_slurm_step(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    _set(monkeypatch, **SLURM)
    place = places.find_place(places.Options(mode))
    # The first node of the list; JAX's port: the last 4096 ports, by the job's number.
    assert (place.host, place.port) == ("gpu07", 65535 - 4096 + 1)
    assert (place.processes, place.process, place.told_by) == (3, 2, "Slurm job 4096")
    assert place.devices is None  # a task has its node, with all of its GPUs, for itself


@pytest.mark.parametrize(("visible", "devices"), [("", (1,)), ("0,1", (1,)), ("5", None)])
def test_slurm_tasks_on_one_node_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: tuple[int, ...] | None
) -> None:
    _set(monkeypatch, **SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"})
    if visible:
        _set(monkeypatch, CUDA_VISIBLE_DEVICES=visible)
    assert places.find_place(places.Options()).devices == devices


def test_a_slurm_step_of_one_task_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert places.find_place(places.Options()) is None


def test_inside_a_slurm_allocation_but_in_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **SLURM)
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # a shell of salloc, or the batch script itself
    assert places.find_place(places.Options()) is None


@pytest.mark.parametrize("mode", ["auto", "kubernetes"])
def test_a_pod_of_an_indexed_job(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    _set(monkeypatch, JOB_COMPLETION_INDEX="2")
    place = places.find_place(places.Options(mode, "run-workers-0-0.run:4242", 4))
    assert (place.host, place.processes, place.process) == ("run-workers-0-0.run", 4, 2)
    assert place.told_by == "Kubernetes"


def test_an_indexed_job_of_independent_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _set(monkeypatch, JOB_COMPLETION_INDEX="2")
    assert places.find_place(places.Options()) is None
    assert "a run of its own" in caplog.text


def test_a_tpu_pod_on_kubernetes() -> None:
    # What JAX sets on a TPU machine when it is imported, so in a process of its own.
    program = """
from jax._src.clusters import cloud_tpu_cluster
from kdnet_jax import places
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
print(places.find_place(places.Options()))
"""
    pod = {"TPU_WORKER_HOSTNAMES": "localhost,tpu-1,tpu-2", "TPU_WORKER_ID": "1"}
    # Given, so that no metadata server is asked: one slice of TPUs.
    pod |= {"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    pod |= {"MEGASCALE_COORDINATOR_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(commands.ROOT), "PATH": "", "HOME": str(pathlib.Path.home())} | pod,
        capture_output=True,
        text=True,
        check=True,
    )
    # 8482: the port that JAX keeps for this.
    assert "Place(host='localhost', port=8482, processes=3, process=1" in done.stdout
    assert "told_by='the TPU pod', devices=None" in done.stdout
