"""Endless batches of training patches on the mesh, with a saved position.

The cases are on the devices already, and the batches are cut there (`resident.py`); or Grain's
threads decode and cut on the host, and batches are sent while the steps before them compute. The
batches of a seed are the same, bit for bit, whichever way they come.
"""

import contextlib
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from kdnet_jax.core import typed
from kdnet_jax.data import choices
from kdnet_jax.data.loading import mixed, patches, resident
from kdnet_jax.data.records import skipping, store, teacher_maps
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding

# Batches that have arrived on the device before they are asked for, besides one on its way. With a
# GPU, XLA begins a transfer when the steps that are queued have ended: the loop queues up to two
# (`step_metrics.STEPS_AHEAD`), so one batch fewer would be late by its transfer.
_BATCHES_AHEAD = 2

Batch = resident.Batch


class PatchIterator(Iterator[Batch]):
    """Endless batches with a position that can be saved; made by `make_loader`.

    Args:
        source: the stream of all processes.
        open_at: opens the batches from a position on.
        notes: see below.
        device_bytes: see below.

    Attributes:
        notes: plain sentences about what the stream does otherwise than asked.
        device_bytes: what the training cases take on each device, from `start` on.
    """

    def __init__(
        self,
        source: mixed.Source,
        open_at: Callable[[int], Generator[Batch, None, None]],
        notes: Sequence[str] = (),
        device_bytes: int = 0,
    ) -> None:
        self._source = source
        self._open_at = open_at
        self.notes = list(notes)
        self.device_bytes = device_bytes
        self._open(0)

    def _open(self, batches: int) -> None:
        self._batches = batches
        self._first: Batch | None = None
        self._iterator = self._open_at(batches)

    def start(self) -> None:
        """Waits until the next batch is there; where the cases have to be sent first, with a bar.

        So that the time that it takes is not that of a training's first step.
        """
        if self._first is None:
            self._first = next(self._iterator)

    def __next__(self) -> Batch:
        batch = next(self._iterator) if self._first is None else self._first
        self._first = None
        self._batches += 1
        return batch

    def cases(self, indices: Iterable[int]) -> Iterator[prepare.PreparedCase]:
        """Yields training cases by their indices in the store, but for those that are skipped."""
        return (case for index in indices if (case := self._source.read(index)) is not None)

    def get_state(self) -> typed.Json:
        """Returns the position and the stream it belongs to, as JSON.

        The position counts global batches that were handed out, so it serves any number of
        processes and threads, and any place of the cases. Ask for it before the next batch.
        """
        return {"batches": self._batches, "stream": self._source.settings}

    def set_state(self, state: typed.Json) -> None:
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

    def cases_of(self, batch: int) -> list[str]:
        """Returns the ids of the cases that the global batch of this number is cut from."""
        return self._source.cases_of(batch)

    def close(self) -> None:
        """Stops the threads, and lets go of what lies on the device."""
        self._first = None
        self._iterator.close()

    def __enter__(self) -> "PatchIterator":
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
    mesh: Mesh,
    patch: tuple[int, int, int],
    batch: int,
    seed: int,
    tumour_share: float = patches.DEFAULT_TUMOUR_SHARE,
    crops_per_read: int = 1,
    cavity: str = "background",
    crop: tuple[int, int, int] | None = None,
    on_device: bool = False,
    unreadable: skipping.Unreadable | None = None,
    unlabelled: Sequence[int] = (),
    unlabelled_share: float = 0.5,
    maps: teacher_maps.Maps | None = None,
    hidden: bool = False,
    threads: int = 2,
    prefetch_batches: int = 2,
) -> PatchIterator:
    """Returns the endless batches on the mesh; with several processes, each sends its own part.

    What a process reads follows from the mesh: the elements of which its devices hold something.

    Args:
        cases: the prepared cases. Those that are decoded on the host stay in memory as far as
            `cases.cache_bytes` allows.
        indices: which of them train.
        mesh: where the batches go.
        patch: size of a patch, "d h w" in voxels of the working grid.
        batch: elements of a batch over all processes.
        seed: of the stream, 0 or more.
        tumour_share: share of the elements centred on the foreground, 1/3 to 1, taken as the
            nearest fraction with a denominator of up to 20.
        crops_per_read: batches in a row that are cut from the same cases.
        cavity: class that unscored values count as, see `labels.map_cavity`.
        crop: what is cut around each patch, for an augmentation that needs more than the patch; by
            default the patch.
        on_device: keep the training cases on every device and cut there. They are sent before
            the first batch.
        unreadable: what is done about cases that cannot be read; by default the stream stops.
        unlabelled: which cases train without their reference: all of their voxels are `NO_LABEL`.
        unlabelled_share: share of the elements that are theirs, where there are any.
        maps: a teacher's probabilities, cut with the patches ("teacher" of a batch).
        hidden: all cases train without their reference, in one stream.
        threads: elements prepared at once. The stream does not depend on it.
        prefetch_batches: batches prepared ahead on the host.

    Raises:
        UserError: settings that cannot be, or no cases.
    """
    if len(indices) == 0:
        raise UserError("no cases are left to train on: the split gives all of them away")
    _check(patch, batch, seed, crops_per_read)
    if unreadable and unreadable.choice == choices.SKIP:
        _check_unshared(mesh, batch)
    source = mixed.make_source(
        cases,
        indices,
        unlabelled,
        unlabelled_share,
        patch=patch,
        batch=batch,
        seed=seed,
        tumour_share=tumour_share,
        crops_per_read=crops_per_read,
        cavity=cavity,
        crop=crop,
        unreadable=unreadable,
        maps=maps,
        hidden=hidden,
    )
    if on_device:
        held = resident.ResidentCases(cases, source, mesh, threads)
        return PatchIterator(source, held.batches, source.notes(resident=True), held.device_bytes)
    share = _share(mesh, batch)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, prefetch_batches * len(share))
    )
    return PatchIterator(
        source, lambda first: _read(source, share, first, options, mesh), source.notes()
    )


