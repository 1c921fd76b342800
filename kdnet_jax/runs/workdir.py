"""Folder of a run: it belongs to one config and one split, and to one command at a time.

Config and split are written at the start and compared ever after; the command holds a lock.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.core import files
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError
from kdnet_jax.training import saved_checkpoints

_LOG = logging.getLogger(__name__)

CONFIG, SPLIT = reading.CONFIG, "split.json"
LOCK = ".lock"


def check(folder: pathlib.Path, experiment: experiment_lib.Experiment) -> None:
    """Raises UserError if the folder belongs to a run of another config; writes nothing."""
    if not (folder / CONFIG).exists():
        if (folder / saved_checkpoints.FOLDER).exists():
            raise UserError(f"{folder} has checkpoints but no {CONFIG}: give a new --workdir.")
        return
    was, task = reading.read_task(folder), experiment.task
    if different := was.difference(task):
        raise UserError(
            f"{folder} holds a run of the task {was.name}, and this one is {task.name}; "
            f"{different}. Give a new --workdir, or the former --config.task."
        )
    document = reading.read_document(folder)
    changed = flat_keys.changes(document, experiment.document)
    # Role, preset and seed say most of what is different.
    changed.sort(key=lambda change: "." in change[0])
    if changed:
        listed = "; ".join(f"{key} was {was!r} and is now {now!r}" for key, was, now in changed[:5])
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{folder} holds a run of another config: {listed}{more}. Give a new --workdir, or "
            "the former values to resume that run."
        )
    if experiment.teacher and experiment.teacher.to_train:
        _check_no_teacher_given(folder, document)


def _check_no_teacher_given(folder: pathlib.Path, document: flat_keys.Document) -> None:
    """Raises UserError if a run that would train a teacher now was given one when it began."""
    was = flat_keys.flatten(document)
    for key in ("teacher.checkpoint", "teacher.maps"):
        if given := was.get(key):
            raise UserError(
                f"{folder} holds a run whose {key} was {given!r}, and no teacher is given now: "
                f"another one would be trained. Give --config.{key}={given} (where it lies now) "
                "to resume that run, or a new --workdir."
            )


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Locks a run's folder, which is made, for this process; a killed process loses the lock.

    Raises:
        UserError: another command holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
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
        with files.writing(folder):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}")
            file.flush()
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


def claim(folder: pathlib.Path, experiment: experiment_lib.Experiment, split: splits.Split) -> None:
    """Writes the run's config, task and split, or checks that they are still the same.

    Raises:
        UserError: for another split, or a folder that cannot be written.
    """
    # Again: another command may have written it before this one had the lock.
    check(folder, experiment)
    if (folder / SPLIT).exists():
        splits.check_same_split(splits.load_split(folder / SPLIT), split)
    # Before the config, which says that the folder is a run's.
    task = experiment.task
    if task != task_lib.DEFAULT and not (folder / dataset_json.TASK_FILE).exists():
        text = json.dumps(dataset_json.describe(task), indent=1) + "\n"
        _write(folder / dataset_json.TASK_FILE, text)
    if not (folder / CONFIG).exists():
        _write(folder / CONFIG, experiment.to_json())
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
    with files.writing(path):
        files.write_text(path, text)
