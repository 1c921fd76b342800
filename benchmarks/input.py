"""How much time training waits for data, and how short a step the input can keep fed.

    python -m benchmarks.input --data_dir=DIR [--steps=N] [--step_seconds=S,...] [--json=FILE]

DIR is a folder of BraTS cases, which are built at 1 mm under --root (once). The loader is that of
training, with the settings of the preset `:brats` and --batch, in every place of the cases:

- device: all training cases on the device, batches cut there
- host: all decoded cases in host memory
- stream: cases decoded as needed; memory for two batches' cases, as a large cohort would leave

With --unlabelled=N, N of the cases give half of the patches, without their reference.

Waiting is the time that the loop blocks for a batch, as in `train.py`, which runs two steps ahead,
beside the real training step on this machine, with which the loader shares the cores (--noreal
leaves it out). "Slower" compares with the same step on one batch again and again. Beside steps of a
stated length that leave the host idle, as an accelerator's do (--step_seconds), all that is more
than their length is lost; on the CPU that holds the cut or the conversion on the device too, which
an accelerator does in no time.
The records lie in the operating system's file cache after the first reading: a slow disk would add
its own time to `stream`.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags

from configs import common
from kdnet_jax import cli
from kdnet_jax.augment import augment
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.core import files
from kdnet_jax.data.loading import loader, placement, resident
from kdnet_jax.data.records import building, store
from kdnet_jax.losses import objective
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model, trained
from kdnet_jax.training import optimizers, step_metrics, steps

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of BraTS cases.", required=True)
_ROOT = flags.DEFINE_string("root", str(building.DEFAULT_ROOT), "Folder of built datasets.")
_STEPS = flags.DEFINE_integer("steps", 12, "Steps or batches of each measurement.", 1)
_BATCH = flags.DEFINE_integer("batch", 2, "Patches of a batch.", 1)
_PATCH = flags.DEFINE_integer("patch", 128, "Edge of a patch, voxels.", 8)
_UNLABELLED = flags.DEFINE_integer("unlabelled", 0, "Cases without a reference.", 0)
_REAL = flags.DEFINE_bool("real", True, "Also beside the real training step.")
_SECONDS = flags.DEFINE_list("step_seconds", ["0.03", "0.2", "1"], "Lengths of stand-in steps.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows here.")

GOAL = 0.03
MODES = ("device", "host", "stream")
# Batches that are not measured: the first decode, fill the buffers and compile.
_WARM_UP = 3
# More than the loader holds ready, which would flatter its rate.
_DRAIN = 10

# Takes a batch, dispatches a step, and returns what to wait for.
Step = Callable[[loader.Batch], Any]


def preset() -> experiment_lib.Experiment:
    """Returns a baseline of the preset `:brats` with the flags' patch and batch."""
    config = common.base_config("baseline", "brats")
    config.loader.patch, config.loader.batch = (_PATCH.value,) * 3, _BATCH.value
    return reading.read(config)


def open_loader(cases: store.CaseStore, mode: str, mesh: Any) -> loader.PatchIterator:
    """Opens the training patches of all `cases` in one of `MODES`."""
    values = preset()
    given = dataclasses.asdict(values.loader)
    del given["cache"]
    given |= {"crop": augment.source_patch(values.loader.patch, values.augment)}
    largest = max(summary.decoded_bytes for summary in cases.summaries)
    cases.cache_bytes = cases.decoded_bytes if mode == "host" else 2 * _BATCH.value * largest
    if mode == "host":
        # As after the first epoch.
        for index in range(len(cases)):
            cases[index]
    known = [i for i, summary in enumerate(cases.summaries) if summary.class_voxels is not None]
    count = len(known) - _UNLABELLED.value
    return loader.make_loader(
        cases,
        known[:count],
        unlabelled=known[count:],
        mesh=mesh,
        seed=0,
        on_device=mode == "device",
        **given,
    )


def real_step(mesh: Any) -> Step:
    """Returns the training step of the preset's network, which keeps its own state."""
    values = preset()
    optimizer = optimizers.make_optimizer(values.optimizer, 1000, 100)
    step = steps.jit_step(
        mesh,
        student=trained.as_network(model.of_experiment(values), values.data.modalities),
        loss=objective.of_options(values.head, values.loss),
        optimizer=optimizer,
        plan=steps.Plan(values.augment, values.loader.patch),
    )
    params = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    whole = sharding.replicated(mesh)
    root = jax.device_put(jax.random.key(1), whole)
    state = jax.device_put(steps.init_state(params, optimizer), whole)

    def run(batch: loader.Batch) -> Any:
        nonlocal state
        state, metrics = step(state, (), batch, root)
        return metrics

    return run


