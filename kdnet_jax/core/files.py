"""Files written atomically, their hash, and errors of the disk as messages."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence

from kdnet_jax.errors import UserError

_SEEN_SECONDS = 70.0
# The last one: a limit on the size of files, by ulimit or of the file system.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Something else stands there, the name is too long, or there is no right to write it.
_UNUSABLE = (
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = ".part") -> Iterator[pathlib.Path]:
    """Gives a name beside `path` to write to; what is there at the end becomes `path`.

    The folder is made if needed. Where the block fails, nothing is left and `path` is as it was.

    Args:
        path: the file.
        suffix: of the name beside, for a writer that goes by it.

    Raises:
        OSError: as the file system has it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder beside `folder` to fill, which becomes `folder` at the end.

    Where the block fails, nothing is left.

    Raises:
        UserError: `folder` is there already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give a new folder, or remove it first.")
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    new = [each for each in folder.parents if not each.exists()]
    try:
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in () if folder.exists() else new:
            with contextlib.suppress(OSError):  # it was never made, or holds something else by now
                parent.rmdir()


def check_places(paths: Iterable[pathlib.Path]) -> None:
    """Refuses files that cannot be written where they are to be, before the first is made.

    Raises:
        UserError: a folder has the file's name, a file that of one of its folders, or the folder
            may not be written.
    """
    for path in paths:
        # Not pathlib's `is_dir`, which raises where a folder may not be looked into.
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder: give the name of a file.")
        folder = next(each for each in path.absolute().parents if os.path.lexists(each))
        if not os.path.isdir(folder):
            raise UserError(f"{path} cannot be written: {folder} is no folder. Give another name.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{path} cannot be written: {folder} may not be changed (its rights). Give "
                "another place."
            )


def wait_until_seen(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Waits for files that another machine has written; returns those that do not appear.

    NFS remembers for up to a minute that a file was not there.
    """
    deadline = time.monotonic() + _SEEN_SECONDS
    while (missing := [path for path in paths if not path.exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    return missing


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text as it is, in UTF-8; see `replacing`."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table as CSV, one line per row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def is_full(error: Exception) -> bool:
    """Whether an error means a full disk; the own kinds of libraries tell by words only."""
    words = map(os.strerror, _FULL)
    return getattr(error, "errno", None) in _FULL or any(each in str(error) for each in words)


def disk_error(error: Exception, where: pathlib.Path) -> Exception:
    """Returns a UserError for a full disk or an unusable path, else the error itself."""
    if is_full(error):
        return UserError(
            f"No space left on the disk for {where}. What was saved before is kept; free some "
            "space and run the same command again."
        )
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return UserError(f"{where} cannot be written ({error.strerror}). Give another place.")
    return error


@contextlib.contextmanager
def writing(where: pathlib.Path) -> Iterator[None]:
    """Turns what writing raises where the disk is full or cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, where) from error
    except (ValueError, RuntimeError) as error:
        if is_full(error):  # TensorStore's own
            raise disk_error(error, where) from error
        raise
