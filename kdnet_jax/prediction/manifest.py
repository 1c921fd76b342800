"""Record of a `predict` command for other programs: what it read, computed and wrote, as JSON."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

from kdnet_jax.core import documents, files, typed
from kdnet_jax.data.scans import dicom
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import finding_scans, prediction_jobs, prediction_outputs

SEGMENTED: Final = "segmented"


class Manifest:
    """The record, which is written anew with each scan.

    A command that was interrupted, or that ends early because a file cannot be written, leaves
    `"finished": false`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        about: typed.JsonView,
        jobs: Sequence[prediction_jobs.Job],
        kept: Mapping[str, typed.Json],
    ) -> None:
        """Begins the record.

        Args:
            path: the file.
            about: what makes the masks.
            jobs: the scans, in the order of the record.
            kept: scan -> what an interrupted command recorded of it (`segmented_scans`).
        """
        self._path, self._about, self._jobs = path, about, jobs
        self._scans = dict(kept)

    def segmented(
        self,
        job: prediction_jobs.Job,
        row: prediction_outputs.ScanVolumes,
        seconds: Mapping[str, float],
    ) -> None:
        """Records a scan that was segmented.

        Args:
            job: the scan and its files.
            row: its volumes and warnings.
            seconds: by stage.
        """
        found = dataclasses.asdict(row)
        self._add(
            job,
            {
                "status": SEGMENTED,
                "input": {name: _source(source) for name, source in job.images.items()},
                "output": [str(path) for path in job.outputs],
                **{key: found[key] for key in ("ml", "confidence", "spacing_mm", "warnings")},
                "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
            },
        )

    def failed(self, job: prediction_jobs.Job, error: UserError) -> None:
        """Records a scan that could not be segmented, and why."""
        self._add(job, {"status": "not segmented", "error": str(error)})

    def _add(self, job: prediction_jobs.Job, about: typed.Json) -> None:
        self._scans[job.name] = {"scan": job.name, **about}
        self.write(finished=False)

    def write(self, *, finished: bool) -> None:
        """Writes the record atomically.

        Raises:
            UserError: the file cannot be written.
        """
        scans = [self._scans[job.name] for job in self._jobs if job.name in self._scans]
        content = {**self._about, "finished": finished, "scans": scans}
        prediction_outputs.write_text(self._path, json.dumps(content, indent=1) + "\n")


def segmented_scans(path: pathlib.Path) -> dict[str, typed.Json]:
    """Returns what an interrupted command recorded of each scan that it segmented.

    Raises:
        UserError: the file is there and is no such record.
    """
    if not path.exists():
        return {}
    try:
        scans = documents.read_object(path)["scans"]
        return {each["scan"]: each for each in scans if each["status"] == SEGMENTED}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"--manifest={path}: is no record of this command ({type(error).__name__}: {error}), "
            "so --resume cannot continue it. Remove it, or give another name."
        ) from error


def _source(source: finding_scans.Source) -> typed.Json:
    """Returns where a channel of a scan comes from, with the SHA-256 of the file's bytes.

    Of a series in several files: of these hashes, as hexadecimal text, in sorted order.
    """
    if isinstance(source, dicom.Series):
        paths = {file.path for file in source.files}
        hashes = sorted(files.sha256(path) for path in paths)
        joined = hashlib.sha256("".join(hashes).encode()).hexdigest()
        digest = hashes[0] if len(hashes) == 1 else joined
        return {"file": str(source.place), "series": source.uid, "sha256": digest}
    path, channel = source if isinstance(source, tuple) else (source, None)
    about = {"file": str(path), "sha256": files.sha256(path)}
    return about if channel is None else about | {"channel": channel}
