"""Scoring the segmentations of any tool, by the command as a user runs it."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from configs import common
from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.config import reading
from kdnet_jax.data import splits
from kdnet_jax.data.checks import mask_checks
from kdnet_jax.data.scans import nifti
from kdnet_jax.data.sources import cases, label_recognition, labels, segmentations
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import cohort_segmentation, mask_evaluation, score_files
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import postprocessing, scoring
from kdnet_jax.prediction import ensembles
from tests.helpers import commands, made_up_tasks

GLIOMA = task_lib.GLIOMA
DATASET_JSON = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "ET": [3]},
    "regions_class_order": [1, 2, 3],
}


def _references(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {path.parent.name: path for path in sorted(folder.glob("*/*_seg.nii.gz"))}


def _predicted(path: pathlib.Path) -> nib.Nifti1Image:
    """A reference as BraTS 2021 writes it, moved by a voxel: what a good tool might predict."""
    image = nib.load(path)
    return nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=0), image.affine)


def _write_predictions(
    references: pathlib.Path,
    folder: pathlib.Path,
    convention: str,
    name: str = "{}.nii.gz",
    dtype: type = np.uint8,
) -> pathlib.Path:
    """Writes predictions as another tool does: its labels, names and type."""
    folder.mkdir(parents=True)
    for case_id, path in _references(references).items():
        image = _predicted(path)
        classes = labels.to_classes(np.asarray(image.dataobj), "brats2021")
        values = labels.from_classes(classes, convention).astype(dtype)
        nib.save(nib.Nifti1Image(values, image.affine), folder / name.format(case_id))
    return folder


def _expected(references: pathlib.Path) -> list[case_metrics.RegionScore]:
    rows = []
    for case_id, path in _references(references).items():
        both = [
            labels.to_classes(np.asarray(image.dataobj), "brats2021")
            for image in (nib.load(path), _predicted(path))
        ]
        spacing = nib.load(path).header.get_zooms()
        rows += case_metrics.score_case(case_id, *both, tuple(map(float, spacing)), task=GLIOMA)
    return rows


def _same(first: list[Any], second: list[Any]) -> bool:
    return list(map(repr, first)) == list(map(repr, second))  # NaN is not equal to itself


def _run(predictions: object, references: object, output: object, env: Any, *more: str) -> Any:
    words = (f"--predictions={predictions}", f"--references={references}", f"--output={output}")
    return commands.run("evaluate", *words, *more, env=env)


@pytest.mark.once
def test_nnunet_s_predictions_are_scored_with_and_without_post_processing(
    tiny_cohort, tmp_path, command_env
) -> None:
    predictions = _write_predictions(tiny_cohort, tmp_path / "nnunet", "decathlon")
    (predictions / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (predictions / "plans.json").write_text("{}")
    done = _run(
        predictions, tiny_cohort, tmp_path / "out", command_env, "--small_et_ml=999", "--workers=2"
    )

    assert done.returncode == 0, done.stderr
    assert f"labels of decathlon (as {predictions / 'dataset.json'} says)" in done.stdout
    assert "labels of brats2021 (the names are those of brats2021)" in done.stdout
    assert "plans.json" in done.stdout
    assert "->" in done.stdout
    assert _same(score_files.read_scores(tmp_path / "out"), _expected(tiny_cohort))
    processed = score_files.read_scores(tmp_path / "out", postprocessed=True)
    assert all(row.pred_empty for row in processed if row.region == "ET")
    summary = score_files.read_summary(tmp_path / "out")
    assert summary["predictions"] == str(predictions)
    assert (summary["labels"], summary["reference_labels"]) == ("decathlon", "brats2021")
    assert (summary["left_out"], summary["post_processing"]) == ([], "none")
    assert summary["cases"] == 8
    assert "95th" in summary["hd95"]
    assert (
        "ET below 999 ml"
        in score_files.read_summary(tmp_path / "out", postprocessed=True)["post_processing"]
    )


@pytest.mark.once
def test_all_problems_come_in_one_list_before_anything_is_computed(
    tiny_cohort, tmp_path, command_env
) -> None:
    predictions = _write_predictions(
        tiny_cohort, tmp_path / "tool", "brats2023", "{}_pred.nii.gz", np.float32
    )
    paths = sorted(predictions.iterdir())
    paths[0].unlink()
    shutil.copy(paths[1], predictions / paths[1].name.replace("_pred", "-seg"))
    image = nib.load(paths[2])
    nib.save(nib.Nifti1Image(image.get_fdata()[:-1], image.affine), paths[2])
    image = nib.load(paths[3])
    nib.save(nib.Nifti1Image(image.get_fdata(), np.eye(4)), paths[3])
    image = nib.load(paths[4])
    nib.save(nib.Nifti1Image(image.get_fdata() * 0.9, image.affine), paths[4])
    paths[5].write_bytes(paths[5].read_bytes()[:200])

    done = _run(predictions, tiny_cohort, tmp_path / "out", command_env)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "7 problems" in done.stderr
    for text in (
        "no prediction for 1 case: BraTS2021_00001",
        "BraTS2021_00002: ",
        "31 x 32 x 32",
        "an identity affine",
        "no whole numbers",
        f"{paths[5]}: ",
        "is ambiguous",
    ):
        assert text in done.stderr
    assert not (tmp_path / "out").exists()


def _score(inputs: mask_evaluation.Inputs) -> list[case_metrics.RegionScore]:
    jobs = [mask_evaluation.job(pair, inputs, "background") for pair in inputs.pairs]
    return scoring.score_pairs(
        jobs, postprocessing.Rules(), task=inputs.task, workers=1, total=len(jobs)
    ).plain


def _segment(checkpoint: object, references: object, output: object, env: Any, *more: str) -> Any:
    words = (f"--checkpoint={checkpoint}", f"--references={references}", f"--output={output}")
    return commands.run("evaluate", *words, *more, env=env)


def test_a_checkpoint_segments_the_cases_that_it_has_not_seen(
    smoke_student: Any, tiny_cohort: pathlib.Path, tmp_path: pathlib.Path, command_env: Any
) -> None:
    run, out = smoke_student.folder, tmp_path / "out"
    refused = _segment(run, tiny_cohort, out, command_env)
    assert refused.returncode == 2
    assert "trained or chosen on 6 of the 8 cases" in refused.stderr
    assert not out.exists()

    done = _segment(run, tiny_cohort, out, command_env, f"--cases={run}/split.json:test")
    assert done.returncode == 0, done.stderr
    ours = (out / "evaluation" / "cases.csv").read_text("utf-8")
    assert ours == (run / "evaluation" / "cases.csv").read_text("utf-8")
    assert set(json.loads((out / "predictions" / "members.json").read_text("utf-8"))) == {str(run)}
    summary = json.loads((out / "evaluation" / "summary.json").read_text("utf-8"))
    own = json.loads((run / "evaluation" / "summary.json").read_text("utf-8"))
    assert summary["members"] == {str(run): own["params_hash"]}


def test_a_checkpoint_s_resection_cavity_is_that_of_its_training(
    smoke_student: Any, tiny_cohort: pathlib.Path, tmp_path: pathlib.Path, command_env: Any
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(smoke_student.folder, run)
    document = json.loads((run / "config.json").read_text("utf-8"))
    document["data"]["resection_cavity"] = "NCR"
    (run / "config.json").write_text(json.dumps(document), "utf-8")
    unseen = f"--cases={run}/split.json:test"
    done = _segment(run, tiny_cohort, out, command_env, unseen, "--workers=1")
    assert done.returncode == 0, done.stderr
    assert score_files.summary_of(out)["resection_cavity"] == "NCR"


def _with_a_nine(cohort: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copies a cohort, and gives its second reference a value that BraTS 2021 does not know."""
    shutil.copytree(cohort, copy)
    path = list(_references(copy).values())[1]
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 4, 9, values).astype(np.uint8), image.affine), path)
    return path


