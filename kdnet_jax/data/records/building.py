"""Building of the datasets that training reads, once, and opening of those that exist.

Every different content has its own folder under a root:
`<root>/<builder>/<config with a fingerprint>/<version>/`. TFDS writes into a temporary folder
beside it and renames that at the end, so a folder with this name is finished.
"""

import contextlib
import fcntl
import functools
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from data_builders.brats import brats_dataset_builder
from data_builders.brats_phantom import brats_phantom_dataset_builder
from data_builders.task_cohort import task_cohort_dataset_builder
from kdnet_jax import task as task_lib
from kdnet_jax.core import files
from kdnet_jax.data.records import case_builder, cohort_builder, store
from kdnet_jax.data.scans import geometry, prepare
from kdnet_jax.data.sources import cases, labels
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

# Where built datasets lie unless the user says otherwise; relative to the current folder.
DEFAULT_ROOT = pathlib.Path("datasets")
DEFAULT_WORKERS = 2

_LOCK_FILE = ".lock"
_ELSEWHERE = "choose another folder for them (data.root; build_data: --output)."


def build_phantom(
    root: pathlib.Path,
    *,
    cases: int,
    seed: int,
    spacing: float,
    workers: int = DEFAULT_WORKERS,
    progress: bool = True,
    damaged: bool = False,
) -> store.CaseStore:
    """Builds (or opens) a cohort of synthetic cases.

    Args:
        root: folder of the built datasets.
        cases: how many cases.
        seed: of the cohort.
        spacing: voxel size in mm of the scans and of the working grid.
        workers: cases made at once.
        progress: show a progress bar.
        damaged: see `store.open_store`.

    Raises:
        UserError: wrong values, no permission, or not enough disk space.
    """
    _check_positive("cases", cases)
    if seed < 0:
        raise UserError(f"seed: {seed} was given, 0 or more was expected")
    _check_positive("spacing", spacing)
    _check_positive("workers", workers)
    config = brats_phantom_dataset_builder.make_config(cases, seed, spacing)
    builder = brats_phantom_dataset_builder.Builder(
        data_dir=str(root), config=config, workers=workers, progress=progress
    )
    return _prepare(builder, lambda: brats_phantom_dataset_builder.estimate_bytes(config), damaged)


def build_scans(
    root: pathlib.Path,
    data_dir: pathlib.Path,
    *,
    release: str = "auto",
    task: task_lib.Task = task_lib.DEFAULT,
    modalities: Sequence[str] | None = None,
    spacing: prepare.Spacing = 1.0,
    orientation: str = geometry.HEADER,
    allow_skull: bool = False,
    label_convention: str | None = None,
    workers: int = DEFAULT_WORKERS,
    progress: bool = True,
    skip_bad_cases: bool = False,
    incomplete: bool = False,
    damaged: bool = False,
) -> store.CaseStore:
    """Builds (or opens) the cases under `data_dir`, those without a segmentation too.

    Args:
        root: folder of the built datasets.
        data_dir: folder of the scans.
        release: layout and labels, see `cases.find_cases`; "auto" recognises them.
        task: what is segmented in the scans.
        modalities: the sequences to keep; None keeps all of the task.
        spacing: working voxel size in mm, one or one per SPL axis; None keeps each scan's own.
        orientation: see `prepare.prepare_case`.
        allow_skull: see `prepare.prepare_case`.
        label_convention: see `cases.find_cases`.
        workers: cases prepared at once.
        progress: show a progress bar.
        skip_bad_cases: leave out cases that cannot be prepared, and list them in the notes.
        incomplete: see `cases.find_cases`.
        damaged: see `store.open_store`.

    Raises:
        UserError: wrong values or files, no permission, or not enough disk space.
    """
    _check_positive("workers", workers)
    if spacing is not None:
        _check_positive("spacing", float(np.min(spacing)))
    chosen = task.modalities if modalities is None else tuple(modalities)
    cohort = cases.find_cases(
        data_dir,
        release,
        chosen,
        label_convention=label_convention,
        task=task,
        unlabelled=True,
        incomplete=incomplete,
    )
    config = cohort_builder.make_config(
        cohort,
        task,
        modalities=chosen,
        spacing=spacing,
        orientation=orientation,
        allow_skull=allow_skull,
    )
    kind = brats_dataset_builder if labels.is_brats(task) else task_cohort_dataset_builder
    builder = kind.Builder(
        data_dir=str(root),
        config=config,
        cohort=cohort,
        task=task,
        workers=workers,
        progress=progress,
        skip_bad_cases=skip_bad_cases,
    )
    estimate = functools.partial(cohort_builder.estimate_bytes, cohort, spacing)
    opened = _prepare(builder, estimate, damaged)
    _check_skipped(builder, skip_bad_cases)
    return opened


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}: {value} was given, a number above 0 was expected")


def _prepare(
    builder: case_builder.CaseBuilder, estimate: Callable[[], int], damaged: bool
) -> store.CaseStore:
    """Builds what `builder` describes unless it is there, and opens it."""
    folder = pathlib.Path(builder.data_dir)
    if not folder.exists():
        with _explained(folder):
            _remove_leftovers(folder.parents[1])
        with _explained(folder), _locked(folder.parent):
            # Another process may have finished it while this one waited for the lock.
            if not folder.exists():
                case_builder.check_free_space(folder.parent, estimate())
                _download_and_prepare(builder)
    store.read_metadata(folder)
    # Whoever built it, and whenever: `builder` may be older than the folder.
    builder.info.read_from_directory(folder)
    return store.open_store(builder, damaged=damaged)


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    """Says what a full, forbidden or failing disk means, in place of a traceback."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if files.is_full(error):
            raise UserError(
                f"{folder}: the disk became full while the dataset was built; the unfinished part "
                f"is removed. Free some space or {_ELSEWHERE}"
            ) from error
        if isinstance(error, OSError):
            raise UserError(
                f"{error.filename or folder}: {error.strerror or error}. If built datasets cannot "
                f"be written there, {_ELSEWHERE}"
            ) from error
        raise


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the only right to build in `folder`; a killed process loses it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info(f"{folder}: waiting for another process that builds this dataset")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(datasets: pathlib.Path) -> None:
    """Removes the temporary folders of killed builds; what another process builds is locked."""
    # Not `.config/`, where TFDS renames a file of its own that other builds may hold just now.
    for leftover in datasets.glob("[!.]*/incomplete.*"):
        lock = (leftover.parent / _LOCK_FILE).open("w")
        with lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if leftover.exists():  # Its builder may have finished before the lock was free.
                shutil.rmtree(leftover)


def _download_and_prepare(builder: case_builder.CaseBuilder) -> None:
    # Nothing is downloaded: TFDS shall neither look for it nor leave its empty download folders.
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _check_skipped(builder: case_builder.CaseBuilder, skip_bad_cases: bool) -> None:
    """Refuses a dataset that an earlier build made without its bad cases, unless that is wanted."""
    skipped = store.read_metadata(pathlib.Path(builder.data_dir))["skipped"]
    if skipped and not skip_bad_cases:
        raise UserError(
            f"{skipped[0]['error'].rstrip('.')}. The dataset was built without {len(skipped)} such "
            "cases; to use it so, set data.skip_bad_cases (build_data: --skip_bad_cases)."
        )
