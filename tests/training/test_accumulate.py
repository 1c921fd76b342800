"""A batch worked through in parts: the same update, on one device and on four.

The device count is fixed when JAX starts, so four devices have a process of their own, which runs
this file as a script: `python test_accumulate.py OUTPUT.npz DATAxSPACE ...`.
"""

import math
import os
import re
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from configs import common
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import commands, glioma

CONFIG = unet.UNetConfig(widths=(2, 3), blocks=1, last_blocks=1, convolutions="planes")
CHANNELS = {"supervised": (0, 1), "distillation": (1,)}
EDGE = 8
# Mesh -> parts to work through the batch in.
MESHES = {"4x1": (2,), "2x2": (1, 2)}


def compiled_step(mesh: Any, form: str, accumulate: int, batch: int, edge: int = EDGE) -> Any:
    """Compiles a step on crops of two sequences."""
    network = steps.Network(unet.UNet(CONFIG).apply, glioma.SOFTMAX, CHANNELS[form])
    distil = form == "distillation"
    kd = distillation.DistillationOptions(kd_voxels="balanced") if distil else None
    step = steps.jit_step(
        mesh,
        student=network,
        teacher=network._replace(channels=(0, 1)) if distil else None,
        loss=objective.of_options(network.head, kd=kd),
        optimizer=optimizer(),
        # Of the spatial and of the voxel-wise draws some.
        plan=steps.Plan(augment.AugmentOptions(noise=0.1), accumulate=accumulate),
    )
    state, teacher = jax.eval_shape(lambda: (fresh_state(form), fresh_teacher(form)))
    shapes = steps.batch_shapes(batch, (edge,) * 3, 2)
    root = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, teacher, shapes, root).compile()


def optimizer() -> Any:
    # Not Adam: it divides by the gradient's size, and a bias before a norm has a gradient of 0,
    # whose rounding it would blow up to a full step.
    chosen = optimizers.OptimizerOptions(name="sgd", learning_rate=0.05, schedule="constant")
    return optimizers.make_optimizer(chosen, 100, 10)


def fresh_state(form: str) -> steps.TrainState:
    params = networks.init_params(CONFIG, len(CHANNELS[form]), jax.random.key(0))
    return steps.init_state(params, optimizer())


def fresh_teacher(form: str) -> Any:
    if form == "supervised":
        return ()
    return networks.init_params(CONFIG, 2, jax.random.key(1))


def make_batch(size: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (size, EDGE, EDGE, EDGE)).astype(np.uint8)
    image = (rng.normal(size=(*label.shape, 2)) + label[..., None]).astype(np.float32)
    # Samples that differ much, so that it shows if one is left out or counts twice.
    image *= np.linspace(0.3, 3, size, dtype=np.float32)[:, None, None, None, None]
    return {"image": image, "label": label}


