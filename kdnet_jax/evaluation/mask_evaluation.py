"""Scores of two folders of masks: all checks first, then the scores, files and table."""

import dataclasses
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.core import files, typed
from kdnet_jax.data import splits
from kdnet_jax.data.checks import mask_checks, problems
from kdnet_jax.data.scans import grids, spaces
from kdnet_jax.data.sources import label_recognition, labels, segmentations
from kdnet_jax.errors import UserError, first_few, nearest
from kdnet_jax.evaluation import score_files
from kdnet_jax.metrics import cases as case_metrics

# What imports JAX is imported where it is used: the worker processes import this file too.
from kdnet_jax.metrics import postprocessing, scoring, surface
from kdnet_jax.runs import run_folders

_LOG = logging.getLogger(__name__)

# An evaluation may replace one that has the same of these in its summary.
_INPUTS: Final = ("predictions", "references", "cases_asked", "sequences", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is scored, after all checks.

    Attributes:
        pairs: the masks of each case, by case id.
        prediction_labels: what the values of the predictions mean.
        reference_labels: what those of the references mean.
        left_out: cases without a prediction.
        ignore_affine: see `mask_checks.check_pairs`.
        task: what is scored.
    """

    pairs: list[segmentations.Pair]
    prediction_labels: label_recognition.Recognised
    reference_labels: label_recognition.Recognised
    left_out: list[str]
    ignore_affine: bool
    task: task_lib.Task


# ------------------------------------------------------------------------- before it computes


def read_cases(text: str | None) -> list[str] | None:
    """Returns the case ids of --cases, None where it is not given.

    Raises:
        UserError: no case, a duplicate one, or an unknown split or part.
    """
    if text is None:
        return None
    path, colon, part = text.rpartition(":")
    if colon or text.lower().endswith(".json"):
        if part not in splits.PARTS:
            raise UserError(
                f"--cases={text}{nearest(part, splits.PARTS)}: expected a split and one of its "
                f"parts {', '.join(splits.PARTS)}, such as split.json:test"
            )
        named = list(splits.load_split(path).parts[part])
    else:
        named = [name.strip() for name in text.split(",") if name.strip()]
    if not named or len(set(named)) < len(named):
        raise UserError(f"--cases={text}: expected at least one case, and each of them once")
    return named


def check_references(
    predictions: segmentations.Found,
    references: segmentations.Found,
    wanted: Sequence[str] | None,
    *,
    to_come: Mapping[pathlib.Path, mask_checks.Content],
    task: task_lib.Task,
    reference_labels: str,
    allow_missing: bool,
    ignore_affine: bool,
    workers: int,
) -> dict[pathlib.Path, mask_checks.Content]:
    """Refuses, before predictions are made, references with wrong names, files, grids or labels.

    Args:
        predictions: the masks that are to be made.
        references: see `check_inputs`, and so of the others.
        wanted: which cases.
        to_come: the grid of each of `predictions`, or why it cannot be made.
        task: what is scored.
        reference_labels: what the values mean.
        allow_missing: leave out cases without a prediction.
        ignore_affine: see `mask_checks.check_pairs`.
        workers: files read at once.

    Returns:
        What was read in the references, for `check_inputs`.

    Raises:
        UserError: with everything that is wrong, one line for each file.
    """
    pairs, _, listed, _ = segmentations.match(
        references, predictions, wanted, allow_missing=allow_missing
    )
    contents = read_contents([pair.reference for pair in pairs], workers, task)
    listed += mask_checks.check_pairs(pairs, {**contents, **to_come}, ignore_affine=ignore_affine)
    # Cases without a reference are segmented too.
    others = set(to_come) - {pair.prediction for pair in pairs}
    listed += mask_checks.check_files("", sorted(others), to_come)
    _recognised(references, "reference", reference_labels, pairs, contents, listed, task)
    if listed:
        raise UserError(_listing(listed))
    return contents


def check_inputs(
    predictions: segmentations.Found,
    references: segmentations.Found,
    wanted: Sequence[str] | None,
    *,
    task: task_lib.Task,
    prediction_labels: str,
    reference_labels: str,
    allow_missing: bool,
    ignore_affine: bool,
    workers: int,
    known: Mapping[pathlib.Path, mask_checks.Content],
) -> Inputs:
    """Matches and reads all masks, and prints what was found and taken.

    Args:
        predictions: the masks to score.
        references: what they are scored against.
        wanted: the cases to score; None takes all that have a reference.
        task: what is scored.
        prediction_labels: a label convention, the names of channels (`labels.classes_of`) or
            `label_recognition.AUTO`.
        reference_labels: the same.
        allow_missing: leave out cases without a prediction.
        ignore_affine: see `mask_checks.check_pairs`.
        workers: files read at once.
        known: files that were read already, of `check_references`.

    Raises:
        UserError: with everything that is wrong, one line for each file.
    """
    if predictions.folder == references.folder:
        raise UserError(
            f"--predictions and --references are one folder, {predictions.folder}, which would "
            "score every mask against itself"
        )
    pairs, left_out, listed, notes = segmentations.match(
        references, predictions, wanted, allow_missing=allow_missing
    )
    contents = dict(known)
    both = [path for pair in pairs for path in (pair.reference, pair.prediction)]
    contents |= read_contents([path for path in both if path not in contents], workers, task)
    listed += mask_checks.check_pairs(pairs, contents, ignore_affine=ignore_affine)
    of_predictions, of_references = (
        _recognised(found, side, asked, pairs, contents, listed, task)
        for found, side, asked in (
            (predictions, "prediction", prediction_labels),
            (references, "reference", reference_labels),
        )
    )
    if listed or of_predictions is None or of_references is None:
        raise UserError(_listing(listed))
    for found, its in ((predictions, of_predictions), (references, of_references)):
        _LOG.info(f"{found.folder}: labels of {its.convention} ({its.why})")
    notes += _file_notes(pairs, contents, ignore_affine)
    for note in [*predictions.notes, *references.notes, *notes]:
        _LOG.info(f"note: {note}")
    return Inputs(pairs, of_predictions, of_references, left_out, ignore_affine, task)


def _file_notes(
    pairs: Sequence[segmentations.Pair],
    contents: Mapping[pathlib.Path, mask_checks.Content],
    ignore_affine: bool,
) -> list[str]:
    """Returns what was repaired or assumed of the masks, each sentence with its cases."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        reference, prediction = contents[pair.reference], contents[pair.prediction]
        sentences = [*reference.notes, *prediction.notes]
        if spaces.is_identity(reference.space.affine):
            sentences.append("no voxel size in the header, taken as 1 mm")
        # Which way the axes run does not change a score.
        sentences += [s for s in reference.space.doubts if not s.startswith(spaces.UNSAID)]
        way = None if ignore_affine else grids.turn_onto(prediction, reference)
        if way is not None and not spaces.is_unturned(way):
            sentences.append("the prediction's voxels are stored in another order: turned")
        for sentence in dict.fromkeys(sentences):
            found.setdefault(sentence, []).append(pair.case_id)
    return [f"{sentence}: {first_few(cases)}" for sentence, cases in found.items()]


def _recognised(
    found: segmentations.Found,
    side: str,
    asked: str,
    pairs: Sequence[segmentations.Pair],
    contents: Mapping[pathlib.Path, mask_checks.Content],
    listed: list[problems.Problem],
    task: task_lib.Task,
) -> label_recognition.Recognised | None:
    """Returns the labels of one side, or adds to `listed` why they are unknown."""
    paths = [getattr(pair, side) for pair in pairs]
    held = {path: contents[path].values for path in paths if not contents[path].problem}
    if not held:
        return None  # There is a problem with every file, and it is listed.
    flag = f"--{side}_labels"
    if odd := mask_checks.channel_problems(asked, flag, contents, held, task):
        listed += odd
        return None
    if labels.channel_names(asked, task):
        return label_recognition.Recognised(asked, f"as {flag} says")
    if not labels.is_brats(task):
        listed += mask_checks.foreign_values(held, side, task)
        return label_recognition.Recognised(labels.TASK, f"the numbers of the task {task.name}")
    try:
        release = segmentations.release_of(found) if side == "reference" else None
        return label_recognition.recognise(asked, flag, found.folder, held, release)
    except UserError as error:
        listed.append(problems.from_error(error, "", found.folder))
        return None


def read_contents(
    paths: Sequence[pathlib.Path], workers: int, task: task_lib.Task
) -> dict[pathlib.Path, mask_checks.Content]:
    """Reads every mask once.

    The voxels are not kept, and read again where a case is scored: those of a thousand scans of
    full size would take about 18 GB.
    """
    contents = scoring.map_cases(
        functools.partial(mask_checks.read_content, task=task),
        paths,
        case_id=os.fspath,
        workers=min(workers, max(len(paths), 1)),
        total=len(paths),
        description="checking",
        unit="file",
    )
    return dict(zip(paths, contents, strict=True))


def _listing(listed: Sequence[problems.Problem]) -> str:
    rows = []
    for row in listed:
        end = "" if row.remedy.endswith((".", "?")) else "."
        remedy = f" {row.remedy}{end}" if row.remedy else ""
        rows.append(f"{row.case + ': ' if row.case else ''}{row.file}: {row.finding}.{remedy}")
    count = f"{len(rows)} problems" if len(rows) > 1 else "a problem"
    return "\n  ".join([f"{count} with the masks; nothing was computed", *rows])


def check_output(output: pathlib.Path, about: typed.JsonView) -> None:
    """Refuses a folder that holds something else than an evaluation of the same inputs.

    Raises:
        UserError: it does, is a file, or cannot be written.
    """
    other = "Choose another --output"
    there = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise UserError(f"--output={output}: {there} is a file; expected a folder. {other}")
    scores = output / score_files.FOLDER
    folders = (output, scores, scores / score_files.POSTPROCESSED)
    files.check_places(folder / score_files.SUMMARY_FILE for folder in folders)
    references = pathlib.Path(about["references"]).resolve()
    if output.resolve().is_relative_to(references):
        raise UserError(
            f"--output={output}: lies in the folder of the references, where its masks would be "
            f"taken for references. {other}"
        )
    run_folders.refuse_run(output)
    present = score_files.read_summary(output)
    if present is None:
        if scores.exists():
            raise UserError(f"{scores}: is not from this command. {other}")
        return
    for key in _INPUTS:
        if present.get(key) != about.get(key):
            raise UserError(
                f"--output={output}: holds an evaluation whose {key} is {present.get(key)}, not "
                f"{about.get(key)}. {other}, or remove that one"
            )


def job(pair: segmentations.Pair, inputs: Inputs, cavity: str) -> scoring.Job:
    """Returns how a worker loads a case."""
    conventions_of = (inputs.reference_labels.convention, inputs.prediction_labels.convention)
    load = functools.partial(
        mask_checks.read_pair,
        pair,
        *conventions_of,
        cavity,
        inputs.ignore_affine,
        task=inputs.task,
    )
    return scoring.Job(pair.case_id, load)


# ------------------------------------------------------------------------- what it leaves


def write(
    output: pathlib.Path,
    scored: scoring.Scored,
    rules: postprocessing.Rules,
    about: typed.JsonView,
    *,
    task: task_lib.Task,
) -> None:
    """Writes evaluation/, with postprocessed/ in it where a rule is on.

    Only the files of an evaluation are replaced; others in the folder are left.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    from kdnet_jax.core import provenance

    about = {**about, "hd95": surface.HD95_DEFINITION, "provenance": provenance.collect()}
    beside = output / f".{score_files.FOLDER}.part"
    with files.writing(output):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        plain = about | {"post_processing": score_files.NO_POST_PROCESSING}
        score_files.write_scores(beside, scored.plain, plain, task=task)
        if rules != postprocessing.Rules():
            processed = about | {"post_processing": rules.text(task)}
            score_files.write_scores(
                beside / score_files.POSTPROCESSED, scored.processed, processed, task=task
            )
        _move_scores(beside, output / score_files.FOLDER)


def _move_scores(new: pathlib.Path, old: pathlib.Path) -> None:
    """Replaces the scores in `old`; a former post-processing's go, other files stay.

    Wherever this is broken off, `check_output` still knows `old`, if it is there, by its summary.
    """
    if not old.exists():
        os.replace(new, old)
        return
    names, processed = (score_files.CASES_FILE, score_files.SUMMARY_FILE), score_files.POSTPROCESSED
    for folder in (processed, "."):
        for name in names:
            if (new / folder / name).exists():
                (old / folder).mkdir(exist_ok=True)
                os.replace(new / folder / name, old / folder / name)
    if (old / processed).is_dir() and not (new / processed).exists():
        for name in names:
            (old / processed / name).unlink(missing_ok=True)
        if not any((old / processed).iterdir()):
            (old / processed).rmdir()
    shutil.rmtree(new)


def table(scored: scoring.Scored, rules: postprocessing.Rules, *, task: task_lib.Task) -> str:
    """Returns mean and median of each metric and region, with post-processing beside without."""
    columns = [case_metrics.summarise(scored.plain, task=task)]
    if rules != postprocessing.Rules():
        columns.append(case_metrics.summarise(scored.processed, task=task))
    head = f"mean (median) of {columns[0]['cases']} cases"
    if len(columns) > 1:
        head += f"; after the arrow with post-processing ({rules.text(task)})"
    rows = [("", *task.region_names)]
    for metric in case_metrics.METRICS:
        cells = (
            " -> ".join(_cell(column["regions"][region][metric]) for column in columns)
            for region in task.region_names
        )
        rows.append((metric, *cells))
    widths = [max(map(len, column)) + 3 for column in zip(*rows, strict=True)]
    padded = ("".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([head, *padded])


def _cell(statistics: typed.JsonView) -> str:
    if statistics["mean"] is None:
        return "undefined"
    return f"{statistics['mean']:.3f} ({statistics['median']:.3f})"
