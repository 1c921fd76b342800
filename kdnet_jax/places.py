"""Which of a run's processes this is: by flags, or by what Slurm, Kubernetes or a TPU pod says."""

import dataclasses
import logging
import os
from typing import Any

from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

MODES = ("auto", "off", "slurm", "kubernetes", "tpu", "flags")
_KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of the start.

    Attributes:
        mode: --distributed, one of `MODES`.
        coordinator: "HOST:PORT" of process 0, or "".
        processes: how many there are, if told.
        process: which of them this is, if told.
        start_timeout: seconds within which all have to be there.
    """

    mode: str = "auto"
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    start_timeout: float = 300.0


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place among the processes of a run.

    Attributes:
        host: of process 0.
        port: the coordinator's, there.
        processes: how many there are.
        process: which of them this is, from 0.
        told_by: who says so.
        devices: numbers of this machine's GPUs that are this process's; `None`: all.
    """

    host: str
    port: int
    processes: int
    process: int
    told_by: str
    devices: tuple[int, ...] | None = None


def find_place(options: Options) -> Place | None:
    """Returns this process's place among the run's processes, or `None` if it is the only one.

    Raises:
        UserError: for flags that contradict each other or the environment.
    """
    told = (options.coordinator, options.processes, options.process) != ("", None, None)
    if options.mode == "off":
        if told:
            raise UserError(
                "--distributed=off starts one process, but --coordinator, --processes or "
                "--process is given too: leave them out, or give --distributed=flags."
            )
        return None
    if options.mode in ("flags", "kubernetes") or (options.mode == "auto" and told):
        place = _place_by_flags(options)
    elif told:
        raise UserError(
            f"--distributed={options.mode} finds the processes in the environment: leave out "
            "--coordinator, --processes and --process, or give --distributed=flags."
        )
    else:
        place = _place_by_environment(options)
    return place if place and place.processes > 1 else None


def _place_by_flags(options: Options) -> Place:
    process, told_by = options.process, "flags"
    if process is None and options.mode != "flags" and _KUBERNETES_INDEX in os.environ:
        process, told_by = int(os.environ[_KUBERNETES_INDEX]), "Kubernetes"
    if options.mode == "kubernetes" and told_by != "Kubernetes":
        raise UserError(
            f"--distributed=kubernetes reads {_KUBERNETES_INDEX}, which is not set here or "
            "overruled by --process. Kubernetes sets it in the pods of a Job with "
            "completionMode: Indexed, as those of a JobSet are."
        )
    given = {
        "--coordinator=HOST:PORT": options.coordinator,
        "--processes=N": options.processes,
        "--process=I": process,
    }
    missing = [flag for flag, value in given.items() if value in ("", None)]
    if missing:
        raise UserError(
            f"several processes need {', '.join(given)}; missing: {', '.join(missing)}. (In a "
            "Slurm step or on a TPU pod give none of them; they are found.)"
        )
    if process >= options.processes:
        raise UserError(
            f"--process is {process} of --processes={options.processes}: they are counted from 0, "
            f"so the last one is {options.processes - 1}."
        )
    return Place(*_split_address(options.coordinator), options.processes, process, told_by)


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator is {address!r}: write the machine of process 0 and a free port there, "
            "such as node1:4242."
        )
    return host.strip("[]"), int(port)


def _place_by_environment(options: Options) -> Place | None:
    # JAX's own ways to find its processes. Its public jax.distributed.initialize uses them only
    # while it starts, and what is wrong has to be told before that.
    from jax._src import clusters

    if options.mode in ("auto", "slurm") and clusters.SlurmCluster.is_env_present():
        told_by = f"Slurm job {os.environ['SLURM_JOB_ID']}"
        return _place_by_cluster(clusters.SlurmCluster, told_by, _slurm_devices())
    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        # On a TPU machine they ask the metadata server; elsewhere they ask nobody.
        try:
            if options.mode in ("auto", "tpu") and cluster.is_env_present():
                return _place_by_cluster(cluster, "the TPU pod", None)
        except (OSError, ImportError) as error:
            _LOG.info(f"This TPU machine cannot say whether it belongs to a pod ({error}).")
    if options.mode != "auto":
        what = {"slurm": "the variables that srun sets", "tpu": "a TPU machine"}[options.mode]
        raise UserError(
            f"--distributed={options.mode}: {what} cannot be found here. Start it there, or give "
            "--distributed=off for one process."
        )
    if _KUBERNETES_INDEX in os.environ:
        _LOG.info(
            f"{_KUBERNETES_INDEX} is set, but no --coordinator is given: this is a run of its own."
        )
    return None


def _place_by_cluster(cluster: Any, told_by: str, devices: tuple[int, ...] | None) -> Place | None:
    processes = cluster.get_process_count()
    if processes == 1:
        return None
    try:
        address = cluster.get_coordinator_address(60, os.environ.get("JAX_COORDINATOR_PORT"))
    except RuntimeError as error:  # The name is not known, after a minute.
        raise UserError(f"{told_by}: {error}. See whether that machine is up.") from error
    return Place(*_split_address(address), processes, cluster.get_process_id(), told_by, devices)


def _slurm_devices() -> tuple[int, ...] | None:
    """Returns a GPU of its own for each of several tasks on a node, as JAX does.

    A task that has the node for itself uses all of its GPUs, and one to which Slurm has bound a
    single one (--gpus-per-task=1) uses that.
    """
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    if int(os.environ["SLURM_NTASKS"]) <= nodes or len(visible) == 1:
        return None
    return (int(os.environ["SLURM_LOCALID"]),)