def _share(mesh: Mesh, batch: int) -> tuple[int, ...]:
    """Returns the elements of a batch of which this process's devices hold some of the depth."""
    parts = sharding.parts_of(sharding.batch_sharding(mesh), (batch, mesh.size))
    return tuple(sorted({each for part in parts.values() for each in range(batch)[part[0]]}))


def _read(
    source: mixed.Source,
    share: Sequence[int],
    first: int,
    options: grain.ReadOptions,
    mesh: Mesh,
) -> Generator[Batch, None, None]:
    """Yields the batches from number `first` on: cut by Grain's threads, sent by one of its own."""

    def send(batch: dict[str, Shaped[np.ndarray, "n d h w *m"]]) -> dict[str, jax.Array]:
        sent = {name: _to_mesh(each, share, source.batch, mesh) for name, each in batch.items()}
        # A batch is handed out when it has arrived, so that a slow transfer counts as waiting.
        return jax.block_until_ready(sent)

    sent = (
        grain.MapDataset.source(_Part(source, share, first))
        .to_iter_dataset(options)
        .batch(len(share))
        .map(send)
    )
    # Sent as float16: half the bytes, and NumPy's conversion is slower than the device's.
    to_float32 = jax.jit(resident.to_float32, out_shardings=sharding.batch_sharding(mesh))
    ahead = grain.experimental.ThreadPrefetchIterDataset(sent, prefetch_buffer_size=_BATCHES_AHEAD)
    with contextlib.closing(iter(ahead)) as batches:
        for batch in batches:
            floats = {name: each for name, each in batch.items() if name != "label"}
            yield Batch(label=batch["label"], **to_float32(floats))


def _to_mesh(
    own: Shaped[np.ndarray, "n d h w *m"], share: Sequence[int], batch: int, mesh: Mesh
) -> Shaped[jax.Array, "b d h w *m"]:
    """Puts a process's elements of a batch of `batch` on its devices: on each its own part."""
    shape, wanted = (batch, *own.shape[1:]), sharding.batch_sharding(mesh)

    def part(index: tuple[slice, ...]) -> Shaped[np.ndarray, "k e h w *m"]:
        elements = range(batch)[index[0]]
        first = share.index(elements.start)
        return own[first : first + len(elements), *index[1:]]

    parts = sharding.parts_of(wanted, shape)
    arrays = [jax.device_put(part(index), device) for device, index in parts.items()]
    return jax.make_array_from_single_device_arrays(shape, wanted, arrays)


class _Part:
    """The elements of one process in order: its share of every global batch from `first` on."""

    def __init__(self, source: mixed.Source, share: Sequence[int], first: int) -> None:
        self._source = source
        self._share = share
        self._first = first

    def __len__(self) -> int:
        return patches.ENDLESS

    def __getitem__(self, index: int) -> patches.Patch:
        batch_number, slot = divmod(index, len(self._share))
        start = (self._first + batch_number) * self._source.batch
        return self._source[start + self._share[slot]]


def _check(patch: Sequence[int], batch: int, seed: int, crops_per_read: int) -> None:
    if len(patch) != 3 or min(patch) < 1:
        raise UserError(f"patch: {patch} was given, three sizes of 1 or more were expected")
    if batch < 1:
        raise UserError(f"batch: {batch} was given, 1 or more was expected")
    if seed < 0:
        raise UserError(f"seed: {seed} was given, 0 or more was expected")
    if crops_per_read < 1:
        raise UserError(f"crops_per_read: {crops_per_read} was given, 1 or more was expected")


def _check_unshared(mesh: Mesh, batch: int) -> None:
    """Refuses to skip where processes hold parts of one patch: one might read it, another not."""
    parts = sharding.batch_sharding(mesh).devices_indices_map((batch, mesh.size))
    owners: dict[int, set[int]] = {}
    for device, part in parts.items():
        for element in range(batch)[part[0]]:
            owners.setdefault(element, set()).add(device.process_index)
    if any(len(processes) > 1 for processes in owners.values()):
        raise UserError(
            "data.on_read_error is 'skip', but on this mesh several processes hold slices of one "
            "patch, and they might not skip alike. Set --config.data.on_read_error=stop, or "
            "--config.mesh.space to the devices of one process at most."
        )
