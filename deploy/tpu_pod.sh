#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, from a machine with gcloud and a checkout:
#
#     deploy/tpu_pod.sh create    # queue for the slice; "describe" shows whether it is there
#     deploy/tpu_pod.sh setup     # code, packages and the shared folder on every worker
#     deploy/tpu_pod.sh train     # start the run, or resume it
#     deploy/tpu_pod.sh log       # what process 0 says; ^C leaves the run alone
#     deploy/tpu_pod.sh stop      # save and stop; "train" resumes
#     deploy/tpu_pod.sh delete
#
# A spot slice that is taken away gets SIGTERM and saves: delete, create, setup and train resume it.

set -euo pipefail

# -- Set these, here or in the environment. -------------------------------------------------------
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-kdnet}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
NFS=${NFS:-10.0.0.2:/share}                   # Filestore, or another NFS that all workers reach
SHARED=${SHARED:-/mnt/kdnet}                  # where it is mounted: data and runs lie there
CODE=${CODE:-kdnet_jax}                       # the checkout on the workers, below their $HOME
PYTHON=${PYTHON:-python3}
CONFIG=${CONFIG:-configs/student.py:brats}
WORKDIR=${WORKDIR:-$SHARED/runs/student-brats}
DATA_DIR=${DATA_DIR-$SHARED/brats}
DATA_ROOT=${DATA_ROOT:-$SHARED/datasets}
BATCH=${BATCH:-16}                            # patches a step, over all chips: a multiple of them
# -------------------------------------------------------------------------------------------------

place=(--project="$PROJECT" --zone="$ZONE")

on() { # on WORKER COMMAND: runs a command on one worker, or on all of them
    gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker="$1" --command="$2"
}

train() {
    # JAX finds the workers by the pod's own description. They outlive this connection.
    local flags="--config='$CONFIG' --config.data.data_dir='$DATA_DIR'"
    flags+=" --config.data.root='$DATA_ROOT' --config.loader.batch='$BATCH' --workdir='$WORKDIR'"
    on all "cd ~ && cd '$CODE' && { nohup $PYTHON -m kdnet_jax.main $flags \
        >> ~/kdnet.log 2>&1 < /dev/null & echo \$! > ~/kdnet.pid; }"
}

case ${1:-} in
    create)
        gcloud compute tpus queued-resources create "$NAME" "${place[@]}" --node-id="$NAME" \
            --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
        ;;
    describe) gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" ;;
    setup)
        gcloud compute tpus tpu-vm scp --recurse . "$NAME:$CODE" "${place[@]}" --worker=all
        on all "sudo apt-get -q install -y nfs-common && sudo mkdir -p '$SHARED' &&
            { mountpoint -q '$SHARED' || sudo mount '$NFS' '$SHARED'; } &&
            $PYTHON -m pip install -q -r '$CODE/requirements.txt' 'jax[tpu]'"
        ;;
    train) train ;;
    log) on 0 "tail -n 50 -f ~/kdnet.log" ;;
    stop) on all "kill -TERM \$(cat ~/kdnet.pid)" ;;
    delete) gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force ;;
    *)
        echo "usage: deploy/tpu_pod.sh create|describe|setup|train|log|stop|delete" >&2
        exit 2
        ;;
esac
