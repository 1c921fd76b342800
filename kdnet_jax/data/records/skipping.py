"""Unreadable training cases: the run stops, or continues without them and says so."""

import contextlib
import json
import logging
import pathlib
import threading
import time
from collections.abc import Iterable
from typing import Final

from kdnet_jax.core import console
from kdnet_jax.data import choices
from kdnet_jax.data.records import records
from kdnet_jax.errors import UserError

_LOG = logging.getLogger(__name__)

# Beside a run's metrics: a row for each case, in each start of the run.
FILE: Final = "skipped_cases.jsonl"
# Of the training cases, what may be left out; one always may, unless it is the only one.
_SHARE: Final = 0.1


def left_out(folder: pathlib.Path) -> list[str]:
    """Returns the cases that a run was trained without from some step on, by the notes it made."""
    found = set()
    for path in folder.glob(f"{pathlib.Path(FILE).stem}*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            # A kill may have cut a row off; the next start meets the case again.
            with contextlib.suppress(ValueError):
                found.add(json.loads(line)["case_id"])
    return sorted(found)


class Unreadable:
    """The training cases that could not be read so far; thread safe.

    Args:
        training: how many cases train.
        choice: one of `choices.ON_READ_ERROR`.
        folders: of the runs that train on them, where `FILE` is written.
        process: which process this is; each but the first writes a file of its own.

    Attributes:
        choice: see above.
    """

    def __init__(
        self,
        training: int,
        choice: str = choices.STOP,
        folders: Iterable[pathlib.Path] = (),
        process: int = 0,
    ) -> None:
        self._training, self.choice = training, choice
        self._limit = min(max(1, int(_SHARE * training)), training - 1)
        name = pathlib.Path(FILE)
        own = f"{name.stem}-{process}.jsonl" if process else name
        self._paths = [folder / own for folder in folders]
        self._found: set[int] = set()
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def add(self, error: records.UnreadableCaseError) -> None:
        """Records a case and reports it, or stops.

        Raises:
            UserError: cases are not to be skipped, or too many are unreadable.
            OSError: the run's folder cannot be written.
        """
        about = f"{error.path}: the training case {error.case_id} cannot be read: {error.finding}."
        remedy = records.rebuild(error.path.parent)
        if self.choice == choices.STOP:
            raise UserError(
                f"{about} {remedy} To continue without such cases: "
                "--config.data.on_read_error=skip."
            ) from error
        with self._lock:
            if error.index in self._found:
                return
            if len(self._found) >= self._limit:
                raise UserError(
                    f"{about} With it {len(self._found) + 1} of the {self._training} training "
                    f"cases cannot be read, and data.on_read_error=skip leaves out at most "
                    f"{self._limit}: {int(100 * _SHARE)} %. {remedy}"
                ) from error
            self._tell(error, about)
            self._found.add(error.index)

    def _tell(self, error: records.UnreadableCaseError, about: str) -> None:
        said = f"warning: {about} It is left out of training; other cases are trained on instead."
        with console.clear_of_bars():
            _LOG.warning(said)
        row = {
            "case_id": error.case_id,
            "file": str(error.path),
            "reason": error.finding,
            "time": time.strftime("%FT%T%z"),
        }
        for path in self._paths:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
