"""Scores segmentations made by any tool against references.

    python -m kdnet_jax.evaluate --predictions=DIR --references=DIR --output=DIR

of a task of one's own with --task=DIR/dataset.json; or the segmentations that one or several runs
make of the cases in --references:

    python -m kdnet_jax.evaluate --checkpoint=RUN --references=DIR --output=DIR

Cases are matched by id. All that is wrong with the files is listed before anything is computed,
and ends the command with 2. `docs/evaluation.md` has the rules.
"""

import math
import os
import pathlib
from typing import TYPE_CHECKING, Final

from absl import flags

from kdnet_jax import cli, dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import documents
from kdnet_jax.data.checks import mask_checks
from kdnet_jax.data.sources import label_recognition, labels, layouts, segmentations
from kdnet_jax.errors import UserError, check_choice, first_few
from kdnet_jax.evaluation import mask_evaluation, score_files
from kdnet_jax.metrics import postprocessing, scoring
from kdnet_jax.runs import run_folders

if TYPE_CHECKING:
    from kdnet_jax.prediction import ensembles

_TASK = flags.DEFINE_string(
    "task",
    None,
    f"What is scored: {task_lib.GLIOMA_NAME} (the default), or a dataset.json of nnU-Net. With "
    "--checkpoint it is the runs' own.",
)
_CONVENTIONS: Final = (label_recognition.AUTO, *labels.LABEL_CONVENTIONS)
_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of masks to score.")
_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint",
    None,
    "Instead of --predictions: runs that segment the cases first, their probabilities averaged. "
    "Several times, with commas, or as a pattern.",
)
_ALLOW_SEEN = flags.DEFINE_bool(
    "allow_seen_cases", False, "With --checkpoint: also score cases that a run was trained on."
)
_SEQUENCES = flags.DEFINE_string(
    "sequences",
    "",
    "With --checkpoint: the runs' sequences that are used, with commas, where they were trained "
    "with modality dropout; by default all of them.",
)
_BFLOAT16 = flags.DEFINE_bool(
    "bfloat16", None, "With --checkpoint: see `kdnet_jax.predict`; by default as the runs say."
)
_REFERENCES = flags.DEFINE_string("references", None, "Folder of reference masks.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluation/.", required=True)
_LABELS_HELP: Final = (
    f"one of {', '.join(_CONVENTIONS)}, or the channels of masks that have several, such as "
    "TC,WT,ET. Of other tasks auto: the numbers in its dataset.json; or the channels likewise."
)
_PREDICTION_LABELS = flags.DEFINE_string(
    "prediction_labels", label_recognition.AUTO, f"Label values of the predictions: {_LABELS_HELP}"
)
_REFERENCE_LABELS = flags.DEFINE_string(
    "reference_labels", label_recognition.AUTO, f"Label values of the references: {_LABELS_HELP}"
)
_CASES = flags.DEFINE_string(
    "cases", None, "Cases to score: ids with commas, or a part of a split such as split.json:test."
)
_ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing", False, "Leave out cases that have no prediction."
)
_IGNORE_AFFINE = flags.DEFINE_bool(
    "ignore_affine",
    False,
    "Take voxel i of a prediction as voxel i of its reference, whatever the headers say.",
)
_RESECTION_CAVITY = flags.DEFINE_string(
    "resection_cavity",
    None,
    "What a resection cavity, or what else a task leaves unscored, counts as: background or ncr; "
    "of other tasks any class. By default as in the training of the runs, or of that whose "
    "predictions are scored; of other masks background.",
)
_SMALL_REGION_ML = flags.DEFINE_float(
    "small_region_ml",
    0.0,
    "Also score with regions of a smaller total volume as their fallback (ET as NCR); 0 for off.",
)
flags.DEFINE_alias("small_et_ml", "small_region_ml")
_MIN_COMPONENT_ML = flags.DEFINE_float(
    "min_component_ml", 0.0, "Also score without smaller components; 0 for off."
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Cases at once; by default the number of cores, 8 at most.",
    lower_bound=1,
    upper_bound=1024,
)


