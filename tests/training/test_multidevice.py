"""Four devices against one: the same losses and parameters, whatever the mesh and the state's form.

The device count is fixed when JAX starts, so each count has a process of its own, which runs this
file as a script: `python test_multidevice.py OUTPUT.npz DATAxSPACE ...`. The programs that train
are also read: what do the devices send each other?
"""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import collectives, communication
from kdnet_jax.augment import augment
from kdnet_jax.losses import distillation, objective, segmentation
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import commands, glioma

STEPS = 3
# Of how many parts a sharded state is on each.
MESHES = {"4x1": 4, "2x2": 2, "1x4": 1}
# The mesh of both axes is tried on every stack; each of the others has one of them.
on_meshes = pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=() if mesh == "2x2" else pytest.mark.once, id=mesh)
        for mesh in MESHES
    ],
)
PATCH = (16, 8, 8)
# Between them: every layer, both forms of the convolution that a mesh takes, both forms of the
# state, an augmentation without and one with whole crops.
NETWORKS = {
    "replicated": unet.UNetConfig(widths=(4, 8), blocks=1, last_blocks=1, convolutions="planes"),
    "sharded": unet.UNetConfig(
        widths=(4, 4, 8),
        blocks=1,
        last_blocks=1,
        down="strided",
        up="learned",
        deep_supervision=True,
        convolutions="native",
    ),
}
AUGMENT = {
    "replicated": augment.AugmentOptions(),
    "sharded": augment.AugmentOptions(noise=0.1, rotation_probability=0.5),
}


def train_on(mesh: jax.sharding.Mesh, state_form: str) -> tuple[dict[str, Any], str]:
    """Metrics and parameters of three distillation steps, shares of bytes, and the program."""
    config = NETWORKS[state_form]
    network = steps.Network(unet.UNet(config).apply, glioma.SOFTMAX, (1,))
    # Not Adam: it divides by the gradient's size, and a bias before a norm has a gradient of 0,
    # whose rounding it would blow up to a full step.
    optimizer = optimizers.make_optimizer(
        optimizers.OptimizerOptions(name="sgd", learning_rate=0.01), STEPS, 1
    )
    state = steps.init_state(networks.init_params(config, 1, jax.random.key(0)), optimizer)
    form = sharding.state_sharding(mesh, state, state_form)
    step = steps.jit_step(
        mesh,
        student=network,
        teacher=network._replace(channels=(0, 1)),
        loss=objective.of_options(
            network.head,
            segmentation.LossOptions(over_batch=True),
            distillation.DistillationOptions(kd_voxels="balanced"),
        ),
        optimizer=optimizer,
        plan=steps.Plan(AUGMENT[state_form], PATCH),
        state_sharding=form,
    )
    teacher = networks.init_params(config, 2, jax.random.key(1))
    crop = augment.source_patch(PATCH, AUGMENT[state_form])
    shapes = steps.batch_shapes(4, crop, 2)
    compiled = step.lower(state, teacher, shapes, jax.random.key(2)).compile()
    state = jax.device_put(state, form)
    teacher = sharding.replicate(teacher, mesh)
    root = sharding.replicate_key(jax.random.key(2), mesh)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        label = rng.integers(0, 4, (4, *crop)).astype(np.uint8)
        image = (rng.normal(size=(4, *crop, 2)) + label[..., None]).astype(np.float32)
        batch = sharding.to_global({"image": image, "label": label}, mesh)
        state, metrics = compiled(state, teacher, batch, root)
        losses.append([float(metrics[name]) for name in sorted(metrics)])
    leaves = jax.tree.leaves(state.opt_state)
    found = {
        "metrics": np.array(losses),
        "params": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]),
        "bytes": np.array(sum(leaf.nbytes for leaf in leaves)),
        "own_bytes": np.array(sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)),
    }
    return found, compiled.as_text()


def sent(text: str, state_form: str) -> np.ndarray:
    """Kind and content of all collectives of a program, as JSON."""
    config = NETWORKS[state_form]
    params = jax.eval_shape(lambda: networks.init_params(config, 1, jax.random.key(0)))
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    found = [[each.kind, communication.what(each, shapes)] for each in collectives.of_program(text)]
    return np.array(json.dumps(found))


