"""The console: what commands show of the package's log, and progress bars beside it.

Library modules log to `logging.getLogger(__name__)`. Commands call `show`. Without it, as where
kdnet_jax is imported, only warnings appear, on standard error; a program of one's own asks for
messages and bars by

    logging.basicConfig(format="%(message)s")
    logging.getLogger("kdnet_jax").setLevel(logging.INFO)
"""

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tqdm

_PACKAGE = logging.getLogger("kdnet_jax")


class _Printer(logging.Handler):
    """Prints warnings on standard error and everything else on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        # Looked up anew: the start of several processes replaces both streams.
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(record.getMessage(), file=stream)


def show() -> None:
    """Prints the package's messages from now on, and shows its progress bars."""
    _PACKAGE.handlers = [_Printer()]
    _PACKAGE.setLevel(logging.INFO)
    _PACKAGE.propagate = False


def is_shown() -> bool:
    """Returns whether messages of level INFO are shown, and thus progress bars."""
    return _PACKAGE.isEnabledFor(logging.INFO)


def bar(*args: Any, **options: Any) -> "tqdm.tqdm":
    """Returns a tqdm bar of these arguments, hidden where no messages are shown."""
    # Imported here: the start of several processes sets what tqdm reads when it is imported.
    import tqdm

    if not is_shown():
        options["disable"] = True
    return tqdm.tqdm(*args, **options)


def clear_of_bars() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which a message does not break the bars that are on a terminal."""
    import tqdm

    return tqdm.tqdm.external_write_mode()
