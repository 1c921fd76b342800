"""The record files of a built dataset, read with faults that name the file and the case.

The format guards its content: array_record's chunks (Riegeli) carry hashes of their header and
data, so that flipped or zeroed bytes are an error of the one record that they lie in. What it does
not tell is handled here: a file that was cut off opens as one of no records, or gives empty ones,
and a file that was removed is read on as long as it is open.
"""

import bisect
import functools
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.core import decode

from kdnet_jax.core import typed
from kdnet_jax.errors import UserError

# A compiled module without types.
_ARRAY_RECORD = importlib.import_module("array_record.python.array_record_module")


class UnreadableCaseError(UserError):
    """A case of a built dataset that cannot be read.

    Attributes:
        index: of the case in the store.
        case_id: its name.
        path: the file of its record.
        finding: what is wrong with it.
    """

    def __init__(self, index: int, case_id: str, path: pathlib.Path, finding: str) -> None:
        self.index, self.case_id, self.path, self.finding = index, case_id, path, finding
        super().__init__(
            f"{path}: the case {case_id} cannot be read: {finding}. {rebuild(path.parent)} (Only "
            "training can continue without such cases, by data.on_read_error=skip: a score over "
            "fewer cases would be another score.)"
        )


def rebuild(folder: pathlib.Path) -> str:
    """Returns what to do about a damaged dataset."""
    return (
        f"Delete {folder} and start again: the dataset is then built anew from the scans, and a "
        "training resumes from its newest checkpoint. If only a disk or network was away, start "
        "again as it is."
    )


class RecordFiles(Sequence[typed.Json]):
    """Decoded records by index; thread safe.

    Args:
        builder: of the dataset.
        split: the name of the split that holds them.
        case_ids: of the records, in their order.

    Raises:
        UserError: the dataset's own description does not fit.
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, case_ids: Sequence[str]
    ) -> None:
        self._case_ids = tuple(case_ids)
        info = builder.info.splits.get(split)
        found = info.num_examples if info else 0
        if info is None or found != len(self._case_ids):
            folder = pathlib.Path(builder.data_dir)
            raise UserError(
                f"{folder}: this built dataset is damaged: dataset_info.json names {found} records "
                f"for {len(self._case_ids)} cases. {rebuild(folder)}"
            )
        self._paths = [pathlib.Path(path) for path in info.filepaths]
        self._counts = list(info.shard_lengths)
        self._ends = list(itertools.accumulate(self._counts))
        features = builder.info.features
        assert isinstance(features, tfds.features.FeaturesDict)
        self._features = features
        raw = decode.DeserializeMethod.RAW_BYTES
        # TFDS's decorator hides the arguments from type checkers.
        as_data_source = cast(Callable[..., Sequence[bytes]], builder.as_data_source)
        self._open = functools.partial(as_data_source, split, deserialize_method=raw)
        self._records = self._open()

    def __len__(self) -> int:
        return len(self._case_ids)

    def __getitem__(self, index: int) -> typed.Json:
        """Decodes a record.

        Raises:
            UnreadableCaseError: its file is missing or damaged.
        """
        path, raw = self._paths[self._file_of(index)], b""
        try:
            # An open file can be read on after it was removed, but not at the next start.
            size = path.stat().st_size
            raw = self._records[index]
            finding = "" if raw else f"the file was cut off ({size} bytes are left)"
        except OSError as error:
            finding = _of_the_system(error)
        except RuntimeError as error:  # array_record's only kind
            finding = _of_the_format(error)
            # A reader that failed once may fail for ever.
            self._records = self._open()
        if not finding:
            record = self._decode(raw)
            if record.get("case_id") == self._case_ids[index].encode():
                return record
            finding = "its record is of another dataset"
        raise UnreadableCaseError(index, self._case_ids[index], path, finding)

    def _decode(self, raw: bytes) -> typed.Json:
        """Returns a record, or nothing where bytes that are as written make up no such record."""
        try:
            return dict(cast(typed.Json, self._features.deserialize_example_np(raw)))
        except (message.DecodeError, KeyError, TypeError, ValueError):
            return {}

    def check(self, indices: Iterable[int]) -> None:
        """Opens the files of these records, and reads how many each holds.

        Raises:
            UnreadableCaseError: a file is missing, forbidden or was cut off.
        """
        inspect = functools.lru_cache(maxsize=None)(_inspect)
        for index in indices:
            file = self._file_of(index)
            path = self._paths[file]
            if finding := inspect(path, self._counts[file]):
                raise UnreadableCaseError(index, self._case_ids[index], path, finding)

    def _file_of(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)


def _inspect(path: pathlib.Path, count: int) -> str:
    """Returns what is wrong with a file as far as its end shows, or an empty text."""
    try:
        # The reader takes a file that it may not open for an empty one.
        path.open("rb").close()
        reader = _ARRAY_RECORD.ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0")
        try:
            found = reader.num_records()
        finally:
            reader.close()
    except OSError as error:
        return _of_the_system(error)
    except RuntimeError as error:
        return _of_the_format(error)
    if found != count:
        return f"it holds {found} records, not {count}"
    return ""


def _of_the_system(error: OSError) -> str:
    return "the file is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"


def _of_the_format(error: RuntimeError) -> str:
    # What follows the first semicolon is where in the library it was found.
    return f"reading it fails ({str(error).split(';')[0]})"