def _moved(cohort: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copies a cohort, and moves its second reference by 4 mm."""
    shutil.copytree(cohort, copy)
    path = list(_references(copy).values())[1]
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 4
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    return path


@pytest.mark.parametrize("damage", [_with_a_nine, _moved])
def test_a_wrong_reference_is_told_before_a_checkpoint_segments(
    smoke_student: Any,
    tiny_cohort: pathlib.Path,
    tmp_path: pathlib.Path,
    command_env: Any,
    damage: Callable[[pathlib.Path, pathlib.Path], pathlib.Path],
) -> None:
    path = damage(tiny_cohort, tmp_path / "cohort")
    words = ("--allow_seen_cases", "--workers=1")
    refused = _segment(
        smoke_student.folder, tmp_path / "cohort", tmp_path / "out", command_env, *words
    )
    assert refused.returncode == 2
    assert "nothing was computed" in refused.stderr
    assert path.name in refused.stderr
    assert "segmenting" not in refused.stderr
    assert not (tmp_path / "out").exists()


def _check_before(
    chosen: Sequence[cases.Case], references: pathlib.Path, *, ignore_affine: bool = False
) -> dict[pathlib.Path, mask_checks.Content]:
    masks, to_come = cohort_segmentation.masks_to_come(
        chosen, references / "out", task=GLIOMA, orientation="header"
    )
    return mask_evaluation.check_references(
        masks,
        segmentations.find_masks(references, "--references", GLIOMA),
        None,
        to_come=to_come,
        task=GLIOMA,
        reference_labels=label_recognition.AUTO,
        allow_missing=False,
        ignore_affine=ignore_affine,
        workers=1,
    )


def test_references_are_refused_before_masks_are_made(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = _with_a_nine(tiny_cohort, tmp_path / "cohort")
    cohort = cases.find_cases(tmp_path / "cohort").cases
    with pytest.raises(UserError, match=r"2 problems.*; nothing was computed") as told:
        _check_before(cohort[:-1], tmp_path / "cohort")
    assert f"no prediction for 1 case: {cohort[-1].case_id}" in str(told.value)
    assert f"but the masks hold 0, 1, 2, 4, 9: {path.name}" in str(told.value)


def test_other_grids_are_refused_before_masks_are_made(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "cohort"
    moved = _moved(tiny_cohort, folder)
    cohort = cases.find_cases(folder).cases
    with pytest.raises(UserError, match=r"a problem with the masks; nothing was computed") as told:
        _check_before(cohort, folder)
    assert "places voxels up to 4.0 mm from where that of its reference" in str(told.value)
    assert moved.name in str(told.value)
    assert len(_check_before(cohort, folder, ignore_affine=True)) == len(cohort)

    # Of another shape are a reference, and a sequence of a case that has no reference.
    for path in (cohort[2].label, cohort[3].images["t1ce"]):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)
    cohort[3].label.unlink()
    with pytest.raises(UserError, match=r"3 problems") as told:
        _check_before(cohort, folder)
    assert "its grid is 32 x 32 x 32 of 4 x 4 x 4 mm, that of its reference" in str(told.value)
    assert "files of one case have different shapes" in str(told.value)
    assert cohort[3].images["t1ce"].name in str(told.value)


@pytest.mark.parametrize("axes", ["RAS", "ILP"])
def test_a_reference_in_another_order_of_voxels_is_not_refused_before(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path, axes: str
) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, folder)
    for path in _references(folder).values():
        image = nib.load(path)
        way = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
        )
        turned = image.as_reoriented(way)
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    assert _check_before(cases.find_cases(folder).cases, folder)


def test_the_grid_of_a_mask_to_come_is_what_its_readers_find(tmp_path: pathlib.Path) -> None:
    """Where a scan's format and that of its mask say different things of one place, too."""
    itk = pytest.importorskip("SimpleITK")
    scan = tmp_path / "scan.nrrd"
    itk.WriteImage(itk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6)), scan)
    case = cases.Case("a", "a", None, {"t1": scan}, None, "brats2021")
    found, to_come = cohort_segmentation.masks_to_come(
        [case], tmp_path, task=GLIOMA, orientation="header"
    )
    volume = nifti.read_volume(scan)
    assert not volume.space.is_known
    nifti.write_mask(tmp_path / "mask.nii.gz", np.zeros(volume.shape, np.uint8), volume.affine)
    read = nifti.read_header(tmp_path / "mask.nii.gz")
    content = to_come[found.masks["a"][0]]
    assert content.shape == read.shape == (6, 5, 4)
    assert content.space.is_known == read.space.is_known
    np.testing.assert_array_equal(content.space.affine, read.space.affine)


