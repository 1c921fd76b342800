"""Base of this project's TFDS builders: cases are prepared in parallel and written in order.

TFDS's `GeneratorBasedBuilder` shuffles through temporary files, for which it needs TensorFlow as
soon as a dataset exceeds 1 GB. `ShardBasedBuilder` streams: a case is prepared, written and freed.
"""

import abc
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core import dataset_info

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import console, typed
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError

# Increase it when `prepare` returns or `store` records something else: datasets that
# were built before are then built anew.
RECORD_VERSION = 4
CASES_PER_SHARD = 16
# Left free on the disk at least, so that a build never fills it to the last byte.
DISK_RESERVE = 256 * 2**20

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclasses.dataclass(frozen=True)
class Job:
    """One case to prepare: `prepare` returns it with notes, or raises `UserError`."""

    case_id: str
    prepare: Callable[[], tuple[prepare.PreparedCase, list[str]]]


@dataclasses.dataclass(frozen=True)
class _Failed:
    case_id: str
    error: UserError


def fingerprint(content: typed.JsonView) -> str:
    """Returns 12 hexadecimal digits that name `content` (JSON) and the version of the records."""
    text = json.dumps([RECORD_VERSION, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class CaseBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A TFDS builder whose examples are prepared cases, in array_record files.

    Subclasses say which cases (`_jobs`), which `modalities`, and what the content is made of
    (`_content`: the JSON that names it, written beside the records).

    Attributes:
        task: see below. `_jobs` may replace it by one with the statistics of its "ct" channels
            (`ct_statistics.measure`), which is then written beside the records.

    Args:
        task: what is segmented.
        workers: how many cases are prepared at once. The records do not depend on it.
        progress: show a progress bar.
        skip_bad_cases: leave out a case that cannot be prepared, with a note, instead of stopping.
        **kwargs: of `tfds.core.DatasetBuilder`: data_dir, config, version, file_format.
    """

    def __init__(
        self,
        *,
        task: task_lib.Task = task_lib.DEFAULT,
        workers: int = 1,
        progress: bool = True,
        skip_bad_cases: bool = False,
        **kwargs: Any,
    ) -> None:
        self.task = task
        self._workers = workers
        self._progress = progress
        self._skip_bad_cases = skip_bad_cases
        self._summaries: list[store.CaseSummary] = []
        self._notes: list[str] = []
        self._skipped: list[dict[str, str]] = []
        kwargs.setdefault("file_format", tfds.core.FileFormat.ARRAY_RECORD)
        try:
            super().__init__(**kwargs)
        except (dataset_info.DatasetInfoFileError, json_format.ParseError, AssertionError):
            # TFDS reads its description of what was built before; this names what is wrong with it.
            store.read_metadata(pathlib.Path(self.data_dir))
            raise

    @property
    @abc.abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """The sequences of every image."""

    @property
    @abc.abstractmethod
    def label_convention(self) -> str:
        """Label values of files that are written for these cases (`labels.LABEL_CONVENTIONS`)."""

    @abc.abstractmethod
    def _jobs(self, dl_manager: tfds.download.DownloadManager) -> list[Job]:
        """The cases to prepare, in the order of the records."""

    @abc.abstractmethod
    def _content(self) -> typed.Json:
        """What the records are made of, as JSON; its `fingerprint` names the dataset."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=store.features(self.modalities, self.task))

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, typed.Json]]]]]:
        jobs = self._jobs(dl_manager)
        # One stream through all shards, so that the workers do not pause between two of them. The
        # last shard takes all that is left, which brings the stream to its proper end.
        examples = self._examples(jobs)
        full = functools.partial(itertools.islice, examples, CASES_PER_SHARD)
        return {store.SPLIT: [full] * ((len(jobs) - 1) // CASES_PER_SHARD) + [lambda: examples]}

    def _examples(self, jobs: Sequence[Job]) -> Iterator[tuple[str, typed.Json]]:
        results = ordered_map(_run, jobs, self._workers)
        bar = console.bar(
            results, total=len(jobs), desc="preparing", unit="case", disable=not self._progress
        )
        for result in bar:
            if isinstance(result, _Failed):
                self._leave_out(result)
                continue
            case, notes = result
            self._notes += notes
            self._summaries.append(store.summarise(case, self.task))
            record = store.to_record(case)
            check_free_space(pathlib.Path(self.data_dir).parent, self._summaries[-1].decoded_bytes)
            yield case.case_id, record
            # TFDS holds every example until its shard is closed: leave it nothing to hold.
            record.clear()

    def _leave_out(self, failed: _Failed) -> None:
        if not self._skip_bad_cases:
            raise UserError(
                f"{str(failed.error).rstrip('.')}. To build the dataset without such cases, set "
                "data.skip_bad_cases (build_data: --skip_bad_cases)."
            ) from failed.error
        self._skipped.append({"case_id": failed.case_id, "error": str(failed.error)})
        self._notes.append(f"left out {failed.case_id}: {failed.error}")

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        if not self._summaries:
            raise UserError(f"none of the cases could be prepared. {self._notes[-1]}")
        # `data_dir` is still TFDS's temporary folder: records and metadata appear together.
        path = pathlib.Path(self.data_dir) / store.METADATA_FILE
        path.write_text(json.dumps(self._metadata(), indent=1) + "\n", encoding="utf-8")

    def _metadata(self) -> typed.Json:
        content = self._content()
        packages = ("kdnet-jax", "tensorflow-datasets", "array-record", "numpy", "scipy")
        return {
            "fingerprint": fingerprint(content),
            "record_version": RECORD_VERSION,
            "task": dataset_json.to_json(self.task),
            "modalities": list(self.modalities),
            "label_convention": self.label_convention,
            "notes": self._notes,
            "skipped": self._skipped,
            "cases": [summary.to_json() for summary in self._summaries],
            "content": content,
            "packages": {name: _version(name) for name in packages},
        }

    # ------------------------------------------- what TFDS prints, and its users need not read

    def _create_builder_config(
        self,
        builder_config: str | tfds.core.BuilderConfig | None,
        version: str | tfds.core.Version | None,
    ) -> tfds.core.BuilderConfig | None:
        """Takes a config object as it is: TFDS would warn that it is not a predefined one."""
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version)

    def _log_download_bytes(self) -> None:
        """Says nothing: TFDS would announce a download."""

    def _log_download_done(self) -> None:
        """Says nothing: the command names the folder."""


def _run(job: Job) -> tuple[prepare.PreparedCase, list[str]] | _Failed:
    try:
        return job.prepare()
    except UserError as error:
        return _Failed(job.case_id, error)


def ordered_map(
    function: Callable[[_In], _Out], items: Iterable[_In], workers: int
) -> Iterator[_Out]:
    """Yields `function(item)` in the order of the items, `workers` at a time in threads.

    At most `workers` + 1 results are held. Threads serve here: unzipping, resampling and NumPy
    release Python's lock, and nothing survives a killed build.
    """
    waiting: deque[futures.Future[_Out]] = deque()
    pool = futures.ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Not waited for: after an error the garbage collector may end this in one of the threads,
        # which cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)


def check_free_space(folder: pathlib.Path, need: int) -> None:
    """Refuses to continue where `folder`'s disk has not `need` bytes and a reserve.

    Raises:
        UserError: the disk is too full.
    """
    free = shutil.disk_usage(folder).free
    if free < need + DISK_RESERVE:
        raise UserError(
            f"{folder}: not enough disk space for the built dataset: about {_size_text(need)} more "
            f"are needed (and {_size_text(DISK_RESERVE)} kept free), {_size_text(free)} are free. "
            "Free some, choose another disk (data.root; build_data: --output), or build at a "
            "coarser spacing."
        )


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