def main(argv: list[str]) -> None:
    """Scores what the flags name."""
    cli.refuse_arguments(argv)
    wanted = mask_evaluation.read_cases(_CASES.value)
    if bool(_PREDICTIONS.value) == bool(_CHECKPOINT.value):
        raise UserError(
            "give --predictions=DIR, a folder of masks, or --checkpoint=RUN, which makes them; "
            f"{'both were' if _CHECKPOINT.value else 'neither was'} given"
        )
    made = "masks are made already"
    for flag, way, why in (
        (_SEQUENCES, _CHECKPOINT, made),
        (_BFLOAT16, _CHECKPOINT, made),
        (_ALLOW_SEEN, _CHECKPOINT, made),
        (_PREDICTION_LABELS, _PREDICTIONS, "what the masks of runs hold is known"),
    ):
        if flag.value != flag.default and not way.value:
            raise UserError(f"--{flag.name} belongs to --{way.name}: {why}. Leave it out.")
    ensemble = _ensemble() if _CHECKPOINT.value else None
    task = ensemble.members[0].model.task if ensemble else _task()
    rules = _rules(task)
    cavity = _cavity(task, ensemble)
    for flag in (_PREDICTION_LABELS, _REFERENCE_LABELS):
        labels.check_convention(
            f"--{flag.name}", flag.value, auto=(label_recognition.AUTO,), task=task
        )
    output = pathlib.Path(_OUTPUT.value)
    references = segmentations.find_masks(_REFERENCES.value, "--references", task)
    about = {
        "predictions": _named(_PREDICTIONS.value, _CHECKPOINT.value),
        "references": os.fspath(references.folder),
        "cases_asked": _CASES.value,
    }
    if ensemble and ensemble.lacking:
        about["sequences"] = list(ensemble.modalities)
    if _BFLOAT16.value is not None:
        about["bfloat16"] = _BFLOAT16.value
    mask_evaluation.check_output(output, about)
    workers = _WORKERS.value or scoring.default_workers()
    masks, prediction_labels = pathlib.Path(_PREDICTIONS.value or ""), _PREDICTION_LABELS.value
    known: dict[pathlib.Path, mask_checks.Content] = {}
    if ensemble:
        known = segment(ensemble, references, output, wanted, workers)
        masks, prediction_labels = output / score_files.PREDICTIONS, labels.usual_of_masks(task)
        about |= {"members": ensemble.hashes, "seen_cases_allowed": _ALLOW_SEEN.value}
    predictions = segmentations.find_masks(masks, "--predictions", task)
    inputs = mask_evaluation.check_inputs(
        predictions,
        references,
        wanted,
        task=task,
        prediction_labels=prediction_labels,
        reference_labels=_REFERENCE_LABELS.value,
        allow_missing=_ALLOW_MISSING.value,
        ignore_affine=_IGNORE_AFFINE.value,
        workers=workers,
        known=known,
    )
    about |= {
        "labels": inputs.prediction_labels.convention,
        "reference_labels": inputs.reference_labels.convention,
        "resection_cavity": cavity,
        "ignore_affine": _IGNORE_AFFINE.value,
        "left_out": inputs.left_out,
    }
    scored = scoring.score_pairs(
        (mask_evaluation.job(pair, inputs, cavity) for pair in inputs.pairs),
        rules,
        task=task,
        workers=min(workers, len(inputs.pairs)),
        total=len(inputs.pairs),
    )
    mask_evaluation.write(output, scored, rules, about, task=task)
    print(mask_evaluation.table(scored, rules, task=task))
    if inputs.left_out:
        print(f"Left out, without a prediction: {first_few(inputs.left_out)}")
    print(f"Scores: {output / 'evaluation'}")


def _task() -> task_lib.Task:
    return dataset_json.read(_TASK.value) if _TASK.value else task_lib.DEFAULT


def _rules(task: task_lib.Task) -> postprocessing.Rules:
    volume = _SMALL_REGION_ML.value
    if not (math.isfinite(volume) and volume >= 0):
        raise UserError(
            f"--small_region_ml (or --small_et_ml) is {volume}: expected a volume in ml, 0 for off"
        )
    small = postprocessing.small_regions(task, volume)
    if volume and not small:
        raise UserError(
            f"--small_region_ml={volume:g}: the task {task.name} has no region "
            'with a fallback. Leave the flag out, or name one under "fallback" in its dataset.json'
        )
    return postprocessing.Rules(small, _MIN_COMPONENT_ML.value)