def test_references_are_checked_once(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _check_before(cases.find_cases(tiny_cohort).cases, tiny_cohort)
    predictions = _write_predictions(tiny_cohort, tmp_path / "tool", "brats2021")
    read: list[pathlib.Path] = []
    original = mask_checks.read_content

    def counted(path: pathlib.Path, **options: Any) -> mask_checks.Content:
        read.append(path)
        return original(path, **options)

    monkeypatch.setattr(mask_checks, "read_content", counted)
    _checked(predictions, tiny_cohort, known=known)
    assert sorted(read) == sorted(predictions.iterdir())


def test_masks_of_others_are_not_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.nii.gz").touch()
    with pytest.raises(UserError, match="not from this command"):
        cohort_segmentation.choose(
            None, cases.Cohort("user", [], []), tmp_path, wanted=None, allow_seen=True
        )
    assert (tmp_path / "predictions" / "mine.nii.gz").exists()


class _KilledError(BaseException):
    """Not an `Exception`: nothing may handle it."""


@contextlib.contextmanager
def _killed(before: int) -> Iterator[None]:
    """Ends the block before so many changes of names of files, as a killed process ends."""
    calls = itertools.count(1)

    def counted(change: Callable[..., None], *arguments: Any, **options: Any) -> None:
        if next(calls) >= before:
            raise _KilledError
        change(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_KilledError):
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
        yield


def test_masks_are_known_again_wherever_their_replacement_was_killed(
    tmp_path: pathlib.Path,
) -> None:
    model = types.SimpleNamespace(task=GLIOMA)
    member = types.SimpleNamespace(model=model)
    ensemble: Any = types.SimpleNamespace(members=[member], hashes={str(tmp_path): "0"})
    cohort_segmentation.segment(ensemble, [], tmp_path / "out")
    folder = tmp_path / "out" / score_files.PREDICTIONS
    for before in range(1, 15):
        for name in "abc":
            (folder / f"{name}.nii.gz").touch()
        with _killed(before):
            cohort_segmentation.segment(ensemble, [], tmp_path / "out")
        cohort_segmentation.choose(
            ensemble, cases.Cohort("user", [], []), tmp_path / "out", wanted=None, allow_seen=True
        )
        cohort_segmentation.segment(ensemble, [], tmp_path / "out")
        assert _files(tmp_path) == {"out/predictions/members.json"}


def test_finished_masks_are_kept_for_the_same_command(
    smoke_student: Any,
    tiny_cohort: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shutil.copytree(tiny_cohort, tmp_path / "cohort")
    ensemble = ensembles.load_ensemble([smoke_student.folder])
    chosen = cases.find_cases(tmp_path / "cohort").cases[:3]
    out, straight = tmp_path / "out", tmp_path / "straight"
    folder, beside = out / "predictions", out / ".predictions.part"
    cohort_segmentation.segment(ensemble, chosen, straight)

    # The last scan breaks off in its voxels, which its header does not tell.
    last = chosen[2].images["t1ce"]
    content, stat = last.read_bytes(), last.stat()
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=last.name):
        cohort_segmentation.segment(ensemble, chosen, out)
    assert not folder.exists()
    made = {path.name: path.stat().st_ino for path in beside.iterdir()}
    assert sorted(made) == [f"{case.case_id}.nii.gz" for case in chosen[:2]]

    last.write_bytes(content)
    os.utime(last, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (beside / ".a.nii.gz.1.part").touch()  # of a process that was killed
    cohort_segmentation.segment(ensemble, chosen, out)
    assert "2 of 3 cases were segmented before" in caplog.text
    assert {name: (folder / name).stat().st_ino for name in made} == made
    assert _files(out) == {f"predictions/{name}" for name in os.listdir(straight / "predictions")}
    for case in chosen:
        name = f"predictions/{case.case_id}.nii.gz"
        assert (out / name).read_bytes() == (straight / name).read_bytes()

    # The same again, with another scan, of fewer cases, and by what answers otherwise.
    caplog.clear()
    cohort_segmentation.segment(ensemble, chosen, out)
    assert "3 of 3 cases" in caplog.text
    os.utime(last)
    cohort_segmentation.segment(ensemble, chosen, out)
    assert "2 of 3 cases" in caplog.text
    caplog.clear()
    mirrored = ensembles.load_ensemble([smoke_student.folder], mirror=True)
    cohort_segmentation.segment(mirrored, chosen[:1], out)
    assert "segmented before" not in caplog.text
    assert len(_files(out)) == 2


@pytest.mark.parametrize("place", ["references/out", "file/out", "file"])
def test_a_place_that_cannot_hold_scores_is_refused(tmp_path: pathlib.Path, place: str) -> None:
    (tmp_path / "references").mkdir()
    (tmp_path / "file").touch()
    about = ABOUT | {"references": str(tmp_path / "references")}
    with pytest.raises(UserError, match="--output="):
        mask_evaluation.check_output(tmp_path / place, about)
    assert not (tmp_path / "references" / "out").exists()


def test_a_damaged_summary_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text('{"cases": ')
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        score_files.read_summary(tmp_path)


def test_a_run_s_own_predictions_score_as_the_run_says(smoke_student, tiny_cohort) -> None:
    run = smoke_student.folder
    inputs = _checked(
        run, tiny_cohort, wanted=mask_evaluation.read_cases(f"{run / 'split.json'}:test")
    )
    assert _same(_score(inputs), score_files.read_scores(run))


def test_a_resection_cavity_counts_as_in_the_run_s_training(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.resection_cavity = "NCR"
    masks = tmp_path / "run" / "predictions"
    # NCR, edema, ET and cavity of BraTS 2024: the run takes the cavity for NCR.
    rows = {tmp_path / "references": [4, 1, 3, 2, 0, 0], masks: [1, 1, 3, 2, 0, 0]}
    for folder, row in rows.items():
        folder.mkdir(parents=True)
        data = np.broadcast_to(np.array(row, np.uint8), (2, 2, len(row)))
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / "a.nii.gz")
    (tmp_path / "run" / "config.json").write_text(reading.read(config).to_json(), "utf-8")
    given = {
        "own": (tmp_path / "run", []),
        "masks": (masks, []),
        "same": (masks, ["--resection_cavity=ncr"]),
        "other": (masks, ["--resection_cavity=background"]),
    }
    noted = f"note: {tmp_path / 'run'} was trained with a resection cavity as NCR, not background"
    for name, (predictions, words) in given.items():
        words = [*words, "--workers=1", *(f"--{side}_labels=brats2024" for side in SIDES)]
        done = _run(predictions, tmp_path / "references", tmp_path / name, command_env, *words)
        assert done.returncode == 0, done.stderr
        dice = {row.region: row.dice for row in score_files.read_scores(tmp_path / name)}
        cavity = score_files.summary_of(tmp_path / name)["resection_cavity"]
        if name == "other":
            # Of TC 1 of 3 voxels is background in the reference, of WT 1 of 4: 4 / 5 and 6 / 7.
            assert dice == pytest.approx({"ET": 1.0, "TC": 4 / 5, "WT": 6 / 7})
            assert cavity == "background"
        else:
            assert dice == {"ET": 1.0, "TC": 1.0, "WT": 1.0}
            assert cavity == "NCR"
        assert (noted in done.stdout) == (name == "other")


def test_a_folder_is_not_scored_against_itself(tiny_cohort) -> None:
    with pytest.raises(UserError, match="one folder"):
        _checked(tiny_cohort, tiny_cohort)


@pytest.mark.parametrize("convention", ["brats2023", "decathlon"])
def test_real_cases_score_alike_in_any_convention(sample_dir, tmp_path, convention) -> None:
    some = tmp_path / "references"
    case = sorted(path for path in sample_dir.iterdir() if path.is_dir())[1]
    (some / case.name).mkdir(parents=True)
    for path in case.glob("*seg.nii.gz"):
        (some / case.name / path.name).symlink_to(path)
    predictions = _write_predictions(some, tmp_path / "tool", convention, dtype=np.float32)

    inputs = _checked(predictions, some, prediction_labels=convention)

    assert _same(_score(inputs), _expected(some))


def _checked(
    predictions: pathlib.Path,
    references: pathlib.Path,
    *,
    task: task_lib.Task = GLIOMA,
    **options: Any,
) -> mask_evaluation.Inputs:
    given = {
        "prediction_labels": label_recognition.AUTO,
        "reference_labels": label_recognition.AUTO,
        "wanted": None,
        "allow_missing": False,
        "ignore_affine": False,
        "workers": 1,
        "known": {},
        "task": task,
    }
    return mask_evaluation.check_inputs(
        segmentations.find_masks(predictions, "--predictions", task),
        segmentations.find_masks(references, "--references", task),
        **given | options,
    )


def test_missing_cases_can_be_left_out_and_lost_headers_ignored(tiny_cohort, tmp_path) -> None:
    predictions = _write_predictions(tiny_cohort, tmp_path / "tool", "brats2021")
    (predictions / "BraTS2021_00003.nii.gz").unlink()
    for path in predictions.iterdir():
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4)), path)

    with pytest.raises(UserError, match="8 problems"):
        _checked(predictions, tiny_cohort)
    inputs = _checked(predictions, tiny_cohort, allow_missing=True, ignore_affine=True)

    assert inputs.left_out == ["BraTS2021_00003"]
    row = _score(inputs)[0]
    # The reference's spacing of 4 mm counts, not the lost header's.
    assert row.volume_pred_mm3 > 0
    assert row.volume_pred_mm3 % 64 == 0


