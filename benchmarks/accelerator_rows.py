"""The batches that `benchmarks.accelerator` tries, and the rows that it makes of them."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import records
from kdnet_jax.errors import UserError

START_BATCH = 2

# Measures a batch: {"rates", "peak_gib", ...}, or {"out_of_memory": True}.
Measure = Callable[[int], dict[str, Any]]


def by_doubling(measure: Measure, largest: int) -> dict[int, dict[str, Any]]:
    """Returns what was measured at batch 2, 4, 8 ... until memory, or `largest`, ends it.

    Raises:
        UserError: not even the first fits.
    """
    found: dict[int, dict[str, Any]] = {}
    batch = START_BATCH
    while batch <= largest:
        result = measure(batch)
        if result.get("out_of_memory"):
            break
        found[batch] = result
        batch *= 2
    if not found:
        raise UserError(
            f"A batch of {START_BATCH} does not fit into the device's memory: give smaller "
            "--widths or a smaller --patch."
        )
    return found


def training_rows(
    name: str,
    goal: float | None,
    ours: dict[int, dict[str, Any]],
    peer: dict[int, dict[str, Any]],
    matmul_flops: float,
) -> list[records.Row]:
    """Returns the rows of the first and the largest batch, in samples per second."""
    rows = []
    for label, pick in (("batch_2", min), ("largest_batch", max)):
        batch, other = pick(ours), pick(peer) if peer else None
        about, peer_about = ours[batch], peer[other] if peer else {}
        notes = {"batch": batch, "peer_batch": other, "matmul_flops_per_second": matmul_flops}
        for side, values in (("ours", about), ("peer", peer_about)):
            notes |= {f"{side}_{key}": value for key, value in values.items() if key != "rates"}
        notes["ours_share_of_matmul"] = share_of_matmul(about, batch, matmul_flops)
        if peer:
            notes["peer_share_of_matmul"] = share_of_matmul(peer_about, other, matmul_flops)
        rows.append(
            records.make_row(
                f"{name}_{label}",
                "samples/s",
                goal,
                about["rates"],
                peer_about.get("rates", ()),
                goal_of="ours",
                at_least=True,
                peer_name="DynUNet",
                notes=notes,
            )
        )
    return rows


def share_of_matmul(about: dict[str, Any], batch: int, matmul_flops: float) -> float | None:
    """Returns FLOP/s of the step over those of a matmul; None where the FLOPs are not known.

    Each side's own count: XLA's of the compiled program, PyTorch's of convolutions and products.
    """
    if not about["flops_a_step"]:
        return None
    return about["flops_a_step"] * statistics.median(about["rates"]) / batch / matmul_flops
