"""A run's folder belongs to one config and one split: claimed at the start, checked ever after.

And to one command at a time, which holds its lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from ml_collections import config_dict

from kdnet_jax import dataset_json, files, run_data, saved_checkpoints, settings
from kdnet_jax import task as task_lib
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

CONFIG, SPLIT = "config.json", "split.json"
LOCK = ".lock"
# Settings that change how fast a run goes or how often it looks, but not what it computes.
OPERATIONAL = (
    # What these three name is guarded by its content.
    "task",
    "data.data_dir",
    "teacher.checkpoint",
    "data.root",
    "data.workers",
    "loader.threads",
    "loader.prefetch_batches",
    "loader.cache",
    # Forms of one computation: equal but for rounding.
    "model.convolutions",
    "model.planes",
    "model.remat",
    "train.accumulate",
    "profile",
    # Equal but for the order of sums.
    "mesh.data",
    "mesh.space",
    "mesh.state",
    # What these do is told in the run's folder where it happens.
    "data.on_read_error",
    "train.nonfinite",
    "train.log_every",
    "train.save_minutes",
    "train.save_steps",
)


def check(folder: pathlib.Path, config: config_dict.ConfigDict, task: task_lib.Task) -> None:
    """Raises UserError if the folder belongs to a run of another config; writes nothing."""
    if not (folder / CONFIG).exists():
        if (folder / saved_checkpoints.FOLDER).exists():
            raise UserError(f"{folder} has checkpoints but no {CONFIG}: give a new --workdir.")
        return
    was = settings.read_task(folder)
    if different := was.difference(task):
        raise UserError(
            f"{folder} holds a run of the task {was.name}, and this one is {task.name}; "
            f"{different}. Give a new --workdir, or the former --config.task."
        )
    changed = [
        (key, was, now)
        for key, was, now in settings.differences(settings.read_config(folder), config)
        if key not in OPERATIONAL
    ]
    # Role, preset and seed say most of what is different.
    changed.sort(key=lambda change: "." in change[0])
    if changed:
        listed = "; ".join(f"{key} was {was!r} and is now {now!r}" for key, was, now in changed[:5])
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{folder} holds a run of another config: {listed}{more}. Give a new --workdir, or "
            "the former values to go on with that run."
        )


def config_hash(config: config_dict.ConfigDict) -> str:
    """Returns a SHA-256 of all settings that change what a run computes."""
    values = settings.flatten(config)
    computed = {key: value for key, value in values.items() if key not in OPERATIONAL}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the only right to write in a run's folder, which is made; a killed process loses it.

    Raises:
        UserError: another command holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise files.disk_error(error, folder) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by another command: {file.read().strip()}. Wait until it has "
                "ended, or give another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            _LOG.info(
                f"note: {path.parent} cannot be locked here ({error.strerror}): start one only"
            )
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}")
            file.flush()
        except OSError as error:
            raise files.disk_error(error, folder) from error
        try:
            yield
        finally:
            file.truncate(0)
            _remove_unused(path, new)


def _now() -> str:
    return time.strftime("%F %T %z")


def _remove_unused(lock: pathlib.Path, new: list[pathlib.Path]) -> None:
    """Removes the folders that were made for a run of which nothing was written."""
    if new and os.listdir(lock.parent) == [LOCK]:
        lock.unlink()
        for folder in new:
            if os.listdir(folder):
                break
            folder.rmdir()


def claim(folder: pathlib.Path, config: config_dict.ConfigDict, data: run_data.Data) -> None:
    """Writes the run's config, task and split, or checks that they are still the same.

    Raises:
        UserError: for another split, or a folder that cannot be written.
    """
    # Again: another command may have written it before this one had the lock.
    task, split = data.cases.task, data.split
    check(folder, config, task)
    if (folder / SPLIT).exists():
        splits.check_same_split(splits.load_split(folder / SPLIT), split)
    # Before the config, which says that the folder is a run's.
    if task != task_lib.DEFAULT and not (folder / dataset_json.TASK_FILE).exists():
        text = json.dumps(dataset_json.describe(task), indent=1) + "\n"
        _write(folder / dataset_json.TASK_FILE, text)
    if not (folder / CONFIG).exists():
        _write(folder / CONFIG, settings.to_json(config))
    if not (folder / SPLIT).exists():
        splits.save_split(split, folder / SPLIT)


def check_seen(folder: pathlib.Path) -> None:
    """Waits until this process sees what process 0 has written into a run's folder.

    Raises:
        UserError: it never does.
    """
    if files.wait_until_seen([folder / CONFIG]):
        raise UserError(
            f"{folder / CONFIG}: process 0 wrote it, but it is not seen on "
            f"{socket.gethostname()}. Give a --workdir on storage that all processes share."
        )


def _write(path: pathlib.Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise files.disk_error(error, path) from error
