"""Checksum and hash: of the content, wherever it lies, and of every bit of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.core import checksums


def _tree() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((3, 4, 5), np.float32), "count": np.array(7, np.int32)}


def test_the_checksum_by_hand() -> None:
    # (bits of 2.0) + (bits of 1.0) * (1 + 2 * 2654435761), modulo 2^32; the first leaf counts once.
    bits = [0x40000000, 0x3F800000]
    expected = (bits[0] + bits[1] * (1 + 2 * 2654435761)) % 2**32
    assert checksums.checksum({"a": np.array([2.0, 1.0], np.float32)}) == expected


def test_devices_and_host_agree() -> None:
    tree = _tree()
    assert checksums.checksum(jax.tree.map(jnp.asarray, tree)) == checksums.checksum(tree)


@pytest.mark.parametrize("bit", [0, 15, 31])
@pytest.mark.parametrize("place", [0, 17, 59])
def test_every_bit_counts(bit: int, place: int) -> None:
    tree = _tree()
    before = checksums.checksum(tree)
    tree["w"].reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
    assert checksums.checksum(tree) != before


def test_the_order_counts() -> None:
    tree = _tree()
    before = checksums.checksum(tree)
    assert checksums.checksum({"w": tree["w"][:, ::-1], "count": tree["count"]}) != before
    assert checksums.checksum({"w": tree["w"].swapaxes(0, 1), "count": tree["count"]}) != before


def test_the_hash_changes_with_anything() -> None:
    params = {"a": np.arange(4.0, dtype=np.float32), "b": np.zeros(2, np.float32)}
    hashes = {
        checksums.content_hash(tree)
        for tree in (
            params,
            params | {"b": np.array([0, np.nextafter(np.float32(0), np.float32(1))], np.float32)},
            params | {"a": params["a"].reshape(2, 2)},
            params | {"a": params["a"].astype(np.float64)},
            {"a": params["a"], "c": params["b"]},
            {"a": params["a"]},
        )
    }
    assert len(hashes) == 6
    assert checksums.content_hash(jax.tree.map(jnp.asarray, params)) in hashes
