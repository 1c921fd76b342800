"""Segments scans: python -m kdnet_jax.predict --checkpoint=RUN --input=SCAN --output=MASK.

`docs/prediction.md` says what is written, and what the warnings mean.
"""

import contextlib
import json
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

from absl import flags

from kdnet_jax import cli
from kdnet_jax.core import files, process, typed
from kdnet_jax.errors import UserError
from kdnet_jax.runs import run_folders

if TYPE_CHECKING:
    from kdnet_jax.prediction import ensembles, prediction_jobs

_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint",
    None,
    "Folder of a run, or what export wrote; several (repeated, with commas, or a pattern "
    "'runs/fold-*') are averaged",
    required=True,
)
_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "A scan (.nii, .nii.gz, .nrrd, .mha, a folder or zip of DICOM), or a folder of scans or cases; "
    "may be given more than once",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "The mask's file for one scan (.nii.gz; of DICOM also .dcm, a DICOM SEG), a folder for several",
)
_LIST = flags.DEFINE_bool(
    "list",
    False,
    "Segment nothing: print the input, classes and regions of the checkpoint as JSON; needs no "
    "--input and --output",
)
_DICOM = flags.DEFINE_string(
    "dicom",
    None,
    "With an output in .dcm: the folder or zip of the series that the input, a .nii.gz, was made "
    "from (converted, stripped of its skull)",
)
_SERIES = flags.DEFINE_string(
    "series", "", "Number or UID of the series, where a folder of DICOM holds several"
)
_STRIP = flags.DEFINE_enum(
    "strip",
    None,
    ["auto", "hd-bet", "synthstrip"],
    "Take off the skull first, by HD-BET or SynthStrip, which must be installed; auto: by the "
    "first of them that is",
)
_SEQUENCES = flags.DEFINE_string(
    "sequences",
    "",
    "The network's sequences that the scans have, with commas, where it was trained with modality "
    "dropout; by default all of them",
)
_LABELS = flags.DEFINE_string(
    "labels",
    None,
    "Label values of the mask: of a glioma brats2018 to brats2024 (brats2021 is the default) or "
    "decathlon; of other tasks those of their own dataset.json",
)
_OVERLAY = flags.DEFINE_string(
    "overlay", None, "Also draw the mask: a .png file for one scan, a folder for several"
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "Also write the probabilities beside the mask, as <mask>_prob.nii.gz"
)
_UNCERTAINTY = flags.DEFINE_bool(
    "uncertainty",
    False,
    "Also write entropy and mutual information (nats) over mirror images and checkpoints",
)
_VOLUMES = flags.DEFINE_string("volumes", None, "Also write the volumes in ml: a .csv or .json")
_MANIFEST = flags.DEFINE_string(
    "manifest",
    None,
    "Also write a record of the command, a .json: versions, SHA-256 of inputs and parameters, "
    "seconds, warnings, and what failed",
)
_MIRROR = flags.DEFINE_bool(
    "mirror", None, "Average over the 8 mirror images; by default as the run's config says"
)
_BFLOAT16 = flags.DEFINE_bool(
    "bfloat16",
    None,
    "Compute in bfloat16: on a CPU that has it in less time, with slightly other masks; by default "
    "as the run's config says, which is on GPU and TPU alone",
)
_ORIENTATION = flags.DEFINE_string(
    "orientation",
    None,
    "header, or three letters such as LPS that overrule a wrong header; by default as in training",
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Leave out scans that an interrupted command of the same flags has finished"
)
_WINDOW_BATCH = flags.DEFINE_integer(
    "window_batch",
    1,
    "Windows at once; on a CPU more than 1 takes memory and no less time",
    lower_bound=1,
)
_WHOLE = flags.DEFINE_bool(
    "whole",
    None,
    "A scan in one pass, without windows, compiled for each size of scan; by default as the run's "
    "config says",
)
_SPACE = flags.DEFINE_integer(
    "space",
    None,
    "Devices that share the depth of a scan or window; by default all of them with --whole, else "
    "as in training",
    lower_bound=1,
)


