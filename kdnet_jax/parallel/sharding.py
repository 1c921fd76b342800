"""The device mesh ("data", "space"), and how states and batches lie on it.

One device is the mesh of size 1: there is no other code path. `jax.jit` with shardings is what
pjit became.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

# (parameters, image "b d h w m") -> (logits "b d h w k", named features)
Apply = Callable[[PyTree, Array], tuple[Array, dict[str, Array]]]
DATA, SPACE = "data", "space"
STATES = ("replicated", "sharded")


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
    return jax.make_mesh((data, space), (DATA, SPACE), axis_types=(AxisType.Auto,) * 2)


def local_mesh(space: int = 1) -> Mesh:
    """Returns a mesh of this process's own devices, `space` of them to a scan's depth.

    Raises:
        UserError: `space` does not divide them.
    """
    devices = jax.local_devices()
    if space < 1 or len(devices) % space:
        fitting = ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise UserError(
            f"a scan's depth cannot be shared by {space} of {len(devices)} devices "
            f"({jax.default_backend()}): choose one of {fitting}."
        )
    shape = (len(devices) // space, space)
    return jax.make_mesh(shape, (DATA, SPACE), axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batch(
    mesh: Mesh, batch: int, patch: Sequence[int], accumulate: int = 1, divisor: int = 1
) -> None:
    """Raises UserError if the mesh cannot divide the batch, or the depth of its patches, evenly.

    Args:
        mesh: the devices.
        batch: samples in all.
        patch: "d h w" in voxels.
        accumulate: parts that each device works through its samples in.
        divisor: what the network needs each device's depth to be divisible by.
    """
    data, space = mesh.shape[DATA], mesh.shape[SPACE]
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
    check_depth(space, patch, divisor, "loader.patch")


def check_depth(
    space: int, patch: Sequence[int], divisor: int, key: str, space_key: str = "mesh.space"
) -> None:
    """Raises UserError, with the sizes that would do, if a depth cannot be split evenly.

    Args:
        space: devices to split it over.
        patch: "d h w" in voxels.
        divisor: what the network needs each device's depth to be divisible by.
        key: of the config, that `patch` is the value of.
        space_key: what gave `space`.
    """
    depth, unit = patch[0], space * divisor
    if depth % unit == 0:
        return
    below = depth // unit * unit
    sizes = [",".join(map(str, (each, *patch[1:]))) for each in (below, below + unit) if each]
    counts = [str(n) for n in range(1, depth // divisor + 1) if depth % (n * divisor) == 0]
    fewer = f", or {' or '.join(counts)} devices for its depth" if counts else ""
    raise UserError(
        f"{key} has depth {depth}, but the mesh has {space} devices on its space axis, so that "
        f"{space} x {divisor} must divide the depth: the network needs planes on each device that "
        f"{divisor} divides. Possible: {key}={' or '.join(sizes)}{fewer} ({space_key})."
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device: parameters, optimizer state, keys, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batch over "data", depth over "space": for "b d h w ..." arrays."""
    return NamedSharding(mesh, PartitionSpec(DATA, SPACE))


def state_sharding(mesh: Mesh, state: PyTree, mode: str) -> PyTree:
    """Returns how each array of a train state lies on the mesh, as a tree of `NamedSharding`.

    Args:
        mesh: the devices.
        state: a tree of arrays, or of their shapes.
        mode: "replicated": a full copy on every device; "sharded": each array split over "data"
            along the largest of its axes that this divides, as ZeRO does (Rajbhandari et al., 2020,
            https://arxiv.org/abs/1910.02054), and whole where there is none.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _state_spec(mesh, x.shape, mode)), state)


def _state_spec(mesh: Mesh, shape: Sequence[int], mode: str) -> PartitionSpec:
    devices = mesh.shape[DATA]
    axes = [axis for axis, size in enumerate(shape) if size and size % devices == 0]
    if mode == "replicated" or devices == 1 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, DATA)


def spread(apply: Apply, mesh: Mesh | None) -> Apply:
    """Returns a network's function, computed by each device for its own samples and planes.

    What a layer needs of other planes it fetches itself (`parallel.halo`).

    Args:
        apply: (parameters, input "b d h w m") to a tree of "b d h w ..." arrays.
        mesh: the devices; one of them, or None, computes it as it is.
    """
    if mesh is None or mesh.size == 1:
        return apply
    own = PartitionSpec(DATA, SPACE)
    # Without `check_vma` a custom gradient of a replicated parameter is the device's own share.
    return jax.shard_map(
        apply, mesh=mesh, in_specs=(PartitionSpec(), own), out_specs=own, check_vma=False
    )


def to_global(batch: PyTree, mesh: Mesh) -> PyTree:
    """Puts this process's share of a batch (a tree of "b d h w ..." arrays) on the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns this process's own arrays, of which all processes have the same, on every device."""
    # By way of the host: an array on a device cannot be sent to those of other processes.
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh))


def replicate_key(key: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns a random key as every device of the mesh holds it."""
    # A key cannot be sent to devices of other processes as it is; its numbers can.
    data = np.asarray(jax.random.key_data(key))
    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))
    return jax.jit(wrap, out_shardings=replicated(mesh))(data)


def to_own_devices(tree: PyTree) -> PyTree:
    """Returns whole copies of a tree's arrays that this process can use alone."""

    def own(x: jax.Array) -> jax.Array:
        if not x.is_fully_replicated:
            # What one device does not hold alone lies as `state_sharding` says.
            assert isinstance(x.sharding, NamedSharding)
            assert isinstance(x.sharding.mesh, Mesh)
            x = jax.jit(lambda part: part, out_shardings=replicated(x.sharding.mesh))(x)
        return x if x.is_fully_addressable else x.addressable_data(0)

    return jax.tree.map(own, tree)


def parts_of(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> dict[typed.Device, tuple[slice, ...]]:
    """Returns which part of an array of this shape lies on each device of this process."""
    parts = sharding.addressable_devices_indices_map(shape)
    return {device: part for device, part in parts.items() if part is not None}
