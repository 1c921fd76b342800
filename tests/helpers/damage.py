"""What may happen to the record files of a built dataset, done to real ones."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from array_record.python import array_record_module

from kdnet_jax.data.records import building, case_builder, store
from tests.helpers import tiny_cases

Fault = Callable[[pathlib.Path], None]
# Bytes from a file's start, within its first record: most of so small a file is padding.
_WITHIN = 5000


def build(folder: pathlib.Path, cases: int) -> store.CaseStore:
    """Builds a dataset of tiny cases under `folder`, each in a file of its own."""
    tiny_cases.write_cohort(folder / "scans", cases, edge=24, radius=6.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case_builder, "CASES_PER_SHARD", 1)
        return open_again(folder)


def open_again(folder: pathlib.Path, **options: bool) -> store.CaseStore:
    """Opens what `build` built in this folder, or a copy of it."""
    return building.build_scans(
        folder / "datasets", folder / "scans", spacing=4.0, progress=False, **options
    )


def fixtures(count: int) -> tuple[Any, Any]:
    """Returns two fixtures: the folder of what `build` made, and a copy that may be damaged."""

    @pytest.fixture(scope="module")
    def pristine(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("pristine")
        build(folder, count)
        return folder

    @pytest.fixture
    def cases(pristine: pathlib.Path, tmp_path: pathlib.Path) -> store.CaseStore:
        return open_again(shutil.copytree(pristine, tmp_path / "copy"))

    return pristine, cases


def file_of(cases: store.CaseStore, index: int) -> pathlib.Path:
    """Returns the record file of a case of `build`."""
    return sorted(cases.folder.glob("*.array_record-*"))[index]


def remove(path: pathlib.Path) -> None:
    """As somebody who frees some space."""
    path.unlink()


def cut(path: pathlib.Path) -> None:
    """As an interrupted copy, within the record."""
    os.truncate(path, _WITHIN)


def cut_behind(path: pathlib.Path) -> None:
    """The record is whole, but the file's own index behind it is lost."""
    os.truncate(path, 70_000)


def empty(path: pathlib.Path) -> None:
    """As a file system that lost what was last written."""
    os.truncate(path, 0)


def flip(path: pathlib.Path) -> None:
    """Flips a bit of the record."""
    flip_at(path, _WITHIN)


def flip_at(path: pathlib.Path, position: int, bit: int = 4) -> None:
    """Flips one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


def swap(path: pathlib.Path) -> None:
    """Puts another case's file in its place."""
    other = next(each for each in sorted(path.parent.glob("*.array_record-*")) if each != path)
    path.unlink()
    path.write_bytes(other.read_bytes())


def replace_by_foreign(path: pathlib.Path) -> None:
    """Puts a file of more records in its place."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"one")
    writer.write(b"two")
    writer.close()


def replace_by_folder(path: pathlib.Path) -> None:
    """Its place is taken by a folder: reading fails by an error of the system."""
    path.unlink()
    path.mkdir()


def circle(path: pathlib.Path) -> None:
    """A symbolic link to itself."""
    path.unlink()
    path.symlink_to(path.name)