@flags.multi_flags_validator(["input", "output", "list"])
def _are_given(values: typed.JsonView) -> bool:
    names = [name for name in ("input", "output") if not (values[name] or values["list"])]
    if names:
        raise flags.ValidationError(cli.missing(names))
    return True


def main(argv: list[str]) -> None:
    """Predicts every scan that the flags name, or lists what the networks segment."""
    # Imported here: mistakes in the flags are reported before the seconds that this takes.
    with process.importing():
        from kdnet_jax.data.scans import geometry
        from kdnet_jax.data.sources import labels
        from kdnet_jax.prediction import ensembles, listing

    if _ORIENTATION.value is not None:
        geometry.check_orientation(_ORIENTATION.value)
    with contextlib.redirect_stdout(sys.stderr) if _LIST.value else contextlib.nullcontext():
        ensemble = ensembles.load_ensemble(
            run_folders.expand("checkpoint", _CHECKPOINT.value),
            sequences=_SEQUENCES.value,
            bfloat16=_BFLOAT16.value,
            mirror=_MIRROR.value,
            window_batch=_WINDOW_BATCH.value,
            whole=_WHOLE.value,
            space=_SPACE.value,
        )
    convention = labels.of_masks(_LABELS.value, ensemble.head.task, "--labels")
    if _LIST.value:
        print(json.dumps(listing.of_ensemble(ensemble, convention), indent=1))
    else:
        _segment([*(_INPUT.value or ()), *argv[1:]], ensemble, convention)


def _segment(inputs: list[str], ensemble: "ensembles.Ensemble", convention: str) -> None:
    """Segments the scans that the inputs name, and writes what the flags ask for."""
    from kdnet_jax.core import provenance
    from kdnet_jax.prediction import (
        manifest,
        prediction_outputs,
        resuming_predictions,
        segmenting,
        stripping,
    )

    if _UNCERTAINTY.value and not ensemble.disagreeing:
        raise UserError(
            "--uncertainty needs several answers to compare: give --mirror, or several checkpoints."
        )
    for run in ensemble.members:
        print(
            f"{run.folder} ({run.model.role}, step {run.step}) was trained on "
            f"{', '.join(run.model.modalities)}: every input is taken as "
            f"{', '.join(ensemble.modalities) if ensemble.lacking else 'that'}."
        )
    task = ensemble.head.task
    orientation = _ORIENTATION.value or _orientation(ensemble)
    volumes = pathlib.Path(_VOLUMES.value) if _VOLUMES.value else None
    record = pathlib.Path(_MANIFEST.value) if _MANIFEST.value else None
    jobs = _plan(inputs, ensemble, orientation, volumes, record)
    about = provenance.collect() | {
        "checkpoints": [str(run.folder) for run in ensemble.members],
        "parameters_sha256": [run.params_hash for run in ensemble.members],
        "mirror": ensemble.predictor.mirror,
        "whole": ensemble.predictor.whole,
    }
    for job in jobs:
        if job.is_dicom and job.series:
            from kdnet_jax.prediction import dicom_seg  # With what need not be installed.

            dicom_seg.check(job.series, task, about)
    chosen = {key: about[key] for key in ("parameters_sha256", "mirror", "whole")}
    if ensemble.lacking:
        about["sequences"] = chosen["sequences"] = list(ensemble.modalities)
    if _BFLOAT16.value is not None:
        about["bfloat16"] = chosen["bfloat16"] = _BFLOAT16.value
    stripper = stripping.find(_STRIP.value, task, ensemble.modalities) if _STRIP.value else None
    if stripper:
        print(f"skulls are taken off by {stripper.name}: {stripper.command}")
        about["strip"] = chosen["strip"] = stripper.name
        # As ^C: the scan that the tool is given is removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if ensemble.thresholds:
        about["thresholds"] = chosen["thresholds"] = [f"{each:g}" for each in ensemble.thresholds]
    mark = resuming_predictions.mark(chosen | {"labels": convention, "orientation": orientation})
    done: dict[str, prediction_outputs.ScanVolumes | None] = {}
    recorded: dict[str, typed.Json] = {}
    if _RESUME.value:
        done = resuming_predictions.finished(jobs, mark, volumes, task)
        if record:
            recorded = manifest.segmented_scans(record)
            done = {name: row for name, row in done.items() if name in recorded}
        print(f"{len(done)} of {len(jobs)} scans are finished")
    usual = _training_data(ensemble)
    if len(done) < len(jobs):
        _compile(ensemble)
    options = segmenting.Options(
        convention, orientation, _UNCERTAINTY.value, usual, about, mark, stripper
    )
    log = None
    if record:
        begun = about | {"task": task.name, "input": ensemble.modalities, "labels": convention}
        log = manifest.Manifest(record, begun, jobs, {name: recorded[name] for name in done})
    segmenting.segment_scans(ensemble, jobs, options, done, volumes, log)


