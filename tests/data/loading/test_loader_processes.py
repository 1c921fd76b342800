"""Batches of two real processes: the same bits as those of one, on every mesh, from any position.

The processes run this file as a script:
`python -m tests.data.loading.test_loader_processes PORT PROCESS FOLDER DATAxSPACE ...`.
"""

import contextlib
import itertools
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

from kdnet_jax.data.loading import loader
from kdnet_jax.data.records import skipping
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding
from tests.helpers import companies, stores

SHAPES = ((14, 16, 18), (7, 20, 9), (9, 11, 30), (8, 12, 10), (7, 7, 7))
BATCH, PATCH = 4, (8, 12, 10)
# Batches of one process, then of two, then of one again.
PARTS = ((0, 2), (2, 5), (5, 7))


def open_batches(mesh: jax.sharding.Mesh, place: str, **options: Any) -> loader.PatchIterator:
    cases = [stores.make_case(number, shape) for number, shape in enumerate(SHAPES)]
    for number, case in enumerate(cases):
        case.image[...] = np.random.default_rng(number).normal(size=case.image.shape)
    made = stores.store_of(cases)
    made.cache_bytes = made.decoded_bytes if place == "host" else 0
    return loader.make_loader(
        made,
        range(len(cases)),
        mesh=mesh,
        patch=PATCH,
        batch=BATCH,
        seed=5,
        crops_per_read=2,
        on_device=place == "device",
        **options,
    )


def read_part(
    batches: loader.PatchIterator, state: dict[str, Any] | None, count: int
) -> list[loader.Batch]:
    if state:
        # A position is gone to although another one is being prepared.
        batches.start()
        batches.set_state(state)
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize(
    ("devices", "meshes"), [(1, ("2x1", "1x2")), (2, ("2x2", "4x1", "1x4"))], ids=["1", "2"]
)
def test_two_processes_hold_the_batches_of_one(
    tmp_path: pathlib.Path, devices: int, meshes: tuple[str, ...]
) -> None:
    alone = sharding.make_mesh()
    with open_batches(alone, "stream") as batches:
        expected = jax.device_get(list(itertools.islice(batches, PARTS[-1][1])))
    with open_batches(alone, "stream") as batches:
        read_part(batches, None, PARTS[0][1])
        (tmp_path / "state.json").write_text(json.dumps(batches.get_state()))
    port = companies.free_port()
    done = companies.run(
        [
            ("tests.data.loading.test_loader_processes", port, process, tmp_path, *meshes)
            for process in (0, 1)
        ],
        [{"JAX_NUM_CPU_DEVICES": str(devices)}] * 2,
    )
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    first, last = PARTS[1]
    for name in (f"{mesh}/{place}" for mesh in meshes for place in ("stream", "host", "device")):
        for number, key in itertools.product(range(last - first), ("image", "label")):
            wanted = expected[first + number][key]
            found = np.full_like(wanted, 77)
            for process in (0, 1):
                folder = tmp_path / str(process) / name
                for path in folder.glob(f"{number}-{key}-*.npy"):
                    b, d = map(int, path.stem.split("-")[2:])
                    part = np.load(path)
                    assert part.dtype == wanted.dtype
                    found[b : b + part.shape[0], d : d + part.shape[1]] = part
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}, {number}, {key}")
        # And back to one process.
        state = json.loads((tmp_path / "0" / name / "state.json").read_text())
        assert state == json.loads((tmp_path / "1" / name / "state.json").read_text())
        with open_batches(alone, "stream") as batches:
            rest = jax.device_get(read_part(batches, state, PARTS[2][1] - PARTS[2][0]))
        for ours, theirs in zip(rest, expected[PARTS[2][0] :], strict=True):
            np.testing.assert_array_equal(ours["image"], theirs["image"])


def _main(port: str, process: str, folder: str, *meshes: str) -> None:
    """Writes the parts that this process's devices hold, and the position after them."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    state = json.loads((pathlib.Path(folder) / "state.json").read_text())
    for name in meshes:
        data, space = map(int, name.split("x"))
        mesh = sharding.make_mesh(data, space)
        for place in ("stream", "host", "device"):
            own = pathlib.Path(folder) / process / name / place
            own.mkdir(parents=True)
            with open_batches(mesh, place) as batches:
                for number, batch in enumerate(
                    read_part(batches, state, PARTS[1][1] - PARTS[1][0])
                ):
                    _write_parts(own, number, batch)
                (own / "state.json").write_text(json.dumps(batches.get_state()))
        # A patch of which each process holds a part must not be replaced by one of them alone.
        refused = pytest.raises(UserError, match="several processes hold slices of one patch")
        with refused if data == 1 else contextlib.nullcontext():
            open_batches(mesh, "stream", unreadable=skipping.Unreadable(5, "skip")).close()


def _write_parts(folder: pathlib.Path, number: int, batch: loader.Batch) -> None:
    for key, value in batch.items():
        assert not value.is_fully_addressable
        for part in value.addressable_shards:
            start = "-".join(str(each.start or 0) for each in part.index[:2])
            np.save(folder / f"{number}-{key}-{start}.npy", np.asarray(part.data))


if __name__ == "__main__":
    _main(*sys.argv[1:])
