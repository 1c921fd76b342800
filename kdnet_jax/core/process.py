"""Settings of a command's process: threads of NumPy, memory of the C library, garbage."""

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Iterator

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def use_one_blas_thread() -> None:
    """Lets NumPy's and SciPy's products of matrices take one thread, if the user says nothing else.

    Theirs are small here, and threads that wait for each other spin: the way of probabilities to a
    scan's grid took 12 times the processor time on two busy cores. It holds for what is imported
    afterwards, and for the processes that this one starts.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, where it is glibc, until `memory.return_freed`.

    A training step takes and frees the same large blocks each time. By default each of them is
    mapped anew, and the system clears every page of it: tens of thousands of page faults a step.
    One arena serves all threads, as only the first one can grow to any size. It takes effect only
    before the second thread of the process asks for memory.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Looks for no garbage while modules are imported: a sixth of the time of importing JAX.

    There is next to none, and what is there then is left out of every later search too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
