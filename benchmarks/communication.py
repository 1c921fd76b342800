"""What the devices of a mesh send each other in a step, counted in the compiled program.

    python -m benchmarks.communication --data=4 --space=2 --json=FILE

compiles a step for fake CPU devices, runs nothing, and adds up the bytes of each kind of collective
by what they are, for `docs/scaling.md`. The defaults are nnU-Net's widths and patch. XLA computes
bfloat16 in float32 on a CPU: on a GPU or TPU halos take half of the bytes.
"""

import collections
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from absl import app, flags

from benchmarks import collectives
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps

_DATA = flags.DEFINE_integer("data", 8, "Devices on the data axis")
_SPACE = flags.DEFINE_integer("space", 1, "Devices on the space axis")
_BATCH = flags.DEFINE_integer("batch", 2, "Samples on each device of the data axis")
_PATCH = flags.DEFINE_integer("patch", 128, "Edge of the patches in voxels")
_WIDTHS = flags.DEFINE_list("widths", [32, 64, 128, 256, 320, 320], "Channels of each level")
_STEP = flags.DEFINE_enum("step", "supervised", ["supervised", "distillation"], "Which step")
_STATE = flags.DEFINE_enum("state", "replicated", sharding.STATES, "As mesh.state")
_AUGMENT = flags.DEFINE_enum("augment", "plain", list(augment.PRESETS), "As augment.preset")
_JSON = flags.DEFINE_string("json", None, "Also write the rows here")


def what(array: collectives.Array, parameters: Iterable[tuple[int, ...]]) -> str:
    """Returns what an array is: gradients, halos of ..., norm statistics, sums of the loss, ..."""
    # Newer versions of JAX gather the step's argument before they cut from it, under its own name.
    if "/augment" in array.name or array.name.startswith("batch["):
        return "flips" if array.kind == "collective-permute" else "crops to augment"
    if array.kind == "collective-permute":
        return "halos of upsampling" if "_up/" in array.name else "halos of convolutions"
    if array.kind == "all-gather":
        return "parameters" if array.shape in parameters else "ACTIVATIONS"
    if "InstanceNorm" in array.name and "transpose(" not in array.name:
        return "norm statistics"
    if array.shape in parameters and array.shape:
        return "gradients"
    return "norm statistics" if "InstanceNorm" in array.name else "sums of loss and gradient norm"


def compile_step(
    *,
    config: unet.UNetConfig,
    mesh: jax.sharding.Mesh,
    batch: int,
    patch: tuple[int, int, int],
    distil: bool = False,
    state: str = "replicated",
    options: augment.AugmentOptions | None = None,
    modalities: int = 4,
) -> tuple[Any, set[tuple[int, ...]]]:
    """Compiles a step of a baseline or, with `distil`, of a student; returns also its shapes.

    Args:
        config: the network's; the teacher has the same.
        mesh: the devices.
        batch: samples in all.
        patch: "d h w" in voxels.
        distil: whether a teacher is there.
        state: as `mesh.state`.
        options: of the augmentation; by default none but flips and brightness.
        modalities: sequences of the data, all of which a teacher or a baseline sees.

    Returns:
        The compiled program, and the shapes of the network's parameters.
    """
    options = options or augment.AugmentOptions()
    everything = steps.Network(
        unet.UNet(config).apply, heads.Head(task_lib.GLIOMA), tuple(range(modalities))
    )
    network = everything._replace(channels=(0,)) if distil else everything
    optimizer = optimizers.make_optimizer(optimizers.OptimizerOptions(), 10, 1)
    params, taught = (
        jax.eval_shape(lambda n=n: networks.init_params(config, n, jax.random.key(0)))
        for n in (len(network.channels), modalities)
    )
    whole = jax.eval_shape(lambda p: steps.init_state(p, optimizer), params)
    kd = distillation.DistillationOptions() if distil else None
    step = steps.jit_step(
        mesh,
        student=network,
        teacher=everything if distil else None,
        loss=objective.of_options(network.head, kd=kd),
        optimizer=optimizer,
        plan=steps.Plan(options, patch),
        state_sharding=sharding.state_sharding(mesh, whole, state),
    )
    shapes = steps.batch_shapes(batch, augment.source_patch(patch, options), modalities)
    root = jax.eval_shape(lambda: jax.random.key(0))
    compiled = step.lower(whole, taught if distil else (), shapes, root).compile()
    return compiled, {leaf.shape for leaf in jax.tree.leaves(params)}


def count(text: str, parameters: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
    """Returns a row for each kind of collective and what it moves: arrays and bytes a device."""
    numbers, sizes = collections.Counter(), collections.Counter()
    for array in collectives.of_program(text):
        key = (array.kind, what(array, parameters), array.type)
        numbers[key] += 1
        sizes[key] += array.bytes
    return [
        {"collective": kind, "what": name, "type": element, "arrays": n, "bytes": sizes[key]}
        for key, n in sorted(numbers.items())
        for kind, name, element in [key]
    ]


def main(argv: list[str]) -> None:
    """Compiles the step of the flags, and prints what it communicates."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DATA.value * _SPACE.value)
    config = unet.UNetConfig(
        widths=tuple(map(int, _WIDTHS.value)),
        last_blocks=2,
        down="strided",
        up="learned",
        deep_supervision=True,
        convolutions="native",
    )
    compiled, parameters = compile_step(
        config=config,
        mesh=sharding.make_mesh(_DATA.value, _SPACE.value),
        batch=_BATCH.value * _DATA.value,
        patch=(_PATCH.value,) * 3,
        distil=_STEP.value == "distillation",
        state=_STATE.value,
        options=augment.PRESETS[_AUGMENT.value],
    )
    rows = count(compiled.as_text(), parameters)
    print(f"{'collective':20} {'what':32} {'type':6} {'arrays':>7} {'MB a device':>12}")
    for row in rows:
        print(
            f"{row['collective']:20} {row['what']:32} {row['type']:6} {row['arrays']:7d} "
            f"{row['bytes'] / 1e6:12.4f}"
        )
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    app.run(main)
