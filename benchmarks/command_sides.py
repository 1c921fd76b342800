"""The two commits of `benchmarks.commands`, and what their commands work on."""

import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks import measuring
from kdnet_jax.errors import UserError

SCAN = (240, 240, 155)
MASK = (256, 256, 36)
MASKS = 10
_PREPARING_CORES = 2
_ROOT = pathlib.Path(__file__).parents[1]


class Side:
    """One commit, in a folder of its own.

    Args:
        commit: which.
        folder: an empty one.

    Raises:
        UserError: the checkout has no such commit.
    """

    def __init__(self, commit: str, folder: pathlib.Path) -> None:
        self.tree, self.home = folder / "tree", folder / "home"
        self.tree.mkdir(parents=True)
        self.home.mkdir()
        taken = subprocess.run(
            ["git", "archive", commit], cwd=_ROOT, capture_output=True, check=False
        )
        if taken.returncode:
            raise UserError(
                f"{commit} cannot be taken out of {_ROOT}: {taken.stderr.decode().strip()}. This "
                "needs a checkout with its history."
            )
        subprocess.run(["tar", "--extract"], cwd=self.tree, input=taken.stdout, check=True)
        self.others: list[float] = []

    def run(self, cores: int, *words: str) -> float:
        """Runs `python -m kdnet_jax.WORDS` and returns the processor time in seconds."""
        own = {"PYTHONPATH": str(self.tree), "HOME": str(self.home), "JAX_PLATFORMS": "cpu"}
        own["XDG_CACHE_HOME"] = str(self.home / "cache")
        command = [sys.executable, "-m", f"kdnet_jax.{words[0]}", *words[1:]]
        before, busy, start = _children_seconds(), measuring.busy_seconds(), time.perf_counter()
        done = subprocess.run(
            ["taskset", "--cpu-list", _first(cores), *command],
            cwd=self.tree,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
        elapsed, spent = time.perf_counter() - start, _children_seconds() - before
        if done.returncode:
            raise RuntimeError(f"{words} of {self.tree} failed:\n{done.stderr}")
        self.others.append(max(measuring.busy_seconds() - busy - spent, 0.0) / elapsed)
        return spent


def _first(cores: int) -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare_predict(side: Side) -> list[str]:
    """Trains a network for some steps and makes a scan; returns the command to be timed."""
    folder = side.home / "predict"
    run, scans = folder / "run", folder / "scans"
    side.run(
        _PREPARING_CORES,
        *("main", "--config=configs/baseline.py", f"--workdir={run}"),
        *("--config.data.phantom.cases=10", f"--config.data.root={folder}"),
        *("--config.train.steps=4", "--config.train.validate_every=4"),
    )
    words = ("--phantom", "--cases=1", "--seed=7", "--spacing=1", f"--scans={scans}")
    side.run(_PREPARING_CORES, "build_data", *words)
    (found,) = scans.glob("*/*_t1ce.nii.gz")
    scan = folder / "t1ce.nii.gz"
    _save(scan, _placed(np.asarray(nib.load(found).dataobj), SCAN), (1.0, 1.0, 1.0))
    outputs = (("output", "mask.nii.gz"), ("overlay", "mask.png"), ("volumes", "volumes.csv"))
    written = [f"--{flag}={folder / name}" for flag, name in outputs]
    return ["predict", f"--checkpoint={run}", f"--input={scan}", *written]


def _placed(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a volume cut or filled with zeros to a shape, about its centre."""
    for axis, (size, wanted) in enumerate(zip(data.shape, shape, strict=True)):
        cut = max(size - wanted, 0)
        data = np.take(data, range(cut // 2, size - cut + cut // 2), axis)
    missing = [wanted - size for size, wanted in zip(data.shape, shape, strict=True)]
    return np.pad(data, [(each // 2, each - each // 2) for each in missing])


def prepare_evaluate(side: Side) -> list[str]:
    """Writes masks and references; returns the command to be timed."""
    folder, rng = side.home / "evaluate", np.random.default_rng(0)
    for number in range(MASKS):
        name = f"BraTS2021_{number:05d}"
        reference, found = (_mask(rng) for _ in range(2))
        _save(folder / "references" / name / f"{name}_seg.nii.gz", reference, (0.9, 0.9, 4.0))
        _save(folder / "masks" / f"{name}.nii.gz", found, (0.9, 0.9, 4.0))
    given = (f"--predictions={folder / 'masks'}", f"--references={folder / 'references'}")
    return ["evaluate", *given, f"--output={folder / 'scores'}", "--workers=1"]


def _mask(rng: np.random.Generator) -> np.ndarray:
    """Returns nested blobs with some small ones beside them, BraTS 2021's labels."""
    grids = np.meshgrid(*(np.linspace(-3, 3, size) for size in MASK), indexing="ij")
    noise = ndimage.gaussian_filter(rng.normal(size=MASK), (6, 6, 1.5))
    blob = np.exp(-sum(grid**2 for grid in grids) / 2) + noise / noise.std() / 8
    levels = np.digitize(blob, np.quantile(blob, (0.96, 0.98, 0.99)))
    return np.array([0, 2, 1, 4], np.uint8)[levels]


def _save(path: pathlib.Path, data: np.ndarray, spacing: tuple[float, float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(data, affine), path)


def prepare_demo(side: Side) -> list[str]:
    """Returns the README's first command."""
    folder = side.home / "demo"
    return [
        *("main", "--config=configs/student.py", f"--workdir={folder / 'run'}"),
        f"--config.data.root={folder / 'datasets'}",
    ]


# Row -> what is made ready for it, its goal, and its cores; `None`: all.
ROWS: dict[str, tuple[Callable[[Side], list[str]], float, int | None]] = {
    "predict": (prepare_predict, 0.5, None),
    "evaluate": (prepare_evaluate, 0.4, 1),
    "demo": (prepare_demo, 0.6, None),
}
