"""Prediction of scans, from their files to masks and the other requested outputs, with times."""

import collections
import contextlib
import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import memory, typed
from kdnet_jax.data.scans import (
    dicom,
    dicom_stack,
    familiarity,
    geometry,
    intensities,
    nifti,
    prepare,
    spaces,
)
from kdnet_jax.data.sources import cases, labels
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import (
    ensembles,
    manifest,
    prediction_jobs,
    prediction_outputs,
    stripping,
)

_LOG = logging.getLogger(__name__)


class UnusableScanError(UserError):
    """A scan that cannot be read or prepared; others may be."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for all scans.

    Attributes:
        convention: label values of the masks.
        orientation: see `prepare.prepare_case`.
        uncertainty: entropy and mutual information too.
        usual: `familiarity.measure` of the training cases, or `None`.
        about: what made the masks, for the files that hold it.
        mark: goes into the header of each mask: who made it, and how.
        strip: takes off the skull, or `None`.
    """

    convention: str
    orientation: str
    uncertainty: bool
    usual: typed.JsonView | None
    about: typed.Json
    mark: str
    strip: stripping.Stripper | None = None


class Clock:
    """Seconds by stage, in the order in which they began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to the stage."""
        started = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - started

    def text(self) -> str:
        """Returns such as "read 0.4 s, prepare 1.2 s"."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def segment_scans(
    ensemble: ensembles.Ensemble,
    jobs: Sequence[prediction_jobs.Job],
    options: Options,
    done: Mapping[str, prediction_outputs.ScanVolumes | None],
    table: pathlib.Path | None,
    record: manifest.Manifest | None,
) -> None:
    """Segments one scan after the other, and skips those that cannot be used.

    Args:
        ensemble: what segments.
        jobs: the scans.
        options: what holds for all of them.
        done: scans that are finished, each with its row of the table.
        table: where the volumes go, or `None`.
        record: of the command, or `None`.

    Raises:
        UserError: scans that cannot be used, when all others are segmented; or, at once, a file
            that cannot be written.
    """
    rows, failed = dict(done), []
    for job in jobs:
        if job.name in done:
            continue
        clock = Clock()
        try:
            row = segment_scan(ensemble, job, options, clock)
        except UnusableScanError as error:
            failed.append(str(error))
            if record:
                record.failed(job, error)
            _LOG.info(f"{job.name}: NOT SEGMENTED")
            continue
        rows[job.name] = row
        if table:  # after each scan: an interrupted command keeps what is finished
            ordered = [found for each in jobs if (found := rows.get(each.name)) is not None]
            prediction_outputs.write_volumes(table, ordered, options.about)
        if record:
            record.segmented(job, row, clock.seconds)
    if record:
        record.write(finished=True)
    if len(jobs) == 1 and failed:
        raise UserError(failed[0])
    if failed:
        listed = "".join(f"\n  {error}" for error in failed)
        raise UserError(
            f"{len(failed)} of {len(jobs)} scans were not segmented, the others are:{listed}"
        )


def segment_scan(
    ensemble: ensembles.Ensemble, job: prediction_jobs.Job, options: Options, clock: Clock
) -> prediction_outputs.ScanVolumes:
    """Reads, segments and writes one scan, and reports its volumes.

    Args:
        ensemble: what segments.
        job: the scan.
        options: what holds for all scans.
        clock: times the stages.

    Raises:
        UnusableScanError: a file cannot be used.
        UserError: a file cannot be written.
    """
    try:
        case, warnings = _prepare(ensemble, job, options, clock)
    except UserError as error:
        raise UnusableScanError(str(error)) from error
    try:
        prediction = ensemble.segment(
            case, uncertainty=options.uncertainty, progress=True, stage=clock.stage
        )
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        raise UserError(
            f"{job.name}: the memory of the device is used up. Leave out --whole, give it more "
            "devices (--space), or lower --window_batch."
        ) from error
    if ensemble.predictor.whole:
        shape = case.image.shape[:3]
        padded = ensemble.predictor.window(shape)
        _LOG.info(f"{job.name}: {_by(shape)} voxels in one pass, padded to {_by(padded)}")
    with clock.stage("write"):
        _write(job, case, prediction, ensemble, options)
    affine = case.geometry.affine
    task = ensemble.head.task
    volumes = prediction_outputs.volumes_ml(prediction.classes, affine, task=task)
    confidence = ensemble.confidence(case, prediction)
    found = ", ".join(
        f"{region} {volume:.1f} ml"
        + (f" ({confidence[region]})" if str(confidence[region]) else "")
        for region, volume in volumes.items()
    )
    _LOG.info(f"{job.name}: {found if any(volumes.values()) else _nothing(task)} -> {job.output}")
    _LOG.info(f"  {clock.text()}")
    return prediction_outputs.ScanVolumes(
        job.name, volumes, confidence, spaces.spacing(affine), str(job.output), warnings
    )


def _nothing(task: task_lib.Task) -> str:
    return f"no {task.noun} found"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _prepare(
    ensemble: ensembles.Ensemble, job: prediction_jobs.Job, options: Options, clock: Clock
) -> tuple[prepare.PreparedCase, tuple[str, ...]]:
    """Returns the prepared scan and the warnings, which are printed; the files' arrays are freed.

    A head with its skull on is segmented all the same, after a warning.
    """
    task = ensemble.head.task
    with clock.stage("read"):
        scan, files = _read(job, task)
    stripped: list[str] = []
    if options.strip:
        with clock.stage("strip"):
            files, stripped = stripping.without_skull(options.strip, files, options.orientation)
    with clock.stage("prepare"):
        case, notes, warnings = prepare_scan(
            scan,
            files,
            task=task,
            spacing=ensemble.spacing,
            orientation=options.orientation,
            usual=options.usual,
        )
    for note in (*stripped, *notes):
        _LOG.info(f"note: {note}")
    for warning in warnings:
        _LOG.info(f"WARNING: {job.name}: {warning}")
    return case, warnings


def _read(job: prediction_jobs.Job, task: task_lib.Task) -> tuple[cases.Case, prepare.CaseFiles]:
    if job.scanned:
        (modality,) = job.images
        return prepare.in_memory({modality: dicom_stack.read(job.scanned)}, job.name, task=task)
    images = {
        name: source for name, source in job.images.items() if not isinstance(source, dicom.Series)
    }
    scan = prepare.unlabelled_case(images, task=task)
    return scan, prepare.read_files(scan, task=task)


def prepare_scan(
    scan: cases.Case,
    files: prepare.CaseFiles,
    *,
    task: task_lib.Task,
    spacing: experiment_lib.Spacing,
    orientation: str,
    usual: typed.JsonView | None,
) -> tuple[prepare.PreparedCase, tuple[str, ...], tuple[str, ...]]:
    """Prepares a scan for prediction, with the skull on too.

    Args:
        scan: what the files are of.
        files: read.
        task: what is segmented.
        spacing: see `prepare.prepare_case`.
        orientation: likewise.
        usual: `familiarity.measure` of the training cases, or `None`.

    Returns:
        The scan, what was repaired or assumed, and what may make the mask wrong: the scan is
        unlike those of the training, or its header leaves open how it lies.
    """
    case, notes = prepare.prepare_files(
        scan, files, task=task, spacing=spacing, orientation=orientation, allow_skull=True
    )
    skull = [f"{note}. {familiarity.STRIP}" for note in notes if intensities.SKULL_ON in note]
    open_ = [note for note in notes if any(doubt in note for doubt in spaces.DOUBTS)]
    unlike = familiarity.compare(case, usual, task=task) if usual else []
    plain = tuple(note for note in notes if intensities.SKULL_ON not in note and note not in open_)
    return case, plain, (*open_, *skull, *unlike)


def _write(
    job: prediction_jobs.Job,
    case: prepare.PreparedCase,
    prediction: ensembles.Prediction,
    ensemble: ensembles.Ensemble,
    options: Options,
) -> None:
    affine, stored = case.geometry.affine, case.geometry.stored
    task = ensemble.head.task
    if job.probabilities:
        prediction_outputs.write_probabilities(
            job.probabilities, prediction.probabilities, case.geometry, ensemble.head
        )
        about = {"scan": job.name, "channels": ensemble.outputs, **options.about}
        prediction_outputs.write_text(
            prediction_jobs.description(job.probabilities), json.dumps(about, indent=1) + "\n"
        )
    maps = (
        (job.entropy, prediction.entropy),
        (job.mutual_information, prediction.mutual_information),
    )
    for path, values in maps:
        if path:
            assert values is not None  # `Options.uncertainty` asks for what a job has a path for
            values = geometry.map_to_scan(values, case.geometry)
            nifti.write_image(path, values, affine, stored=stored)
    if job.overlay:
        _draw(job.overlay, case, prediction.classes, job.name, task)
    # Last: a mask on disk means that all requested outputs are there.
    if job.is_dicom and job.series:
        from kdnet_jax.prediction import dicom_seg  # highdicom takes a second to import.

        dicom_seg.write(job.output, prediction.classes, affine, job.series, task, options.about)
        return
    values = labels.from_classes(prediction.classes, options.convention, task=task)
    names = labels.value_names(options.convention, task)
    nifti.write_mask(
        job.output, values, affine, names=names, stored=stored, description=options.mark
    )


def _draw(
    path: pathlib.Path,
    case: prepare.PreparedCase,
    classes: UInt8[np.ndarray, "x y z"],
    name: str,
    task: task_lib.Task,
) -> None:
    # Matplotlib takes 0.8 s to import, which a prediction without a picture does not pay.
    from kdnet_jax.drawing import figures

    shown = figures.shown_sequence(case.modalities, task)
    drawn = figures.overlay(
        case.image[..., case.modalities.index(shown)].astype(np.float32),
        None,
        geometry.to_working(classes, case.geometry, 0),
        spacing=case.geometry.spacing,
        title=f"{name}, {shown}: prediction",
        task=task,
        foreground=case.foreground,
    )
    figures.save_png(drawn, path)
