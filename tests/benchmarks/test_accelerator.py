"""The logic of `benchmarks.accelerator`, and its refusal where there is no accelerator."""

import os
from typing import Any

import pytest

from benchmarks import accelerator_rows
from kdnet_jax import errors
from tests.helpers import commands


def _about(rates: list[float], flops: float | None = None) -> dict[str, Any]:
    return {"rates": rates, "flops_a_step": flops, "peak_gib": 1.0}


def test_doubling_ends_where_memory_does() -> None:
    asked = []

    def measure(batch: int) -> dict[str, Any]:
        asked.append(batch)
        return {"out_of_memory": True} if batch > 8 else _about([batch])

    assert list(accelerator_rows.by_doubling(measure, 64)) == [2, 4, 8]
    assert asked == [2, 4, 8, 16]
    assert list(accelerator_rows.by_doubling(measure, 4)) == [2, 4]


def test_a_network_that_never_fits_is_told() -> None:
    with pytest.raises(errors.UserError, match="batch of 2 does not fit"):
        accelerator_rows.by_doubling(lambda batch: {"out_of_memory": True}, 64)


def test_rows_of_the_first_and_the_largest_batch() -> None:
    ours = {2: _about([70, 72, 74], 4e12), 4: _about([80, 80, 80], 8e12)}
    peer = {2: _about([36])}
    first, largest = accelerator_rows.training_rows("plain_step", 71, ours, peer, 1e15)
    assert (first.name, first.ours, first.ratio, first.met) == ("plain_step_batch_2", 72, 2, True)
    assert (largest.notes["batch"], largest.notes["peer_batch"]) == (4, 2)
    # 36 steps a second of 4e12 operations, of 1e15.
    assert first.notes["ours_share_of_matmul"] == pytest.approx(0.144)
    assert first.notes["peer_share_of_matmul"] is None


@pytest.mark.once
def test_without_an_accelerator_it_refuses_at_once() -> None:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = commands.python("-m", "benchmarks.accelerator", "--nopeer", env=env, timeout=100)
    assert done.returncode == 2
    assert "JAX finds no accelerator" in done.stderr
    assert "--allow_cpu" in done.stderr
