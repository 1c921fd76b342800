#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (v1 Checkpointer that keeps the latest): a save appears whole, since it is
# written beside and renamed, but a superseded one is deleted where it lies, file by file. While that
# lasts, a folder under the checkpoint's final name holds a part of its files; a process that is
# killed then leaves it so.
# Seen: prints "before: 9 files; while it was deleted, under the same name: [8, 7, 6, 5, 4, 3, 2, 1, 0]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 \
    tensorstore==0.1.86

JAX_PLATFORMS=cpu "$folder/venv/bin/python" -I -W ignore - "$folder/checkpoints" <<'PYTHON'
import pathlib
import sys

import numpy as np
from orbax.checkpoint import v1 as ocp

folder = pathlib.Path(sys.argv[1])
left = []


def files_of_the_first():
    return sum(path.is_file() for path in (folder / "1").rglob("*"))


def watch(event, arguments):
    """Notes how many files stand in the first checkpoint before each removal."""
    if event in ("os.remove", "os.rmdir") and (folder / "1").is_dir() and whole:
        left.append(files_of_the_first())


tree = {"weights": np.ones((64, 64), np.float32)}
whole = 0
sys.addaudithook(watch)
with ocp.training.Checkpointer(
    folder,
    save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
    preservation_policy=ocp.training.preservation_policies.LatestN(1),
) as checkpointer:
    checkpointer.save(1, tree)
    whole = files_of_the_first()
    checkpointer.save(2, tree)
partial = sorted({count for count in left if count < whole}, reverse=True)
print(f"before: {whole} files; while it was deleted, under the same name: {partial}")
assert not (folder / "1").exists() and (folder / "2").is_dir()
assert len(partial) > 2, partial
PYTHON