# ------------------------------------------------------------------------- flags and output


def test_cases_are_named_or_a_part_of_a_split(tmp_path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["a"], "validation": [], "test": ["c", "b"]}))
    assert mask_evaluation.read_cases(None) is None
    assert mask_evaluation.read_cases("b, a") == ["b", "a"]
    assert mask_evaluation.read_cases(f"{path}:test") == list(splits.load_split(path).test)
    for bad in (f"{path}", f"{path}:tests", f"{path}:validation", ",", "a,a", "gone.json:test"):
        with pytest.raises(UserError, match=r"--cases=|no such file"):
            mask_evaluation.read_cases(bad)


@pytest.fixture(scope="module")
def scored() -> scoring.Scored:
    """Of one case of three voxels: ET found, and taken for NCR by the post-processing."""
    reference = np.array([[[3, 1, 2]]], np.uint8)
    found = (np.array([[row]], np.uint8) for row in ([3, 1, 0], [1, 1, 0]))
    return scoring.Scored(
        *(
            case_metrics.score_case("a", reference, each, (1.0, 1.0, 1.0), task=GLIOMA)
            for each in found
        )
    )


ABOUT = {"predictions": "/p", "references": "/r", "cases_asked": None}
ON = postprocessing.Rules(small_region_ml={"ET": 0.1})


