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
        (errno.ENAMETOOLONG, "cannot be written"),
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


def test_places_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.touch()
    files.check_places([file, tmp_path / "new" / "deep" / "mask.nii"])
    with pytest.raises(UserError, match=f"{file} is no folder"):
        files.check_places([file / "new" / "mask.nii"])
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        files.check_places([tmp_path])
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_without_the_right_to_write(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so what the system says is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} may not be changed"):
        files.check_places([tmp_path / "new" / "mask.nii"])
