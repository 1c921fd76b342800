"""The training cases on the devices, and batches cut there: nothing but positions is sent.

Every device holds all of them, in the types of the records: images float16 "m d h w", classes uint8
"d h w", padded with zeros to one shape, so that one compiled cut serves all. The sequences come
before the voxels because a TPU would pad a last axis of four to 128. Each case is an array of its
own: a whole cohort has more voxels than 32-bit offsets count.
"""

import functools
import itertools
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float16, Int32, Shaped, UInt8

from kdnet_jax.core import console, typed
from kdnet_jax.data.loading import mixed, patches
from kdnet_jax.data.records import case_builder, store
from kdnet_jax.data.scans import prepare
from kdnet_jax.parallel import sharding

# Of a voxel: its class, and each of its sequences.
_LABEL_BYTES: Final = 1
_IMAGE_BYTES: Final = 2


class Batch(TypedDict):
    """A batch of patches on the mesh, with their classes by the task's numbers."""

    image: Float[Array, "b d h w m"]
    label: UInt8[Array, "b d h w"]


class _Held(NamedTuple):
    """A case on one device."""

    image: Float16[Array, "m d h w"]
    label: UInt8[Array, "d h w"]


def padded_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns the size "d h w" in which each of the cases has room."""
    return tuple(int(edge) for edge in np.max(shapes, axis=0))


def need_bytes(cases: int, sequences: int, shape: Sequence[int]) -> int:
    """Returns what cases of that padded shape take on one device."""
    return cases * int(np.prod(shape)) * (_LABEL_BYTES + _IMAGE_BYTES * sequences)


class ResidentCases:
    """The cases of a stream on every device of a mesh.

    Args:
        cases: the prepared cases.
        source: the stream; it reads every case, or knows it as one that cannot be read.
        mesh: where they go. Each process serves its own devices.
        threads: cases decoded at once.

    Attributes:
        device_bytes: what they take on each device.
    """

    def __init__(
        self, cases: store.CaseStore, source: mixed.Source, mesh: Mesh, threads: int
    ) -> None:
        self._source, self._threads = source, threads
        self._shape = padded_shape([cases.shape(index) for index in source.indices])
        self.device_bytes = need_bytes(len(source.indices), len(cases.modalities), self._shape)
        self._devices = mesh.local_devices
        self._sharding = sharding.batch_sharding(mesh)

    def batches(self, first: int) -> Generator[Batch, None, None]:
        """Yields the global batches from number `first` on.

        The cases are sent for the first of them, and are gone when the generator is closed.
        """
        held = self._send()
        shape = (self._source.batch, *self._source.crop)
        parts = sharding.parts_of(self._sharding, shape)
        for number in itertools.count(first):
            cut = [self._cut(held[device], number, part) for device, part in parts.items()]
            image, label = (list(arrays) for arrays in zip(*cut, strict=True))
            yield Batch(image=self._joined(shape, image), label=self._joined(shape, label))

    def _cut(
        self, held: dict[int, _Held], number: int, part: tuple[slice, ...]
    ) -> tuple[Float[Array, "b d h w m"], UInt8[Array, "b d h w"]]:
        """Cuts one device's part of a batch, there: some elements, of them some of the depth."""
        batch, size = self._source.batch, self._source.crop
        first, last, _ = part[0].indices(batch)
        top, bottom, _ = part[1].indices(size[0])
        elements = range(number * batch + first, number * batch + last)
        places = [self._source.place_of(element) for element in elements]
        starts = np.array([place.start for place in places], np.int32)
        starts[:, 0] += top
        images, labels = zip(*(held[place.case] for place in places), strict=True)
        (device,) = images[0].devices()
        return _cut(images, labels, jax.device_put(starts, device), (bottom - top, *size[1:]))

    def _joined(self, shape: tuple[int, ...], parts: list[Array]) -> Array:
        shape = (*shape, *parts[0].shape[len(shape) :])
        return jax.make_array_from_single_device_arrays(shape, self._sharding, parts)

    def _send(self) -> dict[typed.Device, dict[int, _Held]]:
        indices = self._source.indices
        # Read past the store's memory: a case that lies on the device is not wanted there too.
        read = case_builder.ordered_map(
            functools.partial(self._source.read, keep=False), indices, self._threads
        )
        bar = console.bar(read, total=len(indices), desc="cases to the device", unit="case")
        held: dict[typed.Device, dict[int, _Held]] = {device: {} for device in self._devices}
        for index, case in zip(indices, bar, strict=True):
            if case is None:
                continue
            padded = self._padded(index, case)
            for device, its in held.items():
                its[index] = _Held(*jax.device_put(padded, device))
            # One at a time: the copies of those on their way would fill the host's memory.
            jax.block_until_ready([its[index].image for its in held.values()])
        return held

    def _padded(
        self, index: int, case: prepare.PreparedCase
    ) -> tuple[Float16[np.ndarray, "m d h w"], UInt8[np.ndarray, "d h w"]]:
        image = patches.crop(case.image, (0, 0, 0), self._shape)
        label = patches.crop(self._source.label_of(index, case), (0, 0, 0), self._shape)
        return np.ascontiguousarray(np.moveaxis(image, -1, 0)), label


@functools.partial(jax.jit, static_argnames="size")
def _cut(
    images: tuple[Float16[Array, "m _ _ _"], ...],
    labels: tuple[UInt8[Array, "_ _ _"], ...],
    starts: Int32[Array, "b 3"],
    size: tuple[int, ...],
) -> tuple[Float[Array, "b d h w m"], UInt8[Array, "b d h w"]]:
    """Cuts `size` "d h w" voxels of each case from its start on; what lies outside is 0."""
    image = [_window(v, start, size) for v, start in zip(images, starts, strict=True)]
    label = [_window(v[None], start, size)[0] for v, start in zip(labels, starts, strict=True)]
    return jnp.moveaxis(jnp.stack(image), 1, -1).astype(jnp.float32), jnp.stack(label)


def _window(
    volume: Shaped[Array, "m D H W"], start: Int32[Array, "3"], size: tuple[int, ...]
) -> Shaped[Array, "m d h w"]:
    """Returns `patches.crop`, whose start may be any, by slices that are never out of range."""
    edges = np.array(size, np.int32)
    inside = np.minimum(edges, volume.shape[1:])
    first = jnp.clip(start, 0, np.subtract(volume.shape[1:], inside))
    block = jax.lax.dynamic_slice(volume, (0, *first), (len(volume), *inside))
    # XLA fuses the padding into the slice: nothing of it is ever in memory.
    zero = jnp.zeros((), volume.dtype)
    wide = jax.lax.pad(block, zero, [(0, 0, 0), *((edge, edge, 0) for edge in size)])
    offset = edges + jnp.clip(start - first, -edges, inside)
    return jax.lax.dynamic_slice(wide, (0, *offset), (len(volume), *size))