SIDES = ("prediction", "reference")


def _files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_replaces_one_of_the_same_inputs_and_nothing_else(scored, tmp_path) -> None:
    ours = {"evaluation/cases.csv", "evaluation/summary.json"}
    more = {f"evaluation/postprocessed/{name}" for name in ("cases.csv", "summary.json")}
    foreign = tmp_path / "evaluation" / "notes.txt"
    mask_evaluation.write(tmp_path, scored, ON, ABOUT, task=GLIOMA)
    assert _files(tmp_path) == ours | more

    foreign.write_text("mine")
    mask_evaluation.check_output(tmp_path, ABOUT)
    mask_evaluation.write(tmp_path, scored, postprocessing.Rules(), ABOUT, task=GLIOMA)
    assert _files(tmp_path) == ours | {"evaluation/notes.txt"}
    assert os.listdir(tmp_path) == ["evaluation"]

    with pytest.raises(UserError, match="whose references is /r, not /other"):
        mask_evaluation.check_output(tmp_path, ABOUT | {"references": "/other"})


@pytest.mark.parametrize(("former", "rules"), [(None, "on"), ("on", "off"), ("off", "on")])
def test_an_evaluation_is_known_again_wherever_its_replacement_was_killed(
    scored: scoring.Scored, tmp_path: pathlib.Path, former: str | None, rules: str
) -> None:
    kinds = {"on": ON, "off": postprocessing.Rules()}
    for before in range(1, 15):
        output = tmp_path / str(before)
        if former:
            mask_evaluation.write(output, scored, kinds[former], ABOUT, task=GLIOMA)
        with _killed(before):
            mask_evaluation.write(output, scored, kinds[rules], ABOUT, task=GLIOMA)
        mask_evaluation.check_output(output, ABOUT)
        mask_evaluation.write(output, scored, kinds[rules], ABOUT, task=GLIOMA)
        assert os.listdir(output) == ["evaluation"]
        assert len(_files(output)) == (4 if rules == "on" else 2)


