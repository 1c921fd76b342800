"""Peak memory and time of prediction: python -m benchmarks.prediction_memory [--rows=NAME,...].

Each row makes a run with random weights and a synthetic stripped head, runs
`python -m kdnet_jax.predict` on it in a process of its own and reads that process's peak memory.
`docs/prediction.md` holds the table. The whole takes about 10 minutes on 2 cores.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import nibabel as nib
import numpy as np
from absl import flags

from configs import common
from kdnet_jax import cli, errors
from kdnet_jax.config import reading
from kdnet_jax.data.scans import nifti
from kdnet_jax.models import networks
from kdnet_jax.training import checkpoint, optimizers, saved_checkpoints, steps

_ROWS = flags.DEFINE_list("rows", None, "Names of rows; by default all.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows here.")

_BRAIN_MM = (140.0, 175.0, 140.0)  # stored axes: left-right, front-back, up-down
_PHANTOM, _BRATS = (8, 16, 32), (16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        shape: of the scan.
        voxel: its voxel size, mm.
        widths: channels of the network's levels.
        spacing: working voxel size in mm; 0 for the scan's own.
        overlap: of the windows.
        words: more of the command line.
    """

    shape: tuple[int, int, int] = (240, 240, 155)
    voxel: tuple[float, float, float] = (1.0, 1.0, 1.0)
    widths: tuple[int, ...] = _PHANTOM
    spacing: float = 1.0
    overlap: float = 0.5
    words: tuple[str, ...] = ()


_LARGE = {"shape": (512, 512, 300), "voxel": (0.5, 0.5, 0.6)}
ROWS = {
    "brats-size": Row(),
    "brats-size-batch-2": Row(words=("--window_batch=2",)),
    "brats-size-mirror-all-outputs": Row(
        overlap=0.0, words=("--mirror", "--uncertainty", "--probabilities")
    ),
    "brats-size-paper-network": Row(widths=_BRATS),
    "large-at-1mm": Row(**_LARGE),
    "large-own-grid": Row(**_LARGE, spacing=0.0, overlap=0.0),
}


def write_run(folder: pathlib.Path, row: Row) -> None:
    """Writes the config and a checkpoint of random weights."""
    import jax

    config = common.base_config("baseline", "phantom")
    config.model.widths = row.widths
    config.model.last_blocks = 2 if row.widths == _PHANTOM else 3
    config.data.spacing = row.spacing
    config.inference.patch = (128, 128, 128)
    config.inference.overlap = row.overlap
    values = reading.read(config)
    params = networks.init_params(values.network, 1, jax.random.key(0))
    optimizer = optimizers.make_optimizer(values.optimizer, values.train.steps, 1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(values.to_json(), "utf-8")
    progress = saved_checkpoints.Progress(1, {}, 0.5, 0.5, 0, 0.0, {})
    with checkpoint.RunCheckpoints(folder) as checkpoints:
        checkpoints.save(steps.init_state(params, optimizer), progress)


def write_scan(path: pathlib.Path, row: Row) -> None:
    """Writes an ellipsoid of noise with the size of a brain, background 0."""
    axes = [
        (np.arange(size, dtype=np.float32) - (size - 1) / 2) * voxel / (extent / 2)
        for size, voxel, extent in zip(row.shape, row.voxel, _BRAIN_MM, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    brain = x**2 + y**2 + z**2 < 1
    noise = np.random.default_rng(0).integers(100, 1000, row.shape, dtype=np.int16)
    nifti.write_image(path, np.where(brain, noise, 0).astype(np.int16), np.diag([*row.voxel, 1]))


def measure(row: Row, folder: pathlib.Path) -> dict[str, object]:
    """Runs the command on a row's run and scan; returns its peak memory and what it printed."""
    write_run(folder / "run", row)
    write_scan(folder / "scan.nii.gz", row)
    command = [sys.executable, "-m", "kdnet_jax.predict", f"--checkpoint={folder / 'run'}"]
    command += [f"--input={folder / 'scan.nii.gz'}", f"--output={folder / 'mask.nii.gz'}"]
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen([*command, *row.words], stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / "out.txt").read_text()
    if process.returncode:
        raise RuntimeError(said)
    assert nib.load(folder / "mask.nii.gz").shape == row.shape
    # Linux counts KiB, macOS bytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    stages = said.strip().splitlines()[-1].strip()
    return {"peak_gib": round(usage.ru_maxrss / unit, 2), "stages": stages}


def main(argv: list[str]) -> None:
    """Measures and prints the rows."""
    cli.refuse_arguments(argv)
    found = {}
    for name in _ROWS.value or ROWS:
        errors.check_choice("--rows", name, ROWS)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(ROWS[name], pathlib.Path(folder))
        print(f"| {name} | {found[name]['peak_gib']} | {found[name]['stages']} |", flush=True)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)
