"""Sound data and runs, which the corpus then damages."""

import os
import pathlib
import shutil

import jax

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.data import splits
from kdnet_jax.data.sources import cases
from kdnet_jax.models import networks
from kdnet_jax.training import checkpoint, optimizers, steps
from tests.bad_input import scans
from tests.helpers import compared_runs, tiny_cases

CASES = 4


def write_all(folder: pathlib.Path) -> pathlib.Path:
    """Writes `cohort/`, `masks/` of it, runs `teacher/` and `baseline/`, and `scored/` ones."""
    cohort = write_cohort(folder / "cohort", CASES)
    masks = folder / "masks"
    masks.mkdir()
    for case in cohort.iterdir():
        os.link(case / f"{case.name}_seg.nii.gz", masks / f"{case.name}.nii.gz")
    for role in ("teacher", "baseline"):
        _write_trained(folder / role, role, cohort)
    for number, role in enumerate(("baseline", "student")):
        compared_runs.write_run(folder / "scored" / role, role, [0.5 + number / 10] * 6)
    return folder


def write_cohort(folder: pathlib.Path, cases: int) -> pathlib.Path:
    """Writes cases of which no two have the same tumour."""
    for number in range(1, cases + 1):
        tiny_cases.write_case(
            folder, number, edge=scans.EDGE, spacing=scans.SPACING_MM, radius=4 + number / 4
        )
    return folder


def _write_trained(folder: pathlib.Path, role: str, cohort: pathlib.Path) -> None:
    """Writes a run with random weights whose cases are not those of the cohort."""
    config = common.base_config(role, "smoke")
    config.loader.patch = config.inference.patch = (8, 8, 8)
    config.data.spacing = scans.SPACING_MM
    values = reading.read(config)
    params = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(values.to_json(), "utf-8")
    optimizer = optimizers.make_optimizer(values.optimizer, 1, 1)
    with checkpoint.RunCheckpoints(folder) as checkpoints:
        checkpoints.save(
            steps.init_state(params, optimizer), checkpoint.Progress(1, {}, 0.5, 0.5, 0, 0.0, {})
        )
    known = [cases.Case(f"other-{i}", f"other-{i}", None, {}, None, "brats2021") for i in range(4)]
    split = splits.make_split(known, seed=0, fractions=(0.5, 0.25, 0.25))
    splits.save_split(split, folder / "split.json")


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copies a folder by hard links: a damaged file is replaced, never written into."""
    return pathlib.Path(shutil.copytree(source, target, symlinks=True, copy_function=os.link))
