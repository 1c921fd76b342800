"""What each setting that saves memory saves: python -m benchmarks.memory_options.

    python -m benchmarks.memory_options [--patch=64] [--batch=2] [--widths=16,32,64,128,256]

Prints, for the training step of a U-Net on 4 channels without augmentation, plain and with each
setting: what XLA plans for the step (`memory.step_bytes`), what the gradient keeps of the forward
pass (by JAX's shapes, convolutions native, as on a GPU), and what a process of its own that takes
three steps holds at most beyond what it held after its imports. Takes about 2 minutes on 2 cores.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import tqdm
from absl import flags

from benchmarks import made_data, measuring
from kdnet_jax import cli
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.core import memory
from kdnet_jax.losses import objective
from kdnet_jax.models import heads, layers, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps

_STEPS = 3
# Setting -> parts of the batch, and changes of the network.
ROWS: dict[str, tuple[int, dict[str, bool]]] = {
    "plain": (1, {}),
    "train.accumulate=2": (2, {}),
    "model.remat=true": (1, {"remat": True}),
    "model.bfloat16=true": (1, {"bfloat16": True}),
}


def measure(row: str, edge: int, batch: int, widths: Sequence[int]) -> measuring.Job:
    """Compiles the step of a row and takes it: "plan", "kept" and "peak", all GiB."""
    accumulate, changes = ROWS[row]
    config = unet.UNetConfig(widths=tuple(widths), **{"bfloat16": False} | changes)
    jax.devices()
    layers.choose_form("auto")
    measuring.forget_peak()
    start = measuring.memory_gib("VmRSS")
    mesh = sharding.make_mesh()
    optimizer = optimizers.make_optimizer(optimizers.OptimizerOptions(), 1000, 100)
    head = heads.Head(task_lib.GLIOMA)
    step = steps.jit_step(
        mesh,
        student=steps.Network(unet.UNet(config).apply, head, tuple(range(made_data.CHANNELS))),
        loss=objective.of_options(head),
        optimizer=optimizer,
        plan=steps.Plan(augment.choose("none"), accumulate=accumulate),
    )
    params = networks.init_params(config, made_data.CHANNELS, jax.random.key(0))
    state, root = jax.device_put(
        (steps.init_state(params, optimizer), jax.random.key(1)), sharding.replicated(mesh)
    )
    image, label = made_data.batch(batch, edge)
    data = sharding.to_global({"image": image, "label": label}, mesh)
    compiled = step.lower(state, (), data, root).compile()
    memory.return_freed()
    measuring.forget_peak()
    for _ in range(_STEPS):
        state, metrics = compiled(state, (), data, root)
        jax.block_until_ready((state, metrics))
    return measuring.Job(
        about={
            "plan": memory.step_bytes(compiled) / 2**30,
            "kept": kept_bytes(config, batch // accumulate, edge) / 2**30,
            "peak": measuring.memory_gib("VmHWM") - start,
        }
    )


def kept_bytes(config: unet.UNetConfig, batch: int, edge: int) -> int:
    """Returns what the gradient of a network keeps of its forward pass; nothing is computed."""
    net = unet.UNet(dataclasses.replace(config, convolutions="native"))
    x = jax.ShapeDtypeStruct((batch, edge, edge, edge, made_data.CHANNELS), "float32")
    params = jax.eval_shape(net.init, jax.random.key(0), x)

    def pull_back(params: Any, x: jax.Array) -> Any:
        return jax.vjp(lambda params: net.apply(params, x)[0], params)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull_back, params, x))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


def define_flags() -> None:
    """Not at import, since each worker imports this module twice."""
    flags.DEFINE_integer("patch", 64, "Edge of the patches, voxels.", 1)
    flags.DEFINE_integer("batch", 2, "Patches a step; even.", 2)
    flags.DEFINE_list("widths", ["16", "32", "64", "128", "256"], "Channels of the levels.")
    flags.DEFINE_integer("cores", 2, "Cores of each process.", 1)


def main(argv: list[str]) -> None:
    """Measures and prints the rows."""
    cli.refuse_arguments(argv)
    given = flags.FLAGS
    measuring.check_machine(given.cores)
    sizes = {"edge": given.patch, "batch": given.batch, "widths": tuple(map(int, given.widths))}
    patch = (given.patch,) * 3
    networks.check_patch(patch, unet.UNetConfig(widths=sizes["widths"]), "patch")
    sharding.check_batch(sharding.make_mesh(), given.batch, patch, 2)
    lines = []
    for row in tqdm.tqdm(ROWS, unit="row", leave=False):
        found = measuring.once("memory_options:measure", given.cores, row=row, **sizes)
        figures = " | ".join(f"{found[key]:.2f}" for key in ("plan", "kept", "peak"))
        lines.append(f"| `{row}` | {figures} |")
    print("| setting | XLA's plan, GiB | kept for the gradient, GiB | most held in training, GiB |")
    print("|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