def test_a_place_without_the_right_to_write_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so what the system says is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match="may not be changed"):
        mask_evaluation.check_output(tmp_path / "out", ABOUT)
    with pytest.raises(UserError, match="may not be changed"):
        cohort_segmentation.choose(
            None, cases.Cohort("user", [], []), tmp_path / "out", wanted=None, allow_seen=True
        )


def test_other_folders_are_refused_as_output(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "foreign" / "evaluation").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, message in (("run", "run's folder"), ("foreign", "not from"), ("file", "is a file")):
        with pytest.raises(UserError, match=message):
            mask_evaluation.check_output(tmp_path / name, ABOUT)
    mask_evaluation.check_output(tmp_path / "new", ABOUT)


def test_the_table_shows_mean_and_median_side_by_side(scored) -> None:
    lines = mask_evaluation.table(scored, ON, task=GLIOMA).splitlines()
    dice = next(line for line in lines if line.startswith("dice"))
    # TC is found whole; WT lacks one of three voxels: 2 x 2 / 5.
    assert dice.split() == [
        "dice",
        *("1.000", "(1.000)", "->", "0.000", "(0.000)"),
        *("1.000", "(1.000)", "->", "1.000", "(1.000)"),
        *("0.800", "(0.800)", "->", "0.800", "(0.800)"),
    ]
    assert "->" not in mask_evaluation.table(scored, postprocessing.Rules(), task=GLIOMA)


