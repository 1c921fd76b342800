"""What a user reads when a file cannot be written."""

import errno
import os
import pathlib

import pytest

from kdnet_jax.core import files
from kdnet_jax.errors import UserError


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left"),
        (errno.EDQUOT, "No space left"),
        (errno.EFBIG, "No space left"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.ENOTDIR, "cannot be written"),
    ],
)
def test_disk_errors_a_user_can_mend(number: int, words: str) -> None:
    mended = files.disk_error(OSError(number, "x"), pathlib.Path("runs/a"))
    assert isinstance(mended, UserError)
    assert words in str(mended)
    assert "runs/a" in str(mended)


def test_a_library_s_own_error_of_a_full_disk_is_known_by_its_words() -> None:
    words = os.strerror(errno.EDQUOT)
    assert files.is_full(RuntimeError(f"UNKNOWN: Error writing a/b [OS error 122: {words}]"))
    assert not files.is_full(RuntimeError("no"))
    assert not files.is_full(OSError(errno.EACCES, "no"))


def test_other_errors_stay_themselves() -> None:
    error = OSError(errno.EIO, "x")
    assert files.disk_error(error, pathlib.Path("a")) is error
