"""Meshes on the devices at hand, and what cannot be divided."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding


def test_one_device_is_a_mesh_of_size_one() -> None:
    if jax.device_count() != 1:
        pytest.skip("needs a process with one device")
    for mesh in (sharding.make_mesh(), sharding.make_mesh(1, 1)):
        assert dict(mesh.shape) == {"data": 1, "space": 1}


def test_a_mesh_that_the_devices_do_not_fill_is_refused() -> None:
    devices = jax.device_count()
    with pytest.raises(UserError, match=f"there are {devices} devices") as error:
        sharding.make_mesh(devices + 1, 2)
    assert f"{devices + 1} x 2 = {2 * devices + 2}" in str(error.value)
    with pytest.raises(UserError, match=r"mesh\.data x mesh\.space is 0"):
        sharding.make_mesh(-1, devices + 1)


@pytest.mark.parametrize(("data", "space"), [(0, 1), (-2, 1), (1, 0), (-1, -1)])
def test_sizes_that_are_no_sizes_are_refused(data: int, space: int) -> None:
    with pytest.raises(UserError, match=f"mesh is {data} x {space}: give positive"):
        sharding.make_mesh(data, space)


def test_batches_and_depths_that_a_mesh_cannot_divide_are_refused() -> None:
    # Only the mesh's sizes matter here, so no devices are needed.
    mesh = AbstractMesh((4, 2), ("data", "space"))
    sharding.check_batch(mesh, 8, (16, 5, 5))
    with pytest.raises(UserError, match=r"loader\.batch is 6, but the mesh has 4 devices") as error:
        sharding.check_batch(mesh, 6, (16, 16, 16))
    assert "--config.loader.batch to a multiple of 4" in str(error.value)
    with pytest.raises(UserError, match=r"loader\.patch has depth 5, but the mesh has 2 devices"):
        sharding.check_batch(mesh, 4, (5, 16, 16))


def test_a_depth_that_cannot_be_divided_is_refused_with_those_that_can() -> None:
    mesh = AbstractMesh((1, 4), ("data", "space"))
    sharding.check_batch(mesh, 1, (64, 48, 40), divisor=16)
    with pytest.raises(UserError, match=r"loader\.patch has depth 96") as error:
        sharding.check_batch(mesh, 1, (96, 48, 40), divisor=16)
    # 96 is 6 x 16: 1, 2, 3 or 6 devices; of 4, 64 and 128 are the next depths.
    assert "loader.patch=64,48,40 or 128,48,40" in str(error.value)
    assert "1 or 2 or 3 or 6 devices for its depth (mesh.space)" in str(error.value)
    with pytest.raises(UserError, match=r"loader\.patch=64,48,40, or 1 or 3 devices"):
        sharding.check_batch(mesh, 1, (48, 48, 40), divisor=16)


def test_devices_of_a_process_that_cannot_share_a_depth_are_refused() -> None:
    devices = jax.local_device_count()
    assert dict(sharding.local_mesh().shape) == {"data": devices, "space": 1}
    with pytest.raises(UserError, match=f"shared by {devices + 1} of {devices} devices"):
        sharding.local_mesh(devices + 1)


def test_a_state_is_split_along_the_largest_axis_that_divides() -> None:
    mesh = AbstractMesh((4, 2), ("data", "space"))
    shapes = ((3, 3, 3, 8, 4), (3, 3, 3, 6, 12), (6,), (), (4, 6))
    state = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    found = sharding.state_sharding(mesh, state, "sharded")
    assert [each.spec for each in found] == [
        PartitionSpec(None, None, None, "data"),
        PartitionSpec(None, None, None, None, "data"),
        PartitionSpec(),
        PartitionSpec(),
        PartitionSpec("data"),
    ]
    whole = sharding.state_sharding(mesh, state, "replicated")
    assert {each.spec for each in whole} == {PartitionSpec()}


def test_a_batch_put_on_the_mesh_keeps_its_values() -> None:
    mesh = sharding.make_mesh()
    size = 2 * jax.device_count()
    batch = {
        "image": np.random.default_rng(0).normal(size=(size, 2, 3, 4, 2)).astype(np.float32),
        "label": np.random.default_rng(0).integers(0, 4, (size, 2, 3, 4)).astype(np.uint8),
    }
    placed = sharding.to_global(batch, mesh)
    for name, values in batch.items():
        np.testing.assert_array_equal(placed[name], values)
        assert placed[name].dtype == values.dtype
        assert placed[name].sharding.spec == PartitionSpec("data", "space")
