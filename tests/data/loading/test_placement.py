"""Where the cases lie: by what is free, said with its figures, refused where it cannot be."""

import jax
import pytest

from kdnet_jax.data.loading import placement
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding
from tests.helpers import stores

# Two sequences of float16 and a class: 5 bytes for each of 14 x 16 x 18 voxels. A decoded case has
# its reference too: 6 bytes.
ON_DEVICE, DECODED = 5 * 14 * 16 * 18, 6 * 14 * 16 * 18
LARGE = 10**9


def choose(
    asked: str, host: int, device: int | None = None, training: range = range(4)
) -> placement.Placement:
    return placement.choose(
        asked,
        stores.make_store(6),
        training,
        mesh=sharding.make_mesh(),
        free=placement.Memory(host, device),
    )


@pytest.mark.parametrize(
    ("host", "device", "mode"),
    [
        (LARGE, 2 * 4 * ON_DEVICE, "device"),
        (2 * 6 * DECODED, 2 * 4 * ON_DEVICE - 1, "host"),
        (2 * 6 * DECODED - 1, 2 * 4 * ON_DEVICE - 1, "stream"),
        # Device memory that is the host's.
        (LARGE, None, "host"),
        (2 * 6 * DECODED - 1, None, "stream"),
    ],
)
def test_auto_takes_the_first_that_fits_in_half(host: int, device: int | None, mode: str) -> None:
    chosen = choose("auto", host, device)
    assert chosen.mode == mode
    assert "loader.cache=auto" in chosen.sentence
    assert "4 training cases" in chosen.sentence


def test_a_choice_that_fits_is_taken_although_auto_would_not() -> None:
    assert choose("device", 10**6, 4 * ON_DEVICE).mode == "device"
    assert choose("host", 6 * DECODED, LARGE).mode == "host"
    assert choose("stream", LARGE, LARGE).mode == "stream"


@pytest.mark.parametrize(
    ("asked", "host", "device"),
    [
        ("device", LARGE, 4 * ON_DEVICE - 1),
        ("device", 4 * ON_DEVICE - 1, None),
        ("host", 6 * DECODED - 1, LARGE),
    ],
)
def test_a_choice_that_cannot_fit_is_refused(asked: str, host: int, device: int | None) -> None:
    with pytest.raises(UserError, match=rf"loader.cache is '{asked}'.* MiB.*loader.cache=auto"):
        choose(asked, host, device)


def test_what_stays_in_host_memory() -> None:
    assert choose("host", LARGE).cache_bytes == 6 * DECODED
    # The two cases that do not train, or all, within an eighth of what is free.
    assert choose("device", LARGE, LARGE).cache_bytes == 2 * DECODED
    assert choose("stream", LARGE).cache_bytes == 6 * DECODED
    assert choose("stream", 8000).cache_bytes == 1000
    # The device's copy is taken from the host's memory first.
    assert choose("device", 8000 + 4 * ON_DEVICE).cache_bytes == 1000


def test_memory_is_measured() -> None:
    free = placement.free_memory(sharding.make_mesh())
    assert free.host > 2**20
    assert (free.device is None) == (jax.default_backend() == "cpu")
