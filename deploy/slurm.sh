#!/usr/bin/env bash
# Trains on several Slurm nodes, and queues itself again whenever the time limit stops it:
#
#     sbatch deploy/slurm.sh [--config.KEY=VALUE ...]
#
# from the folder of the checkout, which all nodes must see. Each node runs one task, which uses all
# of the node's GPUs; JAX finds the tasks by the variables that srun sets.

#SBATCH --job-name=kdnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
# The tasks (not this script) get SIGTERM so many seconds before the limit, save, and end with 143.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kdnet-%j.log

set -euo pipefail

# -- Set these, here or in the environment of sbatch. The folders must be on shared storage. ------
CONFIG=${CONFIG:-configs/student.py:brats}
WORKDIR=${WORKDIR:-runs/student-brats}        # the run: checkpoints, scores, report
DATA_DIR=${DATA_DIR-$HOME/brats}             # the scans
DATA_ROOT=${DATA_ROOT:-datasets}              # what is made of them once
BATCH=${BATCH:-8}                             # patches a step, over all GPUs: a multiple of them
TEACHER=${TEACHER:-}                          # a finished teacher's run; empty: trained first
MAX_RESTARTS=${MAX_RESTARTS:-100}
# source "$HOME/venv/bin/activate"            # or: module load ..., conda activate ...
# -------------------------------------------------------------------------------------------------

flags=(
    --config="$CONFIG"
    --config.data.data_dir="$DATA_DIR"
    --config.data.root="$DATA_ROOT"
    --config.loader.batch="$BATCH"
    --workdir="$WORKDIR"
)
if [[ -n $TEACHER ]]; then
    flags+=(--config.teacher.checkpoint="$TEACHER")
fi

# JAX gives a task one GPU unless it is told otherwise.
gpus=${SLURM_GPUS_ON_NODE:-1}
export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((gpus - 1)))}

# The tasks end together, with the exit code of the first that fails; srun must not kill them before
# they have reported why. Its own exit code is the highest of theirs.
code=0
srun --kill-on-bad-exit=0 --wait=60 python -m kdnet_jax.main "${flags[@]}" "$@" || code=$?

case $code in
    143) why="stopped, and saved" ;;
    134 | 137) why="a task was lost" ;;
    *) exit "$code" ;; # 0: done. 2: a mistake, reported in the log. Others: see the log.
esac
if ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
    echo "$why: queued again, to resume from the last save"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
