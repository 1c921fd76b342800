"""Prepared cases in memory whose voxels tell where they are, as a store."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import geometry, prepare


def make_case(index: int, shape: tuple[int, int, int], tumour: bool = True) -> prepare.PreparedCase:
    """A case whose image tells where each voxel is, and what its label is."""
    label = np.zeros(shape, np.uint8)
    if tumour:
        rng = np.random.default_rng(index)
        middle = [int(rng.integers(3, size - 3)) for size in shape]
        label[middle[0], middle[1], middle[2]] = 3
        label[middle[0] - 1, middle[1], :] = 2
    image = np.stack([label.astype(np.float16), np.full(shape, index + 1, np.float16)], axis=-1)
    way = geometry.Geometry(
        shape=shape,
        affine=np.diag([-1.0, -1.0, 1.0, 1.0]),
        box=tuple((0, size) for size in shape),
        spacing=(1.0, 1.0, 1.0),
        working_shape=shape,
    )
    return prepare.PreparedCase(
        f"case_{index}", f"case_{index}", None, ("t1", "t2"), image, label, label, way
    )


class Records:
    """Decoded records in memory, counting their reads."""

    def __init__(self, cases: Sequence[prepare.PreparedCase]) -> None:
        self.records = [store.to_record(case) for case in cases]
        self.reads = [0] * len(cases)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads[index] += 1
        return self.records[index]


def make_store(
    count: int, shape: tuple[int, int, int] = (14, 16, 18), without_tumour: Sequence[int] = ()
) -> store.CaseStore:
    """A store of `count` cases of one shape."""
    return store_of([make_case(i, shape, tumour=i not in without_tumour) for i in range(count)])


def store_of(
    cases: Sequence[prepare.PreparedCase],
    task: task_lib.Task = task_lib.DEFAULT,
    source: Sequence[dict[str, Any]] | None = None,
) -> store.CaseStore:
    """A store of these cases, without a memory of its own; `source`: their records."""
    return store.CaseStore(
        source or Records(cases),
        cases[0].modalities,
        task=task,
        summaries=[store.summarise(case, task) for case in cases],
        fingerprint="made",
    )
