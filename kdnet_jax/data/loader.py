"""Endless batches of training patches, by Grain: read ahead in threads, with a saved position."""

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, TypedDict

import grain
import numpy as np
from jaxtyping import Float, UInt8

from kdnet_jax.data import patches, store
from kdnet_jax.errors import UserError


class Batch(TypedDict):
    """A batch of patches with their classes 0..3 (`conventions.CLASSES`)."""

    image: Float[np.ndarray, "b d h w m"]
    label: UInt8[np.ndarray, "b d h w"]


class PatchIterator(Iterator[Batch]):
    """Endless batches with a position that can be saved; made by `make_loader`.

    Args:
        source: the stream of all processes.
        part: which elements of a global batch are this process's, as a slice.
        threads: elements prepared at once.
        ahead: elements prepared before they are asked for.

    Attributes:
        notes: plain sentences about what the stream does otherwise than asked.
    """

    def __init__(
        self, source: patches.PatchSource, part: slice, *, threads: int, ahead: int
    ) -> None:
        self._source = source
        self._part = part
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self.notes = source.notes()
        self._open(0)

    def _open(self, batches: int) -> None:
        self._batches = batches
        self._iterator = iter(
            grain.MapDataset.source(_Part(self._source, self._part, batches))
            .to_iter_dataset(self._options)
            .batch(self._part.stop - self._part.start)
        )

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._batches += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position and the stream it belongs to, as JSON.

        The position counts global batches, so it serves any number of processes and threads. Ask
        for it before the next batch.
        """
        return {"batches": self._batches, "stream": self._source.settings}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to the position that `get_state` returned.

        Raises:
            UserError: the position belongs to another stream: other cases or settings.
        """
        for key, value in self._source.settings.items():
            saved = state["stream"].get(key)
            if saved != value:
                raise UserError(
                    f"{key}: the saved run read its patches with {saved}, this run is set to "
                    f"{value}. Set it back, or start in a new folder."
                )
        self.close()
        self._open(state["batches"])

    def close(self) -> None:
        """Stops the threads."""
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


def make_loader(
    cases: store.CaseStore,
    indices: Sequence[int],
    *,
    patch: tuple[int, int, int],
    batch: int,
    seed: int,
    tumour_share: float = patches.DEFAULT_TUMOUR_SHARE,
    crops_per_read: int = 1,
    cavity: Literal["background", "NCR"] = "background",
    shard_index: int = 0,
    shard_count: int = 1,
    threads: int = 2,
    prefetch_batches: int = 2,
) -> PatchIterator:
    """Returns the endless batches of one process.

    Args:
        cases: the prepared cases.
        indices: which of them train.
        patch: size of a patch, "d h w" in voxels of the working grid.
        batch: elements of a batch over all processes.
        seed: of the stream, 0 or more.
        tumour_share: share of the elements centred on tumour, 1/3 to 1, taken as the nearest
            fraction with a denominator of up to 20.
        crops_per_read: batches in a row that are cut from the same cases.
        cavity: class that a resection cavity counts as, see `labels.map_cavity`.
        shard_index: which process this is. Process p of n gets the p-th of n equal parts of every
            global batch, so that the parts in a row are the batch of a single process.
        shard_count: how many processes there are.
        threads: elements prepared at once. The stream does not depend on it.
        prefetch_batches: batches prepared ahead.

    Raises:
        UserError: settings that cannot be, no cases, or a case without a reference.
    """
    _check_cases(cases, indices)
    _check(patch, batch, seed, crops_per_read, shard_count)
    source = patches.PatchSource(
        cases,
        indices,
        patch=patch,
        batch=batch,
        seed=seed,
        tumour_share=tumour_share,
        crops_per_read=crops_per_read,
        cavity=cavity,
    )
    share = batch // shard_count
    part = slice(shard_index * share, (shard_index + 1) * share)
    return PatchIterator(
        source, part, threads=threads, ahead=max(threads, prefetch_batches * share)
    )


class _Part:
    """The elements of one process in order: its part of every global batch from `first` on."""

    def __init__(self, source: patches.PatchSource, part: slice, first: int) -> None:
        self._source = source
        self._part = part
        self._first = first

    def __len__(self) -> int:
        return patches.ENDLESS

    def __getitem__(self, index: int) -> patches.Patch:
        batch_number, slot = divmod(index, self._part.stop - self._part.start)
        start = (self._first + batch_number) * self._source.batch
        return self._source[start + self._part.start + slot]


def _check(
    patch: Sequence[int], batch: int, seed: int, crops_per_read: int, shard_count: int
) -> None:
    if len(patch) != 3 or min(patch) < 1:
        raise UserError(f"patch: {patch} was given, three sizes of 1 or more were expected")
    if batch < 1 or batch % shard_count:
        raise UserError(
            f"batch: {batch} was given, a multiple of the {shard_count} processes was expected"
        )
    if seed < 0:
        raise UserError(f"seed: {seed} was given, 0 or more was expected")
    if crops_per_read < 1:
        raise UserError(f"crops_per_read: {crops_per_read} was given, 1 or more was expected")


def _check_cases(cases: store.CaseStore, indices: Sequence[int]) -> None:
    if len(indices) == 0:
        raise UserError("no cases are left to train on: the split gives all of them away")
    for summary in (cases.summaries[index] for index in indices):
        if summary.tumour_voxels is None:
            raise UserError(
                f"{summary.case_id}: has no reference segmentation, so it cannot be trained on. "
                "Add one, or leave the case out."
            )