def test_masks_of_several_channels_are_scored_where_these_are_named(tiny_cohort, tmp_path) -> None:
    """As MONAI writes them: TC, WT and ET, or an ITK vector image, with a fourth axis of 1."""
    folder = _write_predictions(tiny_cohort, tmp_path / "tool", "brats2023")
    for path in folder.iterdir():
        image = nib.load(path)
        classes = np.asarray(image.dataobj)
        masks = np.stack([np.isin(classes, values) for values in ((1, 3), (1, 2, 3), (3,))], -1)
        masks = masks[:, :, :, None] if path.name.endswith("1.nii.gz") else masks
        nib.save(nib.Nifti1Image(masks.astype(np.uint8), image.affine), path)

    with pytest.raises(UserError) as caught:
        _checked(folder, tiny_cohort)
    assert "has 3 channels with the values 0, 1; expected one label map" in str(caught.value)
    assert "--prediction_labels names them in their order, such as TC,WT,ET" in str(caught.value)

    inputs = _checked(folder, tiny_cohort, prediction_labels="TC,WT,ET")

    assert _same(_score(inputs), _expected(tiny_cohort))
    with pytest.raises(UserError, match="expected 4 channels"):
        _checked(folder, tiny_cohort, prediction_labels="background,NCR,ED,ET")


