"""Speed on a GPU beside MONAI's DynUNet in PyTorch: python -m benchmarks.accelerator.

    pip install -U "jax[cuda12]" && pip install -r requirements-benchmarks.txt
    python -m benchmarks.accelerator --json=accelerator.json

Both sides have nnU-Net's form and widths, deep supervision, bfloat16 (PyTorch: AMP) and Adam with
clipping; PyTorch has channels_last_3d, torch.compile and cudnn.benchmark. Where they differ: ours
goes down a level by a 2^3 convolution before its two 3^3 ones, DynUNet by a 3^3 convolution of
stride 2 in place of the first; the FLOPs of both are in the notes. Our batches are cut on the
device from synthetic cases, PyTorch's are sent from pinned memory; neither is augmented unless
--augment=nnunet, which changes ours alone.

Rows: the plain step at batch 2 and at the largest batch that fits (found by doubling), the
distillation step at both, prediction of a 240x240x155 scan with 8 mirror images, and the share of
the matmul rate that a large bfloat16 product reaches in the same run. The goals are for one H100.
Each measurement has a process of its own, so that the other side holds no memory.
"""

import functools
import os
import statistics
from typing import Any

import tqdm
from absl import flags

from benchmarks import accelerator_rows, measuring, records
from kdnet_jax import cli
from kdnet_jax.core import files, provenance
from kdnet_jax.data.records import building
from kdnet_jax.errors import UserError

_FILE = flags.DEFINE_string("json", None, "Also write the rows here.")
_ALLOW_CPU = flags.DEFINE_bool("allow_cpu", False, "Run without an accelerator, to try it out.")
_PEER = flags.DEFINE_bool("peer", True, "Measure PyTorch too.")
_COMPILE = flags.DEFINE_bool("torch_compile", True, "PyTorch by torch.compile.")
_WIDTHS = flags.DEFINE_list("widths", "32,64,128,256,320,320", "Channels of each level.")
_PATCH = flags.DEFINE_integer("patch", 128, "Edge of a patch and of a window, voxels.", 8)
_STEPS = flags.DEFINE_integer("steps", 30, "Steps of a block, of which the rate is taken.", 1)
_BLOCKS = flags.DEFINE_integer("blocks", 5, "Blocks, and repetitions of a prediction.", 1)
_LARGEST = flags.DEFINE_integer("largest_batch", 64, "Where doubling the batch ends.", 2)
_BFLOAT16 = flags.DEFINE_bool("bfloat16", True, "Compute in bfloat16; else float32.")
_SUPERVISION = flags.DEFINE_bool("deep_supervision", True, "Deep supervision, both sides.")
_AUGMENT = flags.DEFINE_string("augment", "none", "Preset of our augmentation.")
_SCAN = flags.DEFINE_list("scan", "155,240,240", "Edges d,h,w of the predicted scan, voxels.")
_WINDOWS = flags.DEFINE_integer("window_batch", 2, "Windows at once in prediction.", 1)
_MATMUL = flags.DEFINE_integer("matmul", 8192, "Edge of the matrices.", 8)
_ROOT = flags.DEFINE_string("root", str(building.DEFAULT_ROOT), "Folder of built datasets.")
_CASES = flags.DEFINE_integer("cases", 8, "Synthetic cases.", 1)
_SPACING = flags.DEFINE_float("spacing", 1.0, "Their voxel size, mm.")

# For one H100.
_GOALS = {"plain": 71.0, "distillation": 53.0, "prediction": 2.9}


