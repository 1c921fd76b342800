"""Placement of the training cases: on the device, in host memory, or on disk."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from jax.sharding import Mesh

from kdnet_jax.core import console, memory
from kdnet_jax.data.loading import resident
from kdnet_jax.data.records import store
from kdnet_jax.errors import UserError

# Of free memory, the part that cases may fill where nobody asked for it. The rest of a device's is
# for the step, the rest of the host's for batches, predictions and the file cache.
_SHARE: Final = 0.5
# Of free memory, what streaming keeps: the crops that follow each other come from few cases.
_STREAMING_SHARE: Final = 0.125

_MEANING: Final = {
    "device": "batches are cut on the device",
    "host": "cases stay in host memory after their first use",
    "stream": "cases are decoded as needed",
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that are free.

    Attributes:
        host: in the host's memory.
        device: on the device that has the least; `None` where it is the host's (CPU backend).
    """

    host: int
    device: int | None = None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the training cases lie.

    Attributes:
        mode: "device", "host" or "stream".
        cache_bytes: decoded cases that the store may keep in host memory.
        sentence: the choice and its figures, for the user.
    """

    mode: str
    cache_bytes: int
    sentence: str


def free_memory(mesh: Mesh) -> Memory:
    """Measures what is free on this process's devices of the mesh, and on its host.

    A device that does not report its limit (as under XLA's platform allocator) counts as full.
    """
    host = store.available_memory()
    if mesh.local_devices[0].platform == "cpu":
        return Memory(host)
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    free = [found.get("bytes_limit", 0) - found.get("bytes_in_use", 0) for found in stats]
    return Memory(host, max(0, min(free)))


def choose(
    asked: str,
    cases: store.CaseStore,
    training: Sequence[int],
    *,
    mesh: Mesh,
    free: Memory,
    maps: int = 0,
) -> Placement:
    """Chooses where the training cases lie.

    "auto" takes the device, else the host, if the cases fill at most half of what is free there,
    else it streams. It never takes a device whose memory is the host's: that saves no transfer.

    Args:
        asked: one of `choices.PLACES`.
        cases: all prepared cases.
        training: which of them train.
        mesh: the devices.
        free: what is free (`free_memory`).
        maps: channels of a teacher's maps; the host reads them from files.

    Raises:
        UserError: the requested place is too small.
    """
    noted = all(cases.summaries[index].shape for index in training)
    bar = console.bar(training, desc="measuring cases", unit="case", disable=noted)
    shape = resident.padded_shape([cases.shape(index) for index in bar])
    device_bytes = resident.need_bytes(len(training), len(cases.modalities) + maps, shape)
    # On the CPU backend the copies of all devices lie in the host's memory.
    copies = len(mesh.local_devices) if free.device is None else 1
    needs = {"device": copies * device_bytes, "host": cases.decoded_bytes, "stream": 0}
    rooms = {"device": free.host if free.device is None else free.device, "host": free.host}
    device = "the device (in the host's memory)" if free.device is None else "the device"
    figures = (
        f"the {len(training)} training cases would take {memory.size_text(needs['device'])} of "
        f"{memory.size_text(rooms['device'])} free on {device}, all {len(cases)} cases "
        f"{memory.size_text(needs['host'])} of {memory.size_text(free.host)} free on the host"
    )
    mode = asked
    if asked == "auto":
        places = ("host",) if free.device is None else ("device", "host")
        fits = [place for place in places if needs[place] <= _SHARE * rooms[place]]
        mode = fits[0] if fits else "stream"
    elif asked != "stream" and needs[asked] > rooms[asked]:
        raise UserError(
            f"loader.cache is {asked!r}, but {figures}. Set --config.loader.cache=auto, which "
            "takes what fits, or a larger --config.data.spacing."
        )
    shared = needs["device"] if mode == "device" and free.device is None else 0
    return Placement(
        mode,
        _kept(mode, cases, training, free.host - shared),
        f"loader.cache={asked}: {_MEANING[mode]} ({figures})",
    )


def _kept(mode: str, cases: store.CaseStore, training: Sequence[int], free: int) -> int:
    """Returns the bytes of decoded cases that the store may keep in host memory."""
    if mode == "host":
        return cases.decoded_bytes
    # Cases that validate are read again and again: they stay, as far as there is room.
    on_device = training if mode == "device" else ()
    rest = cases.decoded_bytes - sum(cases.summaries[i].decoded_bytes for i in on_device)
    return min(rest, int(_STREAMING_SHARE * free))