def test_predictions_in_another_order_of_voxels_score_the_same(
    tiny_cohort, tmp_path, caplog
) -> None:
    caplog.set_level("INFO")
    folder = _write_predictions(tiny_cohort, tmp_path / "tool", "brats2021")
    for path in folder.iterdir():
        image = nib.as_closest_canonical(nib.load(path))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), path)
    inputs = _checked(folder, tiny_cohort)
    assert "stored in another order: turned: BraTS2021_00001" in caplog.text
    assert _same(_score(inputs), _expected(tiny_cohort))


def test_masks_of_another_task_are_scored(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    task = made_up_tasks.HEART
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    values = {"labels": [1, 2, 3, 0, 4, 4, 2, 0], "masks": [1, 1, 3, 3, 2, 0, 2, 0]}
    for folder, row in values.items():
        (tmp_path / folder).mkdir()
        data = np.broadcast_to(np.array(row, np.uint8), (2, 2, len(row)))
        nib.save(nib.Nifti1Image(data, affine), tmp_path / folder / "heart_01.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_json.describe(task)))
    out = tmp_path / "out"

    words = (f"--task={tmp_path}", "--workers=1")
    done = _run(tmp_path / "masks", tmp_path / "labels", out, command_env, *words)

    assert done.returncode == 0, done.stderr
    rows = score_files.read_scores(out)
    # As derived in tests/metrics/test_task_scores.py: two voxels have no label.
    assert [(row.region, round(row.dice, 6)) for row in rows] == [
        ("wall", 1.0),
        ("scar", 0.666667),
        ("clot", 0.666667),
    ]
    summary = score_files.read_summary(out)
    assert summary["task"]["name"] == "heart"
    assert (summary["labels"], list(summary["regions"])) == ("task", ["wall", "scar", "clot"])
    assert "wall" in done.stdout
    with pytest.raises(UserError, match="values 0, 1, 2, 3, 4; the task heart knows 0, 1, 2, 3"):
        _checked(tmp_path / "labels", tmp_path / "masks", task=task)
    small = _run(
        *(tmp_path / name for name in ("masks", "labels", "o3")),
        command_env,
        f"--task={tmp_path}",
        "--small_region_ml=1",
    )
    cavity = _run(
        *(tmp_path / name for name in ("masks", "labels", "o4")),
        command_env,
        *(f"--task={tmp_path}", "--resection_cavity=scar"),
    )
    assert cavity.returncode == 2
    assert "the task heart leaves no value unscored. Leave it out." in cavity.stderr
    assert small.returncode == 2
    assert "the task heart has no region with a fallback" in small.stderr


def test_masks_in_the_task_s_own_format_are_scored_against_nifti_channels(
    tmp_path: pathlib.Path,
) -> None:
    itk = pytest.importorskip("SimpleITK")
    document = dataset_json.describe(made_up_tasks.HEART) | {"file_ending": ".nrrd"}
    task = dataset_json.parse(document, "heart/dataset.json")
    classes = np.broadcast_to(np.array([1, 2, 3, 0, 4, 4, 2, 0], np.uint8), (2, 2, 8))
    for folder in ("labels", "masks"):
        (tmp_path / folder).mkdir()
    image = itk.GetImageFromArray(classes.T)
    itk.WriteImage(image, str(tmp_path / "labels/heart_01.nrrd"))
    channels = np.stack([np.isin(classes, each) for each in ((3,), (1, 2), (2, 3))], -1)
    # ITK's axes run left and posterior.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nifti = nib.Nifti1Image(channels.astype(np.uint8), affine)
    nib.save(nifti, tmp_path / "masks/heart_01.nii.gz")

    inputs = _checked(
        tmp_path / "masks", tmp_path / "labels", task=task, prediction_labels="clot,wall,scar"
    )

    masks = mask_evaluation.job(inputs.pairs[0], inputs, "background").load()
    np.testing.assert_array_equal(masks.prediction, np.where(classes == 4, 0, classes))
    np.testing.assert_array_equal(masks.reference, classes)
    with pytest.raises(UserError, match="expected one label map") as caught:
        _checked(tmp_path / "masks", tmp_path / "labels", task=task)
    assert "such as background,wall,scar,clot or background,class 1" in str(caught.value)