def _plan(
    inputs: list[str],
    ensemble: "ensembles.Ensemble",
    orientation: str,
    volumes: pathlib.Path | None,
    record: pathlib.Path | None,
) -> "list[prediction_jobs.Job]":
    """Returns the jobs, of which all that can be known before the first voxel was checked."""
    from kdnet_jax.prediction import finding_scans, prediction_jobs

    task, reference = ensemble.head.task, None
    if _DICOM.value:
        place = pathlib.Path(_DICOM.value)
        reference = finding_scans.series_of(place, ensemble.modalities[0], task, _SERIES.value)
    scans = finding_scans.find_scans(
        [pathlib.Path(path) for path in inputs],
        ensemble.modalities,
        task,
        "" if reference else _SERIES.value,
    )
    jobs = prediction_jobs.plan(
        scans,
        pathlib.Path(_OUTPUT.value),
        overlay=pathlib.Path(_OVERLAY.value) if _OVERLAY.value else None,
        probabilities=_PROBABILITIES.value,
        uncertainty=_UNCERTAINTY.value,
        volumes=volumes,
        record=record,
        reference=reference,
    )
    if _LABELS.value and any(job.is_dicom for job in jobs):
        raise UserError("--labels: a DICOM SEG has segments, and no label values. Leave it out.")
    outputs = [path for job in jobs for path in job.outputs]
    files.check_places([*outputs, *(path for path in (volumes, record) if path)])
    prediction_jobs.check_headers((job.images for job in jobs), task, orientation)
    prediction_jobs.check_references(jobs)
    return jobs


def _compile(ensemble: "ensembles.Ensemble") -> None:
    """Compiles the network and says what that took."""
    cli.enable_compilation_cache()
    seconds = ensemble.compile(uncertainty=_UNCERTAINTY.value)
    print(
        "whole scans in one pass: the network is compiled for each size of scan that comes"
        if ensemble.predictor.whole
        else f"network compiled in {seconds:.1f} s, once for scans of any size"
    )


def _orientation(ensemble: "ensembles.Ensemble") -> str:
    """Returns the orientation that the networks were trained with, and says it if it is special."""
    orientation = ensemble.orientation
    if orientation != "header":
        print(
            f"note: the scans are taken as stored in {orientation}, whatever their headers say, as "
            "in training; --orientation=header says otherwise"
        )
    return orientation


def _training_data(ensemble: "ensembles.Ensemble") -> typed.Json | None:
    """Returns the first member's record of its training data, or reports that there is none."""
    from kdnet_jax.data.scans import familiarity

    if (usual := ensemble.training_data()) is not None:
        return usual
    print(
        f"note: {ensemble.members[0].folder} holds no {familiarity.FILE} (networks of "
        "other tools and of older versions have none), so it is not checked whether a scan looks "
        "as in training"
    )
    return None


if __name__ == "__main__":
    cli.run(main)
