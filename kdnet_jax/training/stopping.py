"""SIGTERM and ^C: an exception where there is nothing to save, a request while a training runs.

Queues (Slurm, Kubernetes, spot machines) send SIGTERM and wait for some seconds before they kill.
A command ends with 128 + the signal's number then: 143, or 130 after ^C.
"""

import contextlib
import signal
import types
from collections.abc import Callable, Iterator
from typing import Self

# What `signal.signal` takes and returns.
_Handler = Callable[[int, types.FrameType | None], object] | int | None
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The program was asked to stop, and what has to be saved is saved.

    As KeyboardInterrupt, it is no `Exception`, so that no handler takes it for a failure.

    Attributes:
        signal: the signal that asked.
        step: training steps that are saved; `None` outside of a training.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        self.signal, self.step = number, step
        at = "" if step is None else f" at step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{at}")


class Interrupted(BaseException):
    """A signal came within `Request.interruptible`."""


class _Handlers:
    """Sets `_note` as the handler of `SIGNALS`, and the former ones at the end."""

    def __init__(self) -> None:
        self._former: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        raise NotImplementedError


class AtOnce(_Handlers):
    """Raises `Stopped` wherever the program is; files are written beside and renamed."""

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        raise Stopped(number)


class Request(_Handlers):
    """Turns the first signal into a request that a loop reads when it can save.

    A second signal of the kind acts as before, for a loop that hangs.

    Attributes:
        requested: the signal that came, or 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requested = 0
        self._interruptible = False

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = number
        signal.signal(number, self._former[number])
        if self._interruptible:
            raise Interrupted

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal break off what is done within, by `Interrupted`."""
        self._interruptible = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._interruptible = False
