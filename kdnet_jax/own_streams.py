"""What each of several processes shows: the first all, the others their errors, with a number."""

import io
import os
import sys


class _Numbered(io.TextIOBase):
    """Standard error of a process other than the first: each line begins with its number."""

    def __init__(self, stream: io.TextIOBase, prefix: str) -> None:
        self._stream, self._prefix, self._fresh = stream, prefix, True

    def write(self, text: str) -> int:
        lines = text.splitlines(keepends=True)
        for line in lines:
            self._stream.write((self._prefix if self._fresh else "") + line)
            self._fresh = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def separate(process: int) -> None:
    """Lets the first process alone write on standard output, and no library between.

    Call it before tqdm is imported, whose bars only the first shows. Gloo prints from C++ whom it
    connected to, so the file descriptor itself leads nowhere.
    """
    sys.stdout.flush()
    if process == 0:
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    else:
        # Read by tqdm when it is imported.
        os.environ["TQDM_DISABLE"] = "1"
        sys.stderr = _Numbered(sys.stderr, f"[process {process}] ")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