def _cavity(task: task_lib.Task, ensemble: "ensembles.Ensemble | None") -> str:
    """Returns what a resection cavity counts as: as the flag says, else as in training."""
    asked = _RESECTION_CAVITY.value
    if not task.unscored:
        if asked is not None:
            raise UserError(
                f"--resection_cavity: the task {task.name} leaves no value unscored. Leave it out."
            )
        return "background"
    own = _cavities(task, ensemble)
    if asked is None:
        if len(set(own.values())) > 1:
            listed = ", ".join(f"{folder} as {value}" for folder, value in own.items())
            raise UserError(
                f"the runs took a resection cavity differently: {listed}. Say by "
                "--resection_cavity as what it is to be scored."
            )
        return next(iter(own.values()), "background")
    classes = {name.lower(): name for name in labels.cavity_choices(task)}
    cavity = classes[check_choice("--resection_cavity", asked.lower(), classes)]
    for folder, value in own.items():
        if value != cavity:
            print(f"note: {folder} was trained with a resection cavity as {value}, not {cavity}")
    return cavity


def _cavities(task: task_lib.Task, ensemble: "ensembles.Ensemble | None") -> dict[str, str]:
    """Returns by the folder of each run what a resection cavity counted as in its training."""
    if ensemble:
        return {os.fspath(run.folder): run.model.resection_cavity for run in ensemble.members}
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(_PREDICTIONS.value or "")))
    run = folder.parent if folder.name == score_files.PREDICTIONS else folder
    config = run / "config.json"
    # As `segmentations.find_masks` tells a run; what another tool wrote has no such key.
    if not (config.is_file() and (run / score_files.PREDICTIONS).is_dir()):
        return {}
    data = documents.read_object(config).get("data")
    if not isinstance(data, dict) or "resection_cavity" not in data:
        return {}
    value = check_choice(
        f"{config}: data.resection_cavity", data["resection_cavity"], labels.cavity_choices(task)
    )
    return {os.fspath(run): value}


def _named(predictions: str | None, checkpoints: list[str] | None) -> str | list[str]:
    """Returns the folders that were given, in one form whichever way they were written."""
    if predictions:
        return os.path.abspath(os.path.expanduser(predictions))
    return [
        os.path.abspath(folder) for folder in run_folders.expand("checkpoint", checkpoints or [])
    ]


def _ensemble() -> "ensembles.Ensemble":
    """Reads the runs of --checkpoint, whose task is what is scored.

    Raises:
        UserError: they cannot be read, or --task is another one.
    """
    # Imported here: the worker processes import this file, and need no JAX.
    from kdnet_jax.prediction import ensembles

    found = ensembles.load_ensemble(
        run_folders.expand("checkpoint", _CHECKPOINT.value or []),
        sequences=_SEQUENCES.value,
        bfloat16=_BFLOAT16.value,
    )
    task = found.members[0].model.task
    if _TASK.value and _task().difference(task):
        raise UserError(
            f"--task={_TASK.value} is not the task {task.name} of --checkpoint. Leave --task out: "
            "it is the runs' own"
        )
    return found


def segment(
    ensemble: "ensembles.Ensemble",
    references: segmentations.Found,
    output: pathlib.Path,
    wanted: list[str] | None,
    workers: int,
) -> dict[pathlib.Path, mask_checks.Content]:
    """Segments the cases of --references with the runs of --checkpoint.

    What is wrong with names, files, grids and labels is found first: this takes hours.

    Returns:
        What was read in the references.
    """
    from kdnet_jax.data.sources import cases
    from kdnet_jax.evaluation import cohort_segmentation

    task = ensemble.members[0].model.task
    cohort = cases.find_cases(_REFERENCES.value, layouts.AUTO, ensemble.modalities, task=task)
    chosen = cohort_segmentation.choose(
        ensemble, cohort, output, wanted=wanted, allow_seen=_ALLOW_SEEN.value
    )
    masks, to_come = cohort_segmentation.masks_to_come(
        chosen, output, task=task, orientation=ensemble.orientation
    )
    known = mask_evaluation.check_references(
        masks,
        references,
        wanted,
        to_come=to_come,
        task=task,
        reference_labels=_REFERENCE_LABELS.value,
        allow_missing=_ALLOW_MISSING.value,
        ignore_affine=_IGNORE_AFFINE.value,
        workers=workers,
    )
    cli.enable_compilation_cache()
    cohort_segmentation.segment(ensemble, chosen, output)
    return known


if __name__ == "__main__":
    cli.run(main)
