"""Scores segmentations made by any tool against references.

    python -m kdnet_jax.evaluate --predictions=DIR --references=DIR --output=DIR

or the segmentations that one or several runs make of the cases in --references:

    python -m kdnet_jax.evaluate --checkpoint=RUN --references=DIR --output=DIR

Cases are matched by id. All that is wrong with the files is listed before anything is computed,
and ends the command with 2. `docs/evaluation.md` has the rules.
"""

import os
import pathlib
from typing import Final

from absl import flags

from kdnet_jax import cli, mask_evaluation, postprocessing, run_folders, scoring
from kdnet_jax.data import label_recognition, labels, layouts, segmentations
from kdnet_jax.errors import UserError

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
_REFERENCES = flags.DEFINE_string("references", None, "Folder of reference masks.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluation/.", required=True)
_LABELS_HELP: Final = (
    f"one of {', '.join(_CONVENTIONS)}, or the channels of masks that have several, such as "
    "TC,WT,ET."
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
_RESECTION_CAVITY = flags.DEFINE_enum(
    "resection_cavity", "background", ["background", "ncr"], "What a resection cavity counts as."
)
_SMALL_ET_ML = flags.DEFINE_float(
    "small_et_ml", 0.0, "Also score with ET of a smaller total volume as NCR; 0 for off."
)
_MIN_COMPONENT_ML = flags.DEFINE_float(
    "min_component_ml", 0.0, "Also score without smaller components of tumour; 0 for off."
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
    rules = postprocessing.Rules(_SMALL_ET_ML.value, _MIN_COMPONENT_ML.value)
    wanted = mask_evaluation.read_cases(_CASES.value)
    for flag in (_PREDICTION_LABELS, _REFERENCE_LABELS):
        labels.check_convention(f"--{flag.name}", flag.value, auto=(label_recognition.AUTO,))
    if bool(_PREDICTIONS.value) == bool(_CHECKPOINT.value):
        raise UserError(
            "give --predictions=DIR, a folder of masks, or --checkpoint=RUN, which makes them; "
            f"{'both were' if _CHECKPOINT.value else 'neither was'} given"
        )
    output = pathlib.Path(_OUTPUT.value)
    references = segmentations.find_masks(_REFERENCES.value, "--references")
    about = {
        "predictions": _named(_PREDICTIONS.value, _CHECKPOINT.value),
        "references": os.fspath(references.folder),
        "cases_asked": _CASES.value,
    }
    mask_evaluation.check_output(output, about)
    masks, prediction_labels = _PREDICTIONS.value, _PREDICTION_LABELS.value
    if _CHECKPOINT.value:
        masks, prediction_labels, members = segment(output, wanted)
        about |= {"members": members, "seen_cases_allowed": _ALLOW_SEEN.value}
    predictions = segmentations.find_masks(masks, "--predictions")
    workers = _WORKERS.value or scoring.default_workers()
    inputs = mask_evaluation.check_inputs(
        predictions,
        references,
        wanted,
        prediction_labels=prediction_labels,
        reference_labels=_REFERENCE_LABELS.value,
        allow_missing=_ALLOW_MISSING.value,
        ignore_affine=_IGNORE_AFFINE.value,
        workers=workers,
    )
    about |= {
        "labels": inputs.prediction_labels.convention,
        "reference_labels": inputs.reference_labels.convention,
        "resection_cavity": _RESECTION_CAVITY.value,
        "ignore_affine": _IGNORE_AFFINE.value,
        "left_out": inputs.left_out,
    }
    cavity = "NCR" if _RESECTION_CAVITY.value == "ncr" else "background"
    scored = scoring.score_pairs(
        (mask_evaluation.task(pair, inputs, cavity) for pair in inputs.pairs),
        rules,
        workers=min(workers, len(inputs.pairs)),
        total=len(inputs.pairs),
    )
    mask_evaluation.write(output, scored, rules, about)
    print(mask_evaluation.table(scored, rules))
    if inputs.left_out:
        print(f"Left out, without a prediction: {layouts.shown(inputs.left_out)}")
    print(f"Scores: {output / 'evaluation'}")


def _named(predictions: str | None, checkpoints: list[str] | None) -> str | list[str]:
    """Returns the folders that were given, in one form whichever way they were written."""
    if predictions:
        return os.path.abspath(os.path.expanduser(predictions))
    return [os.path.abspath(folder) for folder in run_folders.expand("checkpoint", checkpoints)]


def segment(
    output: pathlib.Path, wanted: list[str] | None
) -> tuple[pathlib.Path, str, dict[str, str]]:
    """Segments the cases of --references with the runs of --checkpoint.

    Returns:
        The folder of the masks, what their values mean, and run -> hash of its parameters.
    """
    # Imported here: the worker processes import this file, and need no JAX.
    from kdnet_jax import cohort_segmentation, ensembles
    from kdnet_jax.data import cases

    ensemble = ensembles.load_ensemble(run_folders.expand("checkpoint", _CHECKPOINT.value))
    cohort = cases.find_cases(_REFERENCES.value, layouts.AUTO, ensemble.modalities)
    cli.enable_compilation_cache()
    folder = cohort_segmentation.segment(
        ensemble, cohort, output, wanted=wanted, allow_seen=_ALLOW_SEEN.value
    )
    members = {os.fspath(member.folder): member.params_hash for member in ensemble.members}
    return folder, cohort_segmentation.LABELS, members


if __name__ == "__main__":
    cli.run(main)
