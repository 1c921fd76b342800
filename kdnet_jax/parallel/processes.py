"""Cooperation of one run's processes: who writes, waiting for each other, exchanging values.

With one process every function is the identity: there is no other code path. `launch.py` starts
them. All of a run's processes must call these functions in the same order.
"""

import collections
import itertools
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax._src import distributed

# JAX has no public name for its service.
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

T = TypeVar("T")
_exchanges = itertools.count()


def count() -> int:
    """Returns how many processes there are."""
    return jax.process_count()


def index() -> int:
    """Returns which of them this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Returns whether this process is the one that writes."""
    return index() == 0


def gather(value: typed.JsonValue) -> list[typed.JsonValue]:
    """Returns the JSON values that all processes give, in their order.

    The others wait however long one of them takes: an exchange between devices (`multihost_utils`)
    gives up after half an hour.
    """
    if count() == 1:
        return [value]
    place = f"{next(_exchanges)}"
    publish(f"{place}/{index()}", value)
    return [read(f"{place}/{each}") for each in range(count())]


def publish(name: str, value: typed.JsonValue) -> None:
    """Gives a JSON value to all processes, under a name that is used once.

    It goes, as Orbax's do, through the service that `jax.distributed` has started.
    """
    _client().key_value_set(f"kdnet_jax/{name}", json.dumps(value))


def read(name: str) -> typed.JsonValue:
    """Waits for what a process publishes under a name, and returns it."""
    client = _client()
    while True:
        try:
            # Short, so that a signal's handler runs in between.
            return json.loads(client.blocking_key_value_get(f"kdnet_jax/{name}", 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _client() -> _jax.DistributedRuntimeClient:
    client = distributed.global_state.client
    assert client is not None, "jax.distributed has not been started"
    return client


def meet(name: str, limit_s: float) -> None:
    """Waits for all processes, under a name that is used once.

    Raises:
        jax.errors.JaxRuntimeError: if not all come within the limit.
    """
    _client().wait_at_barrier(f"kdnet_jax/{name}", int(1000 * limit_s))


def share(items: Sequence[T]) -> Sequence[T]:
    """Returns this process's part of a list: every one is in exactly one process's part."""
    return items[index() :: count()]


def first_does(action: Callable[[], T]) -> T:
    """Lets the first process do something while the others wait; returns its JSON value to all.

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
    done, message = [], ""
    try:
        done.append(action())
    except UserError as error:
        message = str(error)
    for number, said in enumerate(gather(message)):
        if said:
            raise UserError(said if number == index() else f"process {number}: {said}")
    return done[0]


class Agreement:
    """Lets all processes of a training act on the requests of any of them, after the same step.

    With several processes the answer is that of `lag` calls before, so that no call waits: the
    exchange is one more small program in the devices' queue.

    Args:
        mesh: all devices.
        lag: calls between a request and its answer.
    """

    def __init__(self, mesh: Mesh, lag: int) -> None:
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._lag = lag
        self._asked: collections.deque[jax.Array] = collections.deque()
        self._largest = jax.jit(
            lambda requests: requests.max(0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def forget(self) -> None:
        """Drops requests that are not answered yet; for when what they were about has been done."""
        self._asked.clear()

    def agree(self, *requests: int) -> tuple[int, ...]:
        """Returns the largest of each request over all processes; 0 is none."""
        if count() == 1:
            return requests
        own = np.tile(np.array(requests, np.int32), (jax.local_device_count(), 1))
        everyones = jax.make_array_from_process_local_data(self._sharding, own)
        self._asked.append(self._largest(everyones))
        if len(self._asked) <= self._lag:
            return (0,) * len(requests)
        return tuple(int(each) for each in jax.device_get(self._asked.popleft()))
