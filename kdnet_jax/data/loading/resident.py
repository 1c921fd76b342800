"""The training cases on the devices, and batches cut there: nothing but positions is sent.

Every device holds all of them, in the types of the records: images float16 "m d h w", classes uint8
"d h w", a teacher's maps uint16 "k d h w" where there are any, padded with zeros to one shape, so
that one compiled cut serves all. The channels come before the voxels because a TPU would pad a last
axis of four to 128. Each case is an array of its own: a whole cohort has more voxels than 32-bit
offsets count.
"""

import functools
import itertools
from collections.abc import Generator, Iterable, Sequence
from typing import Final, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float16, Int32, Shaped, UInt8, UInt16

from kdnet_jax.core import console, typed
from kdnet_jax.data.loading import mixed, patches
from kdnet_jax.data.records import case_builder, store, teacher_maps
from kdnet_jax.data.scans import prepare
from kdnet_jax.parallel import sharding

# Of a voxel: its class, and each of its sequences and of its teacher's probabilities.
_LABEL_BYTES: Final = 1
_CHANNEL_BYTES: Final = 2


class Batch(TypedDict):
    """A batch of patches on the mesh, their classes by the task's numbers, a teacher's maps."""

    image: Float[Array, "b d h w m"]
    label: UInt8[Array, "b d h w"]
    teacher: NotRequired[Float[Array, "b d h w k"]]


class _Held(NamedTuple):
    """A case on one device."""

    image: Float16[Array, "m d h w"]
    label: UInt8[Array, "d h w"]
    teacher: UInt16[Array, "k d h w"] | None


def to_float32(arrays: dict[str, Array]) -> dict[str, Array]:
    """Returns images and a teacher's maps as a step reads them."""
    return {
        name: each.astype(jnp.float32) / (teacher_maps.ONE if name == "teacher" else 1)
        for name, each in arrays.items()
    }


def padded_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns the size "d h w" in which each of the cases has room."""
    return tuple(int(edge) for edge in np.max(shapes, axis=0))


def need_bytes(cases: int, channels: int, shape: Sequence[int]) -> int:
    """Returns what cases of that padded shape take on one device.

    Args:
        cases: how many.
        channels: sequences and a teacher's maps.
        shape: "d h w".
    """
    return cases * int(np.prod(shape)) * (_LABEL_BYTES + _CHANNEL_BYTES * channels)


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
        channels = len(cases.modalities) + (source.maps.channels if source.maps else 0)
        self.device_bytes = need_bytes(len(source.indices), channels, self._shape)
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
            yield jax.tree.map(lambda *each: self._joined(shape, list(each)), *cut)

    def _cut(self, held: dict[int, _Held], number: int, part: tuple[slice, ...]) -> Batch:
        """Cuts one device's part of a batch, there: some elements, of them some of the depth."""
        batch, size = self._source.batch, self._source.crop
        first, last, _ = part[0].indices(batch)
        top, bottom, _ = part[1].indices(size[0])
        elements = range(number * batch + first, number * batch + last)
        places = [self._source.place_of(element) for element in elements]
        starts = np.array([place.start for place in places], np.int32)
        starts[:, 0] += top
        cases = tuple(held[place.case] for place in places)
        (device,) = cases[0].image.devices()
        return _cut(cases, jax.device_put(starts, device), (bottom - top, *size[1:]))

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
    ) -> tuple[Shaped[np.ndarray, "*c d h w"] | None, ...]:
        """Returns the arrays of a `_Held`."""

        def first(volume: Shaped[np.ndarray, "d h w c"]) -> Shaped[np.ndarray, "c D H W"]:
            padded = patches.crop(volume, (0, 0, 0), self._shape)
            return np.ascontiguousarray(np.moveaxis(padded, -1, 0))

        label = patches.crop(self._source.label_of(index, case), (0, 0, 0), self._shape)
        maps = self._source.maps
        return first(case.image), label, first(maps[index]) if maps else None


@functools.partial(jax.jit, static_argnames="size")
def _cut(cases: tuple[_Held, ...], starts: Int32[Array, "b 3"], size: tuple[int, ...]) -> Batch:
    """Cuts `size` "d h w" voxels of each case from its start on; what lies outside is 0."""

    def windows(volumes: Iterable[Shaped[Array, "c D H W"]]) -> Shaped[Array, "b c d h w"]:
        return jnp.stack([_window(v, s, size) for v, s in zip(volumes, starts, strict=True)])

    channels = {"image": windows(case.image for case in cases)}
    maps = [case.teacher for case in cases if case.teacher is not None]
    if maps:
        channels["teacher"] = windows(maps)
    floats = to_float32({name: jnp.moveaxis(each, 1, -1) for name, each in channels.items()})
    return Batch(label=windows(case.label[None] for case in cases)[:, 0], **floats)


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
