"""What the processes of one run do together: who writes, waiting for each other, exchanging values.

With one process every function is the identity: there is no other code path. `launch.py` starts
them. All of a run's processes must call these functions in the same order.
"""

import collections
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdnet_jax import launch
from kdnet_jax.errors import UserError

T = TypeVar("T")


def count() -> int:
    """Returns how many processes there are."""
    return jax.process_count()


def index() -> int:
    """Returns which of them this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Returns whether this process is the one that writes."""
    return index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Returns the JSON values that all processes give, in their order.

    However long one of them takes, the others wait: by the connections of the start where there are
    any. An exchange between devices gives up after half an hour (Gloo).
    """
    if count() == 1:
        return [value]
    if member := launch.member():
        return member.gather(value, None)
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[: int(size)])) for row, size in zip(rows, np.ravel(sizes), strict=True)
    ]


def share(items: Sequence[T]) -> Sequence[T]:
    """Returns this process's part of a list: every one is in exactly one process's part."""
    return items[index() :: count()]


def first_does(action: Callable[[], Any]) -> Any:
    """Lets the first process do something, while the others wait; returns its JSON value to all.

    Raises:
        UserError: on all processes, where the action raised one on the first.
    """
    if count() == 1:
        return action()
    answer = {}
    if is_first():
        try:
            answer = {"value": action()}
        except UserError as error:
            answer = {"error": str(error)}
    answer = gather(answer)[0]
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def together(action: Callable[[], T]) -> T:
    """Does on every process what may fail on one of them; then it fails on all.

    Raises:
        UserError: the message of the first process on which the action raised one.
    """
    if count() == 1:
        return action()
    value, message = None, ""
    try:
        value = action()
    except UserError as error:
        message = str(error)
    for number, told in enumerate(gather(message)):
        if told:
            raise UserError(told if number == index() else f"process {number}: {told}")
    return value


class Agreement:
    """Lets all processes of a training act on the wishes of any of them, after the same step.

    With several processes the answer is that of `lag` calls before, so that no call waits: the
    exchange is one more small program in the devices' queue.

    Args:
        mesh: all devices.
        lag: calls between a wish and its answer.
    """

    def __init__(self, mesh: Mesh, lag: int) -> None:
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._lag = lag
        self._asked: collections.deque[jax.Array] = collections.deque()
        self._largest = jax.jit(
            lambda wishes: wishes.max(0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def forget(self) -> None:
        """Drops wishes that are not answered yet; for when what they were about has been done."""
        self._asked.clear()

    def agree(self, *wishes: int) -> tuple[int, ...]:
        """Returns the largest of each wish over all processes; 0 is none."""
        if count() == 1:
            return wishes
        own = np.tile(np.array(wishes, np.int32), (jax.local_device_count(), 1))
        everyones = jax.make_array_from_process_local_data(self._sharding, own)
        self._asked.append(self._largest(everyones))
        if len(self._asked) <= self._lag:
            return (0,) * len(wishes)
        return tuple(int(each) for each in jax.device_get(self._asked.popleft()))
