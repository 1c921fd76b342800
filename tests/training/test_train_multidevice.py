"""The loop on four devices, with its transfer guard: the same training wherever the cases lie.

The device count is fixed when JAX starts, so the training runs in a process of its own, which runs
this file as a script: `python test_train_multidevice.py OUTPUT.json`.
"""

import json
import os
import pathlib
import sys
import tempfile

import jax
import optax
import pytest

from kdnet_jax.augment import augment
from kdnet_jax.data.loading import loader
from kdnet_jax.losses import objective
from kdnet_jax.parallel import sharding
from kdnet_jax.training import checkpoint, loop, progress, steps
from tests.helpers import commands, glioma, stores

ROOT = commands.ROOT
# On the device, kept on the host, streamed.
PLACES = ("device", "host", "stream")


def run(place: str, mesh: jax.sharding.Mesh, folder: pathlib.Path) -> list[dict[str, float]]:
    """Trains a 1x1x1 convolution for six steps; returns the numbers of its log without times."""
    optimizer = optax.sgd(0.1)
    step = steps.jit_step(
        mesh,
        student=(steps.Network(lambda p, x: (x @ p["w"], {}), glioma.SOFTMAX, (0, 1)),),
        loss=objective.of_options(glioma.SOFTMAX),
        optimizer=optimizer,
        plan=steps.Plan(augment.AugmentOptions(noise=0.1)),
    )
    weights = {"w": jax.random.normal(jax.random.key(0), (2, 4))}
    state = jax.device_put(steps.init_state(weights, optimizer), sharding.replicated(mesh))
    cases = stores.make_store(5)
    cases.cache_bytes = cases.decoded_bytes if place == "host" else 0
    options = {"patch": (8, 12, 10), "batch": 4, "seed": 0, "on_device": place == "device"}
    with (
        loader.make_loader(cases, range(5), mesh=mesh, **options) as batches,
        checkpoint.RunCheckpoints(folder) as checkpoints,
        progress.MetricsLog(folder, 0, 0) as log,
    ):
        learner = loop.Learner(
            *loop.resume(checkpoints, state, {}),
            validate=lambda params: [(0, {"et": 0.5})],
            checkpoints=checkpoints,
            log=log,
        )
        loop.train(
            step,
            [learner],
            batches,
            root=jax.random.key(1),
            mesh=mesh,
            options=loop.TrainOptions(6, 1, 3, 10.0, 0),
            description=place,
        )
    rows = progress.read_metrics(folder / progress.METRICS_FILE)
    return [
        {k: v for k, v in row.items() if not k.startswith("time_") and k != "split"} for row in rows
    ]


def test_four_devices_train_as_one_in_every_place(tmp_path: pathlib.Path) -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    done = commands.python(__file__, tmp_path / "four.json", env=environment)
    assert done.returncode == 0, done.stderr
    four = json.loads((tmp_path / "four.json").read_text("utf-8"))
    one = run("stream", sharding.make_mesh(), tmp_path)
    assert four["device"] == four["host"] == four["stream"]
    for ours, theirs in zip(four["device"], one, strict=True):
        # Sums in another order.
        assert ours == pytest.approx(theirs, rel=1e-4)


if __name__ == "__main__":
    found = {}
    for name in PLACES:
        with tempfile.TemporaryDirectory() as workdir:
            found[name] = run(name, sharding.make_mesh(2, 2), pathlib.Path(workdir))
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found), "utf-8")
