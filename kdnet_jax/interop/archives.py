"""Zip archives of other tools, unpacked into a folder that is gone afterwards, and nowhere else."""

import contextlib
import pathlib
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator

from kdnet_jax.errors import UserError

# nnU-Net's largest preset, five folds with their optimizers, is below 10 GiB.
MAX_BYTES = 32 * 2**30


@contextlib.contextmanager
def unpacked(path: pathlib.Path, wanted: re.Pattern[str]) -> Iterator[pathlib.Path]:
    """Gives a temporary folder with those files of an archive whose whole name matches `wanted`.

    Raises:
        UserError: it is no archive, damaged, too large, or has a name that leads out of it.
    """
    with tempfile.TemporaryDirectory(prefix="kdnet_jax_") as folder:
        root = pathlib.Path(folder)
        try:
            with zipfile.ZipFile(path) as archive:
                for member in _members(archive, path, wanted):
                    _unpack(archive, member, root)
        # The last two: encrypted, or compressed in a way that is not known.
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{path} cannot be unpacked ({error}). If it is damaged, copy it again; if the "
                "disk is full, point TMPDIR at another."
            ) from error
        yield root


def _members(
    archive: zipfile.ZipFile, path: pathlib.Path, wanted: re.Pattern[str]
) -> list[zipfile.ZipInfo]:
    members = [each for each in archive.infolist() if not each.is_dir()]
    for member in members:
        # `zipfile` would make such a name harmless, but its author meant harm.
        parts = re.split(r"[/\\]", member.filename)
        outside = ".." in parts or parts[0] == "" or parts[0].endswith(":")
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(
                f"{path} holds {member.filename!r}, which leads out of the folder that it is "
                "unpacked into. No tool writes such an archive: do not use it."
            )
    found = [each for each in members if wanted.fullmatch(each.filename)]
    size = sum(each.file_size for each in found)
    if size > MAX_BYTES:
        raise UserError(
            f"{path} unpacks to {size / 2**30:.0f} GiB, above the {MAX_BYTES / 2**30:.0f} GiB that "
            "are taken. Unpack it yourself, and give the folder."
        )
    return found


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: pathlib.Path) -> None:
    target = root / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    # No more than it declares is read, and less fails by its checksum.
    with archive.open(member) as source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream)
