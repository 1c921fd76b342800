"""Processes that find each other over real sockets; threads stand for processes here."""

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable
from concurrent import futures

import pytest

from kdnet_jax import roll_call
from kdnet_jax.errors import UserError
from tests.helpers import companies

LIMIT = 30.0


class Run:
    """A coordinator and members of a run, and the news that the members got of ends."""

    def __init__(self, processes: int, limit: float = LIMIT) -> None:
        self.port = companies.free_port()
        self.processes = processes
        self.coordinator = roll_call.Coordinator(self.port, processes, limit)
        self.news: dict[int, queue.Queue] = {i: queue.Queue() for i in range(processes)}

    def member(self, process: int, processes: int | None = None) -> roll_call.Member:
        def on_end(what: str, code: int | None) -> None:
            self.news[process].put((what, code))

        address = ("127.0.0.1", self.port)
        return roll_call.Member(address, process, processes or self.processes, LIMIT, on_end)

    def assert_no_news(self, process: int) -> None:
        with pytest.raises(queue.Empty):
            self.news[process].get(timeout=0.5)


def at_once(*actions: Callable) -> list:
    """Returns what the actions give, or raise, when done at the same time."""
    with futures.ThreadPoolExecutor(len(actions)) as pool:
        done = [pool.submit(action) for action in actions]
    return [each.exception() or each.result() for each in done]


def gathered(members: list[roll_call.Member], values: list, **options: object) -> list:
    options = {"limit_s": LIMIT} | options
    pairs = zip(members, values, strict=True)
    return at_once(*(lambda m=m, v=v: m.gather(v, **options) for m, v in pairs))


def test_all_hear_what_all_say_in_order() -> None:
    run = Run(3)
    members = [run.member(i) for i in (2, 0, 1)]
    assert gathered(members, ["c", "a", "b"]) == [["a", "b", "c"]] * 3
    assert gathered(members, [{"n": 2}, {"n": 0}, None]) == [[{"n": 0}, None, {"n": 2}]] * 3


def test_the_missing_are_named_to_all() -> None:
    run = Run(5, limit=1.0)
    refused = gathered([run.member(0), run.member(3)], [0, 3])
    for error in refused:
        assert isinstance(error, UserError)
        assert "2 of 5 processes came up within 1 s; missing: 1, 2, 4." in str(error)


def test_different_numbers_of_processes() -> None:
    run = Run(2)
    first, other = gathered([run.member(0), run.member(1, processes=3)], [0, 1])
    assert str(first) == str(other)
    assert "process 1 on" in str(first)
    assert "was started as one of 3 processes, process 0 as one of 2" in str(first)


def test_two_with_the_same_number() -> None:
    run = Run(3)
    for error in gathered([run.member(0), run.member(1), run.member(1)], [0, 1, 1]):
        assert "are both number 1 of 3" in str(error)
        assert "from 0 to 2" in str(error)


def test_a_stray_process_does_not_end_a_run_under_way() -> None:
    run = Run(2)
    members = [run.member(0), run.member(1)]
    gathered(members, [0, 1])
    with pytest.raises(UserError, match="a run of 2 processes is already under way"):
        run.member(1).gather(0, LIMIT)
    assert gathered(members, [0, 1]) == [[0, 1]] * 2


def test_whoever_else_knocks_is_no_member() -> None:
    run = Run(2)
    for line in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n", b"[]\n", b'{"greeting": "x"}\n', b""):
        with socket.create_connection(("127.0.0.1", run.port)) as stranger:
            stranger.sendall(line)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""
    assert gathered([run.member(0), run.member(1)], [0, 1]) == [[0, 1]] * 2


def test_a_connection_that_breaks_is_told_to_all_others() -> None:
    run = Run(3)
    members = [run.member(i) for i in range(3)]
    gathered(members, [0, 1, 2])
    members[1]._socket.shutdown(socket.SHUT_RDWR)
    for other in (0, 2):
        what, code = run.news[other].get(timeout=LIMIT)
        assert what == f"process 1 on {socket.gethostname()} was lost"
        assert code is None
        assert members[other].ended.is_set()


def test_one_who_ends_early_says_so() -> None:
    run = Run(3)
    members = [run.member(i) for i in range(3)]
    gathered(members, [0, 1, 2])
    members[2].tell_end(2)
    for other in (0, 1):
        what, code = run.news[other].get(timeout=LIMIT)
        assert (what, code) == (f"process 2 on {socket.gethostname()} ended with exit code 2", 2)
    members[2]._socket.shutdown(socket.SHUT_RDWR)
    run.assert_no_news(0)


def test_after_the_last_word_an_end_is_no_news() -> None:
    run = Run(2)
    members = [run.member(0), run.member(1)]
    gathered(members, [0, 0], last=True)
    members[1]._socket.shutdown(socket.SHUT_RDWR)
    run.coordinator.wait_for_the_others_to_go(LIMIT)
    run.assert_no_news(0)


def test_one_who_does_not_speak_is_not_waited_for_longer_than_told() -> None:
    run = Run(2)
    first, _ = run.member(0), run.member(1)
    with pytest.raises(TimeoutError):
        first.gather(0, limit_s=0.2)


def test_a_port_that_is_taken() -> None:
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(UserError, match=f"port {taken.getsockname()[1]} of this machine .* another"),
    ):
        roll_call.Coordinator(taken.getsockname()[1], 2, LIMIT)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-machine.invalid"])
def test_nobody_there(host: str) -> None:
    address = (host, companies.free_port())
    with pytest.raises(UserError, match=f"coordinator {host}:{address[1]} did not answer within 1"):
        roll_call.Member(address, 1, 2, 1.0, lambda what, code: None)


def test_another_program_there() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        with contextlib.closing(listener.accept()[0]) as connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    threading.Thread(target=greet).start()
    address = listener.getsockname()
    member = roll_call.Member(address, 1, 2, LIMIT, lambda what, code: None)
    with pytest.raises(UserError, match="is not process 0 of this run"):
        member.gather(json.dumps({}), LIMIT)
    listener.close()