def outcome(mesh: Any, step: Any, form: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Metrics and parameters after two steps."""
    whole = sharding.replicated(mesh)
    state, teacher, root = jax.device_put(
        (fresh_state(form), fresh_teacher(form), jax.random.key(2)), whole
    )
    rows = []
    for seed in range(2):
        data = sharding.to_global(make_batch(batch, seed), mesh)
        state, metrics = step(state, teacher, data, root)
        rows.append([float(metrics[name]) for name in sorted(metrics)])
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    return np.array(rows), flat


def assert_same(actual: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    # Sums in another order: float32 rounding, over two steps.
    for ours, theirs, tolerance in zip(actual, expected, (1e-5, 1e-6), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)


# --- One device ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("form", "accumulate"), [("supervised", 2), ("distillation", 4)])
def test_parts_give_the_update_of_the_whole_batch(form: str, accumulate: int) -> None:
    mesh = sharding.make_mesh()
    whole, parts = (
        outcome(mesh, compiled_step(mesh, form, count, 4), form, 4) for count in (1, accumulate)
    )
    metrics, params = whole
    before = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(fresh_state(form).params)])
    # More than the tolerance, or the comparison would say nothing.
    assert np.abs(params - before).max() > 1e-3
    assert metrics.shape == (2, {"supervised": 4, "distillation": 7}[form])
    assert_same(parts, whole)


@pytest.mark.once
def test_parts_take_less_memory() -> None:
    mesh = sharding.make_mesh()
    whole, quarter = (
        compiled_step(mesh, "supervised", parts, 4, 32).memory_analysis().temp_size_in_bytes
        for parts in (1, 4)
    )
    assert quarter < 0.5 * whole


# --- Four devices --------------------------------------------------------------------------------


def largest_moved(text: str) -> int:
    """Elements of the largest array that a compiled program moves between devices as it is."""
    moves = "all-gather|all-to-all|collective-permute"
    shapes = re.findall(rf"= \(?\w+\[([\d,]+)\].*? (?:{moves})(?:-start)?\(", text)
    return max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0)


def test_what_a_program_moves_is_read_from_its_text() -> None:
    line = "%all-gather.1 = f32[8,16,2]{2,1,0} all-gather(%param), channel_id=1"
    assert largest_moved(f"{line}\n%x = (u8[4]{{0}}, u8[4]{{0}}) all-to-all(%y, %z)") == 256
    assert largest_moved("%x = f32[8,16,2]{2,1,0} all-reduce(%param), op=all-gather") == 0


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("devices") / "four.npz"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = commands.python(__file__, output, *MESHES, env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(output) as saved:
        return dict(saved)


@pytest.mark.parametrize("mesh", MESHES)
def test_parts_on_four_devices_give_the_same_update(four: dict[str, np.ndarray], mesh: str) -> None:
    parts, whole = (
        (four[f"{name}/metrics"], four[f"{name}/params"]) for name in (f"{mesh}/2", "2x2/1")
    )
    assert_same(parts, whole)


def test_no_part_is_moved_to_other_devices(four: dict[str, np.ndarray]) -> None:
    assert four["4x1/2/moved"] == 0
    # Devices that share a sample exchange along its depth, without parts too.
    assert 0 < four["2x2/2/moved"] <= four["2x2/1/moved"]


# --- What cannot be ------------------------------------------------------------------------------


def test_parts_that_the_samples_of_a_device_do_not_fill_are_refused() -> None:
    mesh = AbstractMesh((4, 1), ("data", "space"))
    sharding.check_batch(mesh, 8, (EDGE,) * 3, 2)
    with pytest.raises(UserError, match=r"train\.accumulate is 4, but each of the mesh's 4") as e:
        sharding.check_batch(mesh, 8, (EDGE,) * 3, 4)
    assert "has 2 of the 8 samples of loader.batch" in str(e.value)
    assert "a divisor of 2, or set --config.loader.batch to a multiple of 16" in str(e.value)


def test_a_dice_over_the_batch_is_not_had_from_parts() -> None:
    config = common.base_config("baseline", "smoke")
    config.loader.batch = config.train.accumulate = 2
    assert reading.read(config).train.accumulate == 2
    config.loss.over_batch = True
    with pytest.raises(UserError, match=r"train\.accumulate is 2 and loss\.over_batch is true"):
        reading.read(config)
    config.train.accumulate = 1
    assert reading.read(config).loss.over_batch


@pytest.mark.parametrize("accumulate", [0, -2])
def test_a_count_of_parts_is_positive(accumulate: int) -> None:
    config = common.base_config("baseline", "smoke")
    config.train.accumulate = accumulate
    with pytest.raises(UserError, match=rf"train\.accumulate is {accumulate}: give .* from 1"):
        reading.read(config)


if __name__ == "__main__":
    arrays: dict[str, Any] = {}
    for name in sys.argv[2:]:
        data, space = map(int, name.split("x"))
        four_devices = sharding.make_mesh(data, space)
        for accumulate in MESHES[name]:
            sharding.check_batch(four_devices, 8, (EDGE,) * 3, accumulate)
            step = compiled_step(four_devices, "supervised", accumulate, 8)
            metrics, params = outcome(four_devices, step, "supervised", 8)
            prefix = f"{name}/{accumulate}"
            arrays[f"{prefix}/metrics"], arrays[f"{prefix}/params"] = metrics, params
            arrays[f"{prefix}/moved"] = largest_moved(step.as_text())
    np.savez(sys.argv[1], **arrays)
