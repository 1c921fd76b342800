"""Segmentation of a labelled cohort with one or several runs, to be scored as any tool's."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

import kdnet_jax
from kdnet_jax import task as task_lib
from kdnet_jax.core import console, files
from kdnet_jax.data.checks import mask_checks
from kdnet_jax.data.scans import nifti, nifti_header, prepare, spaces
from kdnet_jax.data.sources import cases, labels, patients, segmentations
from kdnet_jax.errors import UserError, first_few
from kdnet_jax.evaluation import score_files
from kdnet_jax.prediction import ensembles, prediction_jobs, resuming_predictions
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import workdir

_LOG = logging.getLogger(__name__)

# Beside the masks: who made them. A folder without it belongs to somebody else.
MARK = "members.json"


def choose(
    ensemble: ensembles.Ensemble,
    cohort: cases.Cohort,
    output: pathlib.Path,
    *,
    wanted: Sequence[str] | None,
    allow_seen: bool,
) -> list[cases.Case]:
    """Returns the cases to segment, after all checks that need no voxels.

    Args:
        ensemble: see `segment`.
        cohort: the cases.
        output: see `segment`.
        wanted: ids of the cases to segment; None takes all.
        allow_seen: also take cases that a member was trained or chosen on.

    Raises:
        UserError: a wanted case is not there, a member has seen a case, `output` cannot be
            written, or a scan cannot be used by its header.
    """
    chosen = _named(cohort, wanted)
    if not allow_seen:
        _refuse_seen(chosen, cohort, ensemble)
    _check_place(output)
    task = ensemble.members[0].model.task
    # Grids are told in one list with those of the references (`masks_to_come`).
    prediction_jobs.check_headers((case.images for case in chosen), task)
    return chosen


def masks_to_come(
    chosen: Collection[cases.Case], output: pathlib.Path, *, task: task_lib.Task, orientation: str
) -> tuple[segmentations.Found, dict[pathlib.Path, mask_checks.Content]]:
    """Returns what is known of the masks before `segment` makes them, by the scans' headers.

    Args:
        chosen: the cases, of `choose`.
        output: see `segment`.
        task: what is segmented.
        orientation: see `prepare.prepare_case`.

    Returns:
        The masks, for each of which a file of its scan stands; and of that file the grid on which
        the mask will be, or why there will be none.
    """
    scans = {case.case_id: patients.case_files(case)[0] for case in chosen}
    contents = {scans[case.case_id]: _grid(case, task, orientation) for case in chosen}
    masks = {case_id: [path] for case_id, path in scans.items()}
    return segmentations.Found(output / score_files.PREDICTIONS, masks, [], []), contents


def _grid(case: cases.Case, task: task_lib.Task, orientation: str) -> mask_checks.Content:
    try:
        grid = prepare.read_grid(case.images, task=task, orientation=orientation)
    except UserError as error:
        return mask_checks.Content(problem=str(error))
    # As a reader of the mask will find it: formats differ in what they say of where voxels lie.
    empty = np.broadcast_to(np.uint8(0), grid.shape)
    written = nifti.mask_image(empty, grid.affine, grid.space.stored)
    return mask_checks.Content(grid.shape, spaces.of_image(written))


def segment(
    ensemble: ensembles.Ensemble, chosen: Collection[cases.Case], output: pathlib.Path
) -> None:
    """Writes `predictions/<case>.nii.gz`, each on its scan's own grid, all at once at the end.

    Their values are those of `labels.usual_of_masks`. Masks that an earlier attempt made of the
    same scans with the same runs are kept.

    Args:
        ensemble: whose probabilities are averaged.
        chosen: the cases, of `choose`.
        output: the folder for `predictions/`.

    Raises:
        UserError: a file cannot be used, or a mask cannot be written.
    """
    model = ensemble.members[0].model
    task, folder = model.task, output / score_files.PREDICTIONS
    convention = labels.usual_of_masks(task)
    by_name = {f"{case.case_id}.nii.gz": case for case in chosen}
    marks = {name: _mark(ensemble, case) for name, case in by_name.items()}
    with _replacing(folder) as beside:
        with files.writing(folder):
            kept = _keep(folder, beside, marks)
        if kept:
            _LOG.info(
                f"note: {len(kept)} of {len(marks)} cases were segmented before, from the same "
                "files by the same networks: their masks are kept"
            )
        rest = [name for name in by_name if name not in kept]
        for name in console.bar(rest, "segmenting", unit="case"):
            case = by_name[name]
            # The reference is read where it is scored, with the labels requested there.
            prepared, notes = prepare.prepare_case(
                dataclasses.replace(case, label=None),
                task=task,
                spacing=ensemble.spacing,
                orientation=ensemble.orientation,
                allow_skull=model.allow_skull,
            )
            for note in notes:
                with console.clear_of_bars():
                    _LOG.info(f"note: {note}")
            classes = ensemble.segment(prepared).classes
            nifti.write_mask(
                beside / name,
                labels.from_classes(classes, convention, task=task),
                prepared.geometry.affine,
                names=labels.value_names(convention, task),
                stored=prepared.geometry.stored,
                description=marks[name],
            )
        with files.writing(folder):
            files.write_text(beside / MARK, json.dumps(ensemble.hashes, indent=1) + "\n")


def _mark(ensemble: ensembles.Ensemble, case: cases.Case) -> str:
    """Returns what the header of a case's mask holds: of all that the mask depends on."""
    stats = [
        (path, path.stat()) for path in patients.case_files(dataclasses.replace(case, label=None))
    ]
    return resuming_predictions.mark(
        {
            "version": kdnet_jax.__version__,
            "members": [
                (run.params_hash, model_lib.to_json(run.model)) for run in ensemble.members
            ],
            "mirror": ensemble.predictor.mirror,
            "whole": ensemble.predictor.whole,
            "sequences": ensemble.modalities,
            "scan": {name: str(source) for name, source in case.images.items()},
            "files": [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats],
        }
    )


