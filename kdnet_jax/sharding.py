"""The device mesh ("data", "space"), and how states and batches lie on it.

One device is the mesh of size 1: there is no other code path. `jax.jit` with shardings is what
pjit became.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdnet_jax.errors import UserError


def make_mesh(data: int = -1, space: int = 1) -> Mesh:
    """Returns a mesh of `data` x `space` devices; -1 takes all that are left for data.

    Raises:
        UserError: if the devices at hand cannot be laid out so.
    """
    devices = jax.device_count()
    if space < 1 or data == 0 or data < -1:
        raise UserError(f"mesh is {data} x {space}: give positive sizes, or -1 for data.")
    if data == -1:
        data = devices // space
    if data * space != devices or data == 0:
        raise UserError(
            f"mesh.data x mesh.space is {data} x {space} = {data * space}, but there are "
            f"{devices} devices ({jax.default_backend()}). Set --config.mesh.data and .space so "
            f"that their product is {devices}, or leave mesh.data at -1."
        )
    # Auto axes: under Explicit ones a depth-to-space reshape raises.
    return jax.make_mesh((data, space), ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def check_batch(mesh: Mesh, batch: int, patch: Sequence[int], accumulate: int = 1) -> None:
    """Raises UserError if the mesh cannot divide the batch, or the depth of its patches, evenly.

    Args:
        mesh: the devices.
        batch: samples in all.
        patch: "d h w" in voxels.
        accumulate: parts that each device works through its samples in.
    """
    data, space = mesh.shape["data"], mesh.shape["space"]
    if batch < 1:
        raise UserError(f"loader.batch is {batch}: give at least 1.")
    if batch % data:
        raise UserError(
            f"loader.batch is {batch}, but the mesh has {data} devices on its data axis. Set "
            f"--config.loader.batch to a multiple of {data}, or --config.mesh.data to a divisor "
            f"of {batch}."
        )
    if batch // data % accumulate:
        raise UserError(
            f"train.accumulate is {accumulate}, but each of the mesh's {data} devices on the data "
            f"axis has {batch // data} of the {batch} samples of loader.batch. Give a divisor of "
            f"{batch // data}, or set --config.loader.batch to a multiple of {data * accumulate}."
        )
    if patch[0] % space:
        raise UserError(
            f"loader.patch has depth {patch[0]}, but the mesh has {space} devices on its space "
            f"axis. Give a depth that {space} divides, or another --config.mesh.space."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device: parameters, optimizer state, keys, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batch over "data", depth over "space": for "b d h w ..." arrays."""
    return NamedSharding(mesh, PartitionSpec("data", "space"))


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's share of a batch (a tree of "b d h w ..." arrays) on the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns this process's own arrays, of which all processes have the same, on every device."""
    # By way of the host: an array on a device cannot be sent to those of other processes.
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh))


def replicate_key(key: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns a random key as every device of the mesh holds it."""
    # A key cannot be sent to devices of other processes as it is; its numbers can.
    data = np.asarray(jax.random.key_data(key))
    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))
    return jax.jit(wrap, out_shardings=replicated(mesh))(data)


def to_own_devices(tree: Any) -> Any:
    """Returns whole copies of a tree's arrays that this process can use by itself."""

    def own(x: jax.Array) -> jax.Array:
        if not x.is_fully_replicated:
            x = jax.jit(lambda part: part, out_shardings=replicated(x.sharding.mesh))(x)
        return x if x.is_fully_addressable else x.addressable_data(0)

    return jax.tree.map(own, tree)
