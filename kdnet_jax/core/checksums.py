"""Checksum and hash of the content of a tree of arrays.

The checksum does not depend on where the arrays lie: it is computed on the devices as part of a
save, whatever the mesh, and again from what was read.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree, UInt32

# Odd, so that a changed bit never vanishes in the sum modulo 2^32; one for each axis.
_STRIDES = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2869860233)


def checksum(tree: PyTree) -> int:
    """Returns the sum over all leaves of their 32-bit patterns, weighted by position, mod 2^32.

    Sums of integers are exact in any order, so the result is that of one device on any mesh. Every
    single changed bit changes it. Leaves are of 32 bits an element.
    """
    leaves = jax.tree.leaves(tree)
    on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    sums = [_sum_on_host(leaf) for leaf in leaves] if on_host else jax.device_get(_sums(leaves))
    return sum((2 * place + 1) * int(each) for place, each in enumerate(sums)) % 2**32


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_sum_on_device(leaf) for leaf in leaves]


def _sum_on_device(x: Array) -> UInt32[Array, ""]:
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    weight = jnp.ones((), jnp.uint32)
    for axis, stride in zip(range(x.ndim), _STRIDES, strict=False):
        weight = weight + 2 * jnp.uint32(stride) * lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def _sum_on_host(x: np.ndarray) -> np.uint32:
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    weight = np.ones((), np.uint32)
    with np.errstate(over="ignore"):  # modulo 2^32 is what is meant
        for axis, stride in zip(range(x.ndim), _STRIDES, strict=False):
            steps = np.arange(x.shape[axis], dtype=np.uint32) * np.uint32(2 * stride % 2**32)
            weight = weight + steps.reshape([-1 if k == axis else 1 for k in range(x.ndim)])
        return np.sum(bits * weight, dtype=np.uint32)


def content_hash(params: PyTree) -> str:
    """Returns a SHA-256 over names, shapes, types and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
