"""Settings of a command's process: threads of NumPy, and garbage."""

import contextlib
import gc
import os
from collections.abc import Iterator


def use_one_blas_thread() -> None:
    """Lets NumPy's and SciPy's products of matrices take one thread, if the user says nothing else.

    Theirs are small here, and threads that wait for each other spin: the way of probabilities to a
    scan's grid took 12 times the processor time on two busy cores. It holds for what is imported
    afterwards, and for the processes that this one starts.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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