def _keep(folder: pathlib.Path, beside: pathlib.Path, marks: Mapping[str, str]) -> set[str]:
    """Leaves in `beside` the masks with these marks alone, also `folder`'s; returns their names."""
    for path in list(beside.iterdir()):
        if not _is_made(path, marks):
            path.unlink()
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_made(path, marks) and not (beside / path.name).exists():
            with files.replacing(beside / path.name) as part:
                shutil.copyfile(path, part)
    return {path.name for path in beside.iterdir()}


def _is_made(path: pathlib.Path, marks: Mapping[str, str]) -> bool:
    try:
        return path.name in marks and nifti_header.read(path).description == marks[path.name]
    except UserError:  # it is damaged
        return False


@contextlib.contextmanager
def _replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to fill, which takes the place of `folder` at the end.

    Where the block fails, what is in it stays there, for the next attempt.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    output = folder.parent
    was_there = output.exists()
    beside, former = (folder.with_name(f".{folder.name}.{each}") for each in ("part", "former"))
    with files.writing(folder):
        if former.exists() and not folder.exists():  # killed between the two replacements below
            os.replace(former, folder)
    shutil.rmtree(former, ignore_errors=True)
    try:
        with files.writing(folder):
            beside.mkdir(parents=True, exist_ok=True)
        yield beside
        with files.writing(folder):
            if folder.exists():
                # Not removed where it stands: half of it, without its mark, is somebody else's.
                os.replace(folder, former)
            os.replace(beside, folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        for each in (beside,) if was_there else (beside, output):
            with contextlib.suppress(OSError):  # it holds something, or has its place
                each.rmdir()


def _named(cohort: cases.Cohort, wanted: Sequence[str] | None) -> list[cases.Case]:
    if wanted is None:
        return list(cohort.cases)
    known = {case.case_id: case for case in cohort.cases}
    absent = [name for name in wanted if name not in known]
    if absent:
        raise UserError(
            f"--cases names {first_few(absent)}, which --references does not have; it has "
            f"{len(known)} cases such as {min(known)}."
        )
    return [known[name] for name in wanted]


def _check_place(output: pathlib.Path) -> None:
    folder = output / score_files.PREDICTIONS
    files.check_places(each / MARK for each in (output, folder))
    if folder.exists() and not (folder / MARK).is_file():
        raise UserError(
            f"{folder}: is not from this command, and would be replaced. Give another --output."
        )


def _refuse_seen(
    chosen: Collection[cases.Case], cohort: cases.Cohort, ensemble: ensembles.Ensemble
) -> None:
    """Refuses patients that a member knows: their scores would say nothing about others.

    Where a member does not say whom it knows, that is said.
    """
    patient = {case.case_id: case.patient_id for case in cohort.cases}
    seen: dict[str, pathlib.Path] = {}
    for folder, its in ensemble.known_cases().items():
        if not its.complete:
            _LOG.info(
                f"note: {folder} does not say on all cases that it, or its teacher, was "
                "trained on. If some of these are among them, its scores are too good."
            )
        for name in its.ids:
            seen.setdefault(patient.get(name, patients.patient_of(name)), folder)
    known = [case for case in chosen if case.patient_id in seen]
    if known:
        run = seen[known[0].patient_id]
        split = run / workdir.SPLIT
        unseen = f"such as --cases={split}:test" if split.is_file() else "by --cases"
        raise UserError(
            f"{run} was trained or chosen on {len(known)} of the {len(chosen)} cases, such as "
            f"{known[0].case_id}: their scores would flatter it. Name the cases that it has not "
            f"seen, {unseen}; or, if these are other patients with the same names, give "
            "--allow_seen_cases."
        )