def stand_in(seconds: float) -> Step:
    """Returns a step of that length, from the batch on, that leaves the host idle."""

    def run(batch: loader.Batch) -> Any:
        jax.block_until_ready(batch)
        time.sleep(seconds)
        return ()

    return run


def run_steps(batches: Iterator[loader.Batch], step: Step, count: int) -> tuple[float, float]:
    """Returns seconds per step, and the share of the time that was spent waiting for a batch."""
    ahead = step_metrics.STEPS_AHEAD
    pending = [step(next(batches)) for _ in range(_WARM_UP)]
    jax.block_until_ready(pending)
    start, waited = time.perf_counter(), 0.0
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        pending.append(step(batch))
        del batch
        jax.block_until_ready(pending[-1 - ahead])
    jax.block_until_ready(pending)
    total = time.perf_counter() - start
    return total / count, waited / total


def supply(batches: Iterator[loader.Batch], count: int) -> float:
    """Returns the seconds that a batch takes when nothing else is done."""
    for _ in range(_DRAIN):
        jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(next(batches))
    return (time.perf_counter() - start) / count


def measure(cases: store.CaseStore, mesh: Any) -> list[dict[str, Any]]:
    """Returns the rows, and prints each."""
    rows = []

    def row(name: str, value: float, unit: str = "", goal: float | None = None) -> None:
        print(f"{name}: {value:.3g}{unit}", flush=True)
        rows.append({"name": name, "ours": value, "peer": None, "ratio": None, "goal": goal})

    decoding = [_timed(lambda i=i: cases.read(i)) for i in range(len(cases))]
    row("decode a case, median", statistics.median(decoding), " s")
    decoded = statistics.median(summary.decoded_bytes for summary in cases.summaries)
    row("a decoded case, median", decoded / 1e6, " MB")
    shape = resident.padded_shape([cases.shape(i) for i in range(len(cases))])
    on_device = resident.need_bytes(1, len(cases.modalities), shape)
    row("a case on the device", on_device / 1e6, " MB")
    # Batches in which every case is decoded once.
    epoch = preset().loader.crops_per_read * math.ceil(len(cases) / _BATCH.value)
    step = alone = None
    if _REAL.value:
        step = real_step(mesh)
        with open_loader(cases, "device", mesh) as batches:
            batch = next(batches)
        alone, _ = run_steps(itertools.repeat(batch), step, _STEPS.value)
        row("the real step alone", alone, " s")
    for mode in MODES:
        with open_loader(cases, mode, mesh) as batches:
            batches.start()
            seconds = supply(batches, max(_STEPS.value, epoch))
        row(f"{mode}: patches per second", _BATCH.value / seconds)
        row(f"{mode}: shortest step that is kept fed", seconds, " s")
        for length in map(float, _SECONDS.value):
            with open_loader(cases, mode, mesh) as batches:
                seconds, _ = run_steps(batches, stand_in(length), _STEPS.value)
            row(f"{mode}: share of time lost, steps of {length:g} s", 1 - length / seconds)
        if step is not None:
            with open_loader(cases, mode, mesh) as batches:
                seconds, share = run_steps(batches, step, _STEPS.value)
            row(f"{mode}: share of time waited, real step", share, goal=GOAL)
            row(f"{mode}: real step slower by a share of", seconds / alone - 1)
    return rows


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Builds, measures, prints, writes."""
    cli.refuse_arguments(argv)
    cli.enable_compilation_cache()
    cases = building.build_scans(pathlib.Path(_ROOT.value), pathlib.Path(_DATA_DIR.value))
    mesh = sharding.make_mesh()
    values = preset()
    crop = augment.source_patch(values.loader.patch, values.augment)
    print(
        f"{len(cases)} cases, batches of {_BATCH.value} patches of {values.loader.patch}, cut as "
        f"{crop} for the augmentation; {jax.devices()[0].device_kind}"
    )
    free = placement.free_memory(mesh)
    print(placement.choose("auto", cases, range(len(cases)), mesh=mesh, free=free).sentence)
    rows = measure(cases, mesh)
    if _JSON.value:
        files.write_text(pathlib.Path(_JSON.value), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
