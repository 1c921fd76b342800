"""Depth that is split over devices: what a layer fetches from its neighbours, and no more.

Inside `jax.shard_map` over a mesh with the axis "space" (`sharding.spread`) each device holds some
planes of a volume's depth. Elsewhere a device holds all of them and nothing is exchanged. Left to
itself XLA gathers whole volumes: where depth is folded into the batch (`layers.convolve`, "planes")
or two shifted copies are interleaved (upsampling).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kdnet_jax.parallel import sharding

_DEPTH = 1


def parts() -> int:
    """Returns over how many devices depth is split where this is traced; 1: it is whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[sharding.SPACE] if sharding.SPACE in mesh.manual_axes else 1


def total(x: Array) -> Array:
    """Returns the sum over the devices that hold parts of one depth."""
    return lax.psum(x, sharding.SPACE) if parts() > 1 else x


def with_neighbours(x: Float[Array, "b d h w c"], width: int) -> Float[Array, "b e h w c"]:
    """Puts the nearest `width` planes of both neighbours beside `x`, 0 where there is none.

    Raises:
        ValueError: a neighbour has fewer planes than that.
    """
    if not width:
        return x
    if parts() == 1:
        return jnp.pad(x, ((0, 0), (width, width), *((0, 0),) * (x.ndim - 2)))
    planes = x.shape[_DEPTH]
    if planes < width:
        raise ValueError(f"{planes} planes on a device, and {width} are read of each neighbour.")
    last, first = x[:, planes - width :], x[:, :width]
    return jnp.concatenate([_from_before(last), x, _from_after(first)], axis=_DEPTH)


def moved_on(x: Array, first: Array, axis: int) -> Array:
    """Returns `x` moved on by one along `axis`, the plane `first` before it.

    Along a split depth that is the first device's `first`; others have their neighbour's last.
    """
    size = x.shape[axis]
    rest, last = (
        lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, size - 1), (size - 1, size))
    )
    if axis == _DEPTH and parts() > 1:
        first = jnp.where(lax.axis_index(sharding.SPACE) == 0, first, _from_before(last))
    return jnp.concatenate([first, rest], axis)


def moved_back(x: Array, last: Array, axis: int) -> Array:
    """Returns `x` moved back by one along `axis`, the plane `last` after it (as `moved_on`)."""
    first, rest = (lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, 1), (1, x.shape[axis])))
    if axis == _DEPTH and parts() > 1:
        at_end = lax.axis_index(sharding.SPACE) == parts() - 1
        last = jnp.where(at_end, last, _from_after(first))
    return jnp.concatenate([rest, last], axis)


def _from_before(x: Array) -> Array:
    return lax.ppermute(x, sharding.SPACE, [(i, i + 1) for i in range(parts() - 1)])


def _from_after(x: Array) -> Array:
    return lax.ppermute(x, sharding.SPACE, [(i + 1, i) for i in range(parts() - 1)])
