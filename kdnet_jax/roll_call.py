"""How the processes of one run find each other, and learn at once of each other's end.

Every process, the first included, holds one plain TCP connection with lines of JSON to the
coordinator, a thread of the first process, from the start of the run to its end. jax.distributed
has a service of this kind too, and it is used for what JAX needs. But where a process is missing,
unlike the others, or dies, that service aborts the program from C++ after a fixed time, with a
stack trace that names no cause; here it is one plain message within seconds.

Like JAX's own service it neither encrypts nor asks who is there: for trusted networks only.
"""

import asyncio
import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from kdnet_jax.errors import UserError

# A machine that vanishes without closing its connections is noticed after so many seconds.
SILENCE_S = 60
_LONGEST_LINE = 64 << 20
_GREETING = "kdnet_jax roll call 1"


class Coordinator:
    """The thread of the first process that the others report to."""

    def __init__(self, port: int, processes: int, limit_s: float) -> None:
        """Listens on `port` of all interfaces for `processes` members, for `limit_s` seconds.

        Raises:
            UserError: if the port is taken.
        """
        self._count, self._limit = processes, limit_s
        self._members: dict[int, asyncio.StreamWriter] = {}
        self._hosts: dict[int, str] = {}
        self._said: dict[int, Any] = {}
        self._left: set[int] = set()
        self._refusal = ""
        self._complete = False
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            self._listener = socket.create_server(
                ("", port), family=family, dualstack_ipv6=both, backlog=1024
            )
        except OSError as error:
            raise UserError(
                f"port {port} of this machine cannot be listened on ({error.strerror}): another "
                "program, perhaps a former run that is still ending, has it. Wait for that, or "
                "give another port in --coordinator=HOST:PORT (the same on all processes)."
            ) from error
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    def wait_for_the_others_to_go(self, limit_s: float) -> None:
        """Returns when only this machine's own member is left, or after the limit."""
        deadline = time.monotonic() + limit_s
        while len(self._members) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    async def _serve(self) -> None:
        asyncio.get_running_loop().call_later(self._limit, self._refuse_if_any_is_missing)
        server = await asyncio.start_server(
            self._converse, sock=self._listener, limit=_LONGEST_LINE
        )
        async with server:
            await server.serve_forever()

    def _refuse_if_any_is_missing(self) -> None:
        missing = sorted(set(range(self._count)) - set(self._members))
        if missing and not self._complete and not self._refusal:
            self._refuse(
                f"{len(self._members)} of {self._count} processes came up within "
                f"{self._limit:g} s; missing: {_listed(missing)}. Look at their own output, or "
                "allow more time by --start_timeout=SECONDS."
            )

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        self._tell_all({"refuse": reason})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for writer in self._members.values():
            _tell(writer, message)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer.get_extra_info("socket"))
        # Whatever else knocks at an open port is no member.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            hello = json.loads(await reader.readline())
            if hello["greeting"] == _GREETING:
                await self._admit(hello, reader, writer)
        writer.close()

    async def _admit(
        self, hello: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        process, host = int(hello["process"]), str(hello["host"])
        problem = self._refusal or self._unfit(process, host, int(hello["processes"]))
        if problem:
            _tell(writer, {"refuse": problem})
            # A stray process must not end a run that is under way.
            if not self._complete:
                self._refuse(problem)
            return
        self._members[process], self._hosts[process] = writer, host
        try:
            with contextlib.suppress(OSError):
                async for line in reader:
                    self._take(process, json.loads(line))
        finally:
            del self._members[process]
            if process not in self._left:
                self._tell_all({"lost": process, "host": host})

    def _unfit(self, process: int, host: str, processes: int) -> str:
        if self._complete:
            return (
                f"a run of {self._count} processes is already under way there. Give this one "
                "another port in --coordinator=HOST:PORT, or end the other."
            )
        if processes != self._count:
            return (
                f"process {process} on {host} was started as one of {processes} processes, "
                f"process 0 as one of {self._count}: give all the same --processes."
            )
        if process in self._members:
            return (
                f"two processes, on {self._hosts[process]} and on {host}, are both number "
                f"{process} of {processes}: give each its own --process, from 0 to {processes - 1}."
            )
        return ""

    def _take(self, process: int, message: dict[str, Any]) -> None:
        if "leave" in message:
            self._left.add(process)
            self._tell_all({"left": process, "host": self._hosts[process], **message})
            return
        self._said[process] = message["say"]
        if len(self._said) == self._count:
            self._complete = True
            self._tell_all({"heard": [self._said[each] for each in range(self._count)]})
            self._said = {}


class Member:
    """A process's connection to the coordinator, and the thread that listens to it.

    Attributes:
        ended: set when another process ended, so that this one must too.
    """

    def __init__(
        self,
        address: tuple[str, int],
        process: int,
        processes: int,
        limit_s: float,
        on_end: Callable[[str, int | None], None],
    ) -> None:
        """Connects, trying again for `limit_s` seconds.

        Args:
            address: host and port of the coordinator.
            process: this process's number.
            processes: how many there are.
            limit_s: seconds within which the coordinator has to answer.
            on_end: called in the listening thread with a sentence and the exit code (`None` if it
                just vanished) when another process ended before its time.

        Raises:
            UserError: if nobody answers there.
        """
        self.ended = threading.Event()
        self._on_end = on_end
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._leaving = self._last = self._answered = False
        self._address = address
        self._socket = _connect(address, limit_s)
        _keep_alive(self._socket)
        self._send(
            {
                "greeting": _GREETING,
                "process": process,
                "processes": processes,
                "host": socket.gethostname(),
            }
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def gather(self, value: Any, limit_s: float | None, last: bool = False) -> list[Any]:
        """Returns the JSON values that all processes give, in their order.

        Args:
            value: this process's.
            limit_s: seconds to wait for the others; `None` waits as long as they live.
            last: from the answer on, the ends of the others are no news.

        Raises:
            UserError: if the coordinator refuses the start.
            TimeoutError: if not all have spoken within the limit.
        """
        self._last = last
        self._send({"say": value})
        try:
            answer = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError from None
        if "refuse" in answer:
            raise UserError(answer["refuse"])
        return answer["heard"]

    def tell_end(self, code: int) -> None:
        """Tells the others that this process ends with an exit code before its time."""
        self._leaving = True
        self._send({"leave": code})
        # The first process takes the coordinator with it: the word must have gone round.
        with contextlib.suppress(queue.Empty):
            self._answers.get(timeout=2)

    def _send(self, message: dict[str, Any]) -> None:
        # A connection that broke is the listening thread's business.
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._hear(json.loads(line))
                self._answered = True
        if self._answered:
            self._end("process 0, which the others report to, was lost", None)
        else:
            host, port = self._address
            self._answers.put(
                {
                    "refuse": f"what answers at {host}:{port} is not process 0 of this run. Give "
                    "all processes the same --coordinator=HOST:PORT, with a free port."
                }
            )

    def _hear(self, message: dict[str, Any]) -> None:
        # What comes after these is no news: the start failed, or all are done.
        self._leaving |= "refuse" in message or ("heard" in message and self._last)
        if "lost" in message:
            self._end(f"process {message['lost']} on {message['host']} was lost", None)
        elif "left" in message and not self._leaving:
            who = f"process {message['left']} on {message['host']}"
            self._end(f"{who} ended with exit code {message['leave']}", message["leave"])
        else:
            self._answers.put(message)

    def _end(self, what: str, code: int | None) -> None:
        if not self._leaving:
            self.ended.set()
            self._on_end(what, code)


def _connect(address: tuple[str, int], limit_s: float) -> socket.socket:
    """Connects, trying again until the limit: names and listeners may come up later than this."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=min(10, limit_s))
            connection.settimeout(None)
            return connection
        except OSError as error:
            if time.monotonic() + 0.5 > deadline:
                raise UserError(
                    f"the coordinator {address[0]}:{address[1]} did not answer within "
                    f"{limit_s:g} s ({error}). Process 0 has to run on that machine, and its "
                    "port must be open to the others (--coordinator=HOST:PORT). Allow more time "
                    "by --start_timeout=SECONDS."
                ) from error
            time.sleep(0.5)


def _tell(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


def _keep_alive(connection: socket.socket) -> None:
    """Lets the kernel ask whether the other side still lives; Linux's names, where they exist."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": SILENCE_S // 2,
        "TCP_KEEPINTVL": SILENCE_S // 6,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": SILENCE_S * 1000,
    }
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