def _check() -> dict[str, Any]:
    """Finds every mistake before the first measurement; returns what JAX runs on."""
    measuring.check_machine(1)
    records.check_writable(_FILE.value, "--json")
    for flag in (_WIDTHS, _SCAN):
        if not all(word.isdigit() and int(word) for word in flag.value):
            raise UserError(f"--{flag.name} is {flag.value}: give positive whole numbers.")
    if len(_SCAN.value) != 3:
        raise UserError(f"--scan is {_SCAN.value}: give three edges, d,h,w.")
    divisor = 2 ** (len(_WIDTHS.value) - 1)
    if _PATCH.value % divisor:
        raise UserError(
            f"--patch is {_PATCH.value}: {len(_WIDTHS.value)} levels need a multiple of {divisor}."
        )
    if _PEER.value:
        measuring.check_peers("torch", "monai")
    # By a process of its own: this one must not take the device's memory.
    device = measuring.once("accelerator_ours:device", _cores())
    if device["backend"] == "cpu" and not _ALLOW_CPU.value:
        raise UserError(
            "JAX finds no accelerator (`python -c 'import jax; print(jax.devices())'`). Install "
            'its build for yours, such as `pip install -U "jax[cuda12]"`; or try the program out '
            "by --allow_cpu with a small --patch, --widths and --steps."
        )
    return device


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _measure_ours(batch: int, distil: bool) -> dict[str, Any]:
    return measuring.once(
        "accelerator_ours:training",
        _cores(),
        distil=distil,
        batch=batch,
        augmentation=_AUGMENT.value,
        root=_ROOT.value,
        cases=_CASES.value,
        spacing=_SPACING.value,
        **_training_options(),
    )


def _measure_peer(batch: int) -> dict[str, Any]:
    return measuring.once(
        "accelerator_peer:training",
        _cores(),
        batch=batch,
        compiled=_COMPILE.value,
        **_training_options(),
    )


def _training_options() -> dict[str, Any]:
    return {
        "widths": tuple(map(int, _WIDTHS.value)),
        "patch": _PATCH.value,
        "steps_per_block": _STEPS.value,
        "blocks": _BLOCKS.value,
        "bfloat16": _BFLOAT16.value,
        "supervision": _SUPERVISION.value,
    }


def _prediction_row(goal: float | None) -> records.Row:
    options = {
        "widths": tuple(map(int, _WIDTHS.value)),
        "patch": _PATCH.value,
        "shape": tuple(map(int, _SCAN.value)),
        "repetitions": _BLOCKS.value,
        "bfloat16": _BFLOAT16.value,
        "window_batch": _WINDOWS.value,
    }
    ours = measuring.once("accelerator_ours:prediction", _cores(), **options)
    peer = {"seconds": ()}
    if _PEER.value:
        place = "accelerator_peer:prediction"
        peer = measuring.once(place, _cores(), compiled=_COMPILE.value, **options)
    return records.make_row(
        "prediction_8_mirrors",
        "s",
        goal,
        ours["seconds"],
        peer["seconds"],
        goal_of="ours",
        peer_name="MONAI",
        notes=options,
    )


def main(argv: list[str]) -> None:
    """Checks, measures, prints, writes."""
    cli.refuse_arguments(argv)
    # Each side takes what it needs, and no more: the peaks are compared.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    device = _check()
    about = device["facts"] | {"command": provenance.command()}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    goals = _GOALS
    if device["backend"] == "cpu":
        print("--allow_cpu: this shows that all rows run; no goal is judged.")
        goals = {}
    rows: list[records.Row] = []

    def keep(new: list[records.Row]) -> None:
        rows.extend(new)
        print("\n".join(map(records.text, new)), flush=True)
        if _FILE.value:
            files.write_text(_FILE.value, records.to_json(rows, about))

    with tqdm.tqdm(total=4, unit="part", leave=False, disable=None) as bar:
        rates = measuring.once(
            "accelerator_ours:matmul", _cores(), edge=_MATMUL.value, repetitions=_BLOCKS.value
        )["flops"]
        tera = [rate / 1e12 for rate in rates]
        keep([records.make_row("matmul_bfloat16", "TFLOP/s", None, tera)])
        matmul, largest = statistics.median(rates), _LARGEST.value
        bar.update()
        ours = accelerator_rows.by_doubling(functools.partial(_measure_ours, distil=False), largest)
        peer = accelerator_rows.by_doubling(_measure_peer, largest) if _PEER.value else {}
        keep(accelerator_rows.training_rows("plain_step", goals.get("plain"), ours, peer, matmul))
        bar.update()
        ours = accelerator_rows.by_doubling(functools.partial(_measure_ours, distil=True), largest)
        keep(
            accelerator_rows.training_rows(
                "distillation_step", goals.get("distillation"), ours, {}, matmul
            )
        )
        bar.update()
        keep([_prediction_row(goals.get("prediction"))])


if __name__ == "__main__":
    cli.run(main)
