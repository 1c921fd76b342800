"""Four devices against one: the same losses and parameters, whatever the mesh.

The device count is fixed when JAX starts, so each count has a process of its own, which runs this
file as a script: `python test_multidevice.py OUTPUT.npz DATAxSPACE ...`.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

STEPS = 3
MESHES = ("4x1", "2x2", "1x4")


def train_on(data: int, space: int) -> dict[str, np.ndarray]:
    """Losses and final parameters of three distillation steps on a mesh."""
    import jax

    from kdnet_jax import optimizers, sharding, steps
    from kdnet_jax.data import augment
    from kdnet_jax.losses import distillation
    from kdnet_jax.models import unet

    config = unet.UNetConfig(widths=(2, 3), blocks=1, last_blocks=1, up="learned")
    network = steps.Network(unet.UNet(config).apply, config.head, (1,))
    # Not Adam: it divides by the gradient's size, and a bias before a norm has a gradient of 0,
    # whose rounding it would blow up to a full step.
    optimizer = optimizers.make_optimizer(
        optimizers.OptimizerOptions(name="sgd", learning_rate=0.01), STEPS, 1
    )
    mesh = sharding.make_mesh(data, space)
    step = steps.jit_distillation(
        mesh,
        network=network,
        teacher=network._replace(channels=(0, 1)),
        optimizer=optimizer,
        loss_options=steps.LossOptions(over_batch=True),
        options=distillation.DistillationOptions(kd_voxels="balanced"),
        augment_options=augment.AugmentOptions(noise=0.1),
    )
    rng = np.random.default_rng(0)
    state = steps.init_state(unet.init_params(config, 1, jax.random.key(0)), optimizer)
    teacher = unet.init_params(config, 2, jax.random.key(1))
    losses = []
    for _ in range(STEPS):
        label = rng.integers(0, 4, (4, 8, 4, 4)).astype(np.uint8)
        image = (rng.normal(size=(4, 8, 4, 4, 2)) + label[..., None]).astype(np.float32)
        sharding.check_batch(mesh, 4, (8, 4, 4))
        batch = sharding.to_global({"image": image, "label": label}, mesh)
        state, metrics = step(state, teacher, batch, jax.random.key(2))
        losses.append([float(metrics[name]) for name in sorted(metrics)])
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    return {f"{data}x{space}/metrics": np.array(losses), f"{data}x{space}/params": flat}


def run(output: pathlib.Path, devices: int, *meshes: str) -> dict[str, np.ndarray]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        # Compiling takes nearly all of the time, so the code is left slow.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    command = [sys.executable, __file__, str(output), *meshes]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(output) as saved:
        return dict(saved)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("devices")
    return run(folder / "one.npz", 1, "1x1") | run(folder / "four.npz", 4, *MESHES)


@pytest.mark.parametrize("mesh", MESHES)
def test_four_devices_train_as_one(results: dict[str, np.ndarray], mesh: str) -> None:
    # Sums in another order: float32 rounding, 1e-7 a sum, over three steps.
    for name, tolerance in (("metrics", 1e-4), ("params", 1e-5)):
        np.testing.assert_allclose(
            results[f"{mesh}/{name}"], results[f"1x1/{name}"], rtol=1e-4, atol=tolerance
        )
    assert results["1x1/metrics"].shape == (STEPS, 7)
    assert np.ptp(results["1x1/metrics"][:, -1]) > 0


if __name__ == "__main__":
    pairs = [mesh.split("x") for mesh in sys.argv[2:]]
    arrays: dict[str, np.ndarray] = {}
    for data, space in pairs:
        arrays |= train_on(int(data), int(space))
    np.savez(sys.argv[1], **arrays)
