"""The files of deploy/, with their very command lines, as their schedulers would start them.

Slurm's, Kubernetes' and Google Cloud's own programs are stood in for by small scripts that set the
variables those set. What they start are two real processes on this machine.
"""

import os
import pathlib
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

from tests.helpers import commands, companies

pytestmark = pytest.mark.once

DEPLOY = commands.ROOT / "deploy"
# For the processes' own command, the same start with nothing to train.
PYTHON = f"""#!/usr/bin/env bash
exec {shlex.quote(sys.executable)} "${{@/#kdnet_jax.main/tests.helpers.launched}}"
"""


@pytest.fixture
def programs(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of programs that comes first in the PATH, with a `python` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    _write(folder / "python", PYTHON)
    return folder


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, "utf-8")
    path.chmod(0o755)


def _run(
    script: str, *words: str, programs: pathlib.Path, **environment: object
) -> subprocess.CompletedProcess[str]:
    own = {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        ["bash", DEPLOY / script, *words],
        cwd=commands.ROOT,
        env=os.environ
        | {"PYTHONPATH": str(commands.ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
        | own,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("script", sorted(path.name for path in DEPLOY.glob("*.sh")))
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)
    assert os.access(DEPLOY / script, os.X_OK)


# -- Slurm ------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
# Two tasks on one node; as srun does, it ends with the highest exit code of theirs.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
code=0
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" > "$OUT/$task.out" 2> "$OUT/$task.err" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do
    wait "$task" || { this=$?; code=$((this > code ? this : code)); }
done
exit $code
"""


def _slurm_job_with_a_free_port() -> int:
    """Returns a job's number from which JAX makes a port that is free (see SlurmCluster)."""
    while True:
        job = random.randrange(1, 1 << 20)
        try:
            with socket.create_server(("", 65535 - 4096 + 1 + job % 4096)):
                return job
        except OSError:
            continue


def test_the_slurm_script_starts_one_run_of_two_tasks(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _write(programs / "srun", SRUN)
    job = _slurm_job_with_a_free_port()
    done = _run("slurm.sh", programs=programs, OUT=tmp_path, SLURM_JOB_ID=job)
    first, second = ((tmp_path / f"{task}.err").read_text("utf-8") for task in (0, 1))
    assert done.returncode == 0, done.stderr + first + second
    said = (tmp_path / "0.out").read_text("utf-8")
    assert "2 processes with 2 x cpu devices" in said
    assert "numbers [0, 1]" in said
    assert "process 1 works\n" in second


@pytest.mark.parametrize(
    ("code", "restarts", "queued"),
    [
        (0, 0, False),
        (2, 0, False),
        (1, 0, False),
        (143, 3, True),
        (134, 0, True),
        (137, 0, True),
        (143, 100, False),
    ],
)
def test_the_slurm_job_is_queued_again_by_its_exit_code(
    programs: pathlib.Path, tmp_path: pathlib.Path, code: int, restarts: int, queued: bool
) -> None:
    _write(programs / "srun", f"#!/usr/bin/env bash\nexit {code}\n")
    _write(programs / "scontrol", f'#!/usr/bin/env bash\necho "$@" > {tmp_path}/scontrol\n')
    done = _run("slurm.sh", programs=programs, SLURM_JOB_ID=77, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code
    note = tmp_path / "scontrol"
    assert note.exists() == queued
    assert not queued or note.read_text("utf-8") == "requeue 77\n"


def test_slurm_leaves_the_time_to_save() -> None:
    options = re.findall(
        r"^#SBATCH --([\w-]+)(?:=(\S+))?$", (DEPLOY / "slurm.sh").read_text(), re.M
    )
    options = dict(options)
    # To the tasks ("B:" would send it to the script), 120 s before the end.
    assert options["signal"] == "TERM@120"
    assert options["ntasks-per-node"] == "1"
    assert int(options["nodes"]) > 1
    assert {"requeue", "open-mode"} <= options.keys()


def test_slurms_batch_fills_its_gpus() -> None:
    text = (DEPLOY / "slurm.sh").read_text("utf-8")
    batch, nodes, gpus = (
        int(re.search(pattern, text)[1])
        for pattern in (r"BATCH:-(\d+)", r"--nodes=(\d+)", r"--gpus-per-node=(\d+)")
    )
    assert batch % (nodes * gpus) == 0


# -- Kubernetes ---------------------------------------------------------------------------------


@pytest.fixture
def jobset() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "jobset.yaml").read_text("utf-8"))


def test_the_jobset_restarts_for_what_can_be_mended_by_it(jobset: dict) -> None:
    # The fields of JobSet v1alpha2 (api/jobset/v1alpha2/jobset_types.go) and of batch/v1 Job.
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    spec = jobset["spec"]
    assert spec.keys() <= {"network", "coordinator", "failurePolicy", "replicatedJobs"}
    assert spec["network"]["enableDNSHostnames"] is True
    assert spec["failurePolicy"]["maxRestarts"] > 0
    # A run's folder belongs to one run at a time.
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    (rule,) = spec["failurePolicy"]["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    (pod_rule,) = job["podFailurePolicy"]["rules"]
    container = job["template"]["spec"]["containers"][0]
    assert pod_rule["action"] == "FailJob"
    assert pod_rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    # podFailurePolicy asks for it.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_the_jobset_gives_every_pod_its_place(jobset: dict) -> None:
    spec = jobset["spec"]
    (workers,) = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert workers["replicas"] == 1
    assert spec["coordinator"] == {"replicatedJob": workers["name"], "jobIndex": 0, "podIndex": 0}
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert f"--processes={job['completions']}" in container["command"]
    assert job["parallelism"] == job["completions"] > 1
    fields = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]}
    assert fields == {
        "COORDINATOR": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
        # Set on the pods of an Indexed Job.
        "PROCESS": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    assert "--process=$(PROCESS)" in container["command"]
    (port,) = re.findall(r"--coordinator=\$\(COORDINATOR\):(\d+)", " ".join(container["command"]))
    assert container["ports"] == [{"containerPort": int(port)}]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * job["completions"]
    (batch,) = re.findall(r"--config\.loader\.batch=(\d+)", " ".join(container["command"]))
    assert int(batch) % gpus == 0 < gpus
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    for flag in ("--workdir", "--config.data.data_dir", "--config.data.root"):
        (folder,) = (w.split("=")[1] for w in container["command"] if w.startswith(flag + "="))
        assert folder.startswith(mounted["shared"] + "/")


def test_the_jobsets_command_starts_one_run_of_two_pods(jobset: dict) -> None:
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    python, dash_m, module, *words = container["command"]
    assert (python, dash_m, module) == ("python", "-m", "kdnet_jax.main")
    # What Kubernetes puts in; the port is the pod's own there.
    port = companies.free_port()
    words = [word.replace("$(COORDINATOR):4242", f"localhost:{port}") for word in words]
    pods = [[word.replace("$(PROCESS)", str(index)) for word in words] for index in (0, 1)]
    first, second = companies.run([["tests.helpers.launched", *own] for own in pods])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "2 processes with 2 x cpu devices" in first.stdout
    assert "numbers [0, 1]" in first.stdout


# -- TPU pods -----------------------------------------------------------------------------------

GCLOUD = """#!/usr/bin/env bash
# gcloud compute tpus tpu-vm ssh NAME ... --worker=all --command=COMMAND, with two workers.
echo "$*" >> "$OUT/gcloud"
[[ $4 == ssh ]] || exit 0
last=${@: -1}
for worker in 0 1; do
    mkdir -p "$OUT/$worker"
    HOME=$OUT/$worker TPU_WORKER_ID=$worker bash -c "${last#--command=}" || exit
done
"""


def test_the_tpu_command_starts_one_run_of_two_workers(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _write(programs / "gcloud", GCLOUD)
    pod = {
        # JAX takes this machine for a TPU machine, whose pod is described by these.
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "",
        "JAX_COORDINATOR_PORT": str(companies.free_port()),
    }
    done = _run(
        "tpu_pod.sh",
        "train",
        programs=programs,
        OUT=tmp_path,
        CODE=commands.ROOT,
        PYTHON="python",
        **pod,
    )
    assert done.returncode == 0, done.stderr
    assert "tpu-vm ssh kdnet --project=my-project" in (tmp_path / "gcloud").read_text("utf-8")
    log = tmp_path / "0" / "kdnet.log"
    deadline = time.monotonic() + 100
    while "numbers [0, 1]" not in log.read_text("utf-8") and time.monotonic() < deadline:
        time.sleep(0.2)
    said = log.read_text("utf-8")
    assert "2 processes with 2 x cpu devices" in said, said
    assert "numbers [0, 1]" in said
    assert (tmp_path / "1" / "kdnet.pid").read_text("utf-8").strip().isdecimal()


def test_the_tpu_slice_is_queued_for_as_spot(
    programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _write(programs / "gcloud", GCLOUD)
    done = _run("tpu_pod.sh", "create", programs=programs, OUT=tmp_path, TYPE="v5litepod-64")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "gcloud").read_text("utf-8").split()
    assert asked[:5] == ["compute", "tpus", "queued-resources", "create", "kdnet"]
    assert {"--accelerator-type=v5litepod-64", "--node-id=kdnet", "--spot"} <= set(asked)
    assert _run("tpu_pod.sh", "trian", programs=programs).returncode == 2