def supervised_text(mesh: jax.sharding.Mesh) -> str:
    """The program of a baseline's step, of the layers that the replicated student's lacks."""
    compiled, _ = communication.compile_step(
        config=dataclasses.replace(NETWORKS["sharded"], convolutions="planes"),
        mesh=mesh,
        batch=4,
        patch=PATCH,
    )
    return compiled.as_text()


def run(output: pathlib.Path, devices: int, *meshes: str) -> dict[str, np.ndarray]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Compiling takes nearly all of the time, so the code is left slow.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = commands.python(__file__, output, *meshes, env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(output) as saved:
        return dict(saved)


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("devices")
    # The meshes of the tests that are run, in the order of MESHES.
    here = [item for item in request.session.items if item.path == request.path]
    params = [getattr(item, "callspec", None) for item in here]
    asked = {each.params.get("mesh") for each in params if each}
    meshes = [mesh for mesh in MESHES if mesh in asked]
    return run(folder / "one.npz", 1, "1x1") | run(folder / "four.npz", 4, *meshes)


@pytest.mark.parametrize("state_form", sharding.STATES)
@on_meshes
def test_four_devices_train_as_one(
    results: dict[str, np.ndarray], mesh: str, state_form: str
) -> None:
    # Sums in another order: float32 rounding, 1e-7 a sum, over three steps.
    for name, tolerance in (("metrics", 1e-4), ("params", 1e-5)):
        np.testing.assert_allclose(
            results[f"{mesh}/{state_form}/{name}"],
            results[f"1x1/{state_form}/{name}"],
            rtol=1e-4,
            atol=tolerance,
        )
    metrics = results[f"1x1/{state_form}/metrics"]
    assert metrics.shape[0] == STEPS
    assert np.ptp(metrics[:, -1]) > 0


@on_meshes
def test_no_activations_are_gathered(results: dict[str, np.ndarray], mesh: str) -> None:
    baseline = json.loads(str(results[f"{mesh}/supervised"]))
    found = json.loads(str(results[f"{mesh}/replicated/sent"]))
    for program in (found, baseline):
        assert {kind for kind, _ in program} <= {"all-reduce", "collective-permute"}
    # Depth is exchanged by halos, where it is split.
    assert (["collective-permute", "halos of convolutions"] in found) == (mesh != "4x1")
    assert (["collective-permute", "halos of upsampling"] in found) == (mesh != "4x1")


@on_meshes
def test_a_sharded_state_gathers_parameters_and_nothing_else(
    results: dict[str, np.ndarray], mesh: str
) -> None:
    found = json.loads(str(results[f"{mesh}/sharded/sent"]))
    gathered = {content for kind, content in found if kind in ("all-gather", "all-to-all")}
    # A rotation takes a voxel from anywhere in its crop: crops of the input, not activations, are
    # gathered over the devices that share their depth. Parameters are, where the state is split.
    expected = {"4x1": {"parameters"}, "1x4": {"crops to augment"}}
    assert gathered == expected.get(mesh, {"parameters", "crops to augment"})


@on_meshes
def test_a_sharded_state_takes_its_share_of_memory(
    results: dict[str, np.ndarray], mesh: str
) -> None:
    for state_form, devices in (("replicated", 1), ("sharded", MESHES[mesh])):
        whole = int(results[f"{mesh}/{state_form}/bytes"])
        own = int(results[f"{mesh}/{state_form}/own_bytes"])
        # The few numbers that cannot be divided are on every device.
        assert whole / devices <= own <= 1.05 * whole / devices


if __name__ == "__main__":
    arrays: dict[str, np.ndarray] = {}
    for mesh_name in sys.argv[2:]:
        on = sharding.make_mesh(*map(int, mesh_name.split("x")))
        for how in sharding.STATES:
            values, program = train_on(on, how)
            values["sent"] = sent(program, how)
            arrays |= {f"{mesh_name}/{how}/{key}": value for key, value in values.items()}
        if on.size > 1:
            arrays[f"{mesh_name}/supervised"] = sent(supervised_text(on), "sharded")
    np.savez(sys.argv[1], **arrays)
