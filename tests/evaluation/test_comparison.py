"""What a comparison computes, and which runs it refuses."""

import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import comparison
from kdnet_jax.metrics import statistics
from kdnet_jax.reports import comparison_figures, comparison_text
from tests.helpers import compared_runs, made_up_tasks

write_run = compared_runs.write_run
BASE = [[0.5, 0.6, 0.7, 0.4], [0.52, 0.61, 0.66, 0.43]]
STUDENT = [[0.6, 0.65, 0.72, 0.5], [0.63, 0.66, 0.71, 0.48]]
DICE = ("dice",)


def two_seeds(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    return tuple(
        [write_run(folder / f"{role}-{s}", role, scores[s], seed=s) for s in (0, 1)]
        for role, scores in (("baseline", BASE), ("student", STUDENT))
    )


UNKNOWN = {"split_hash": None, "data_fingerprint": None, "params_hash": None, "teacher": None}


def evaluated(folder: pathlib.Path, role: str, dice: list[float]) -> pathlib.Path:
    """Writes what `kdnet_jax.evaluate` does, which knows of no training."""
    return write_run(folder, role, dice, with_config=False, summary=UNKNOWN)


def test_numbers_are_those_of_the_arrays(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    # The order in which runs are given is no matter: seeds are paired.
    found = comparison.compare(baselines, students[::-1])
    gain = np.array(STUDENT) - np.array(BASE)
    et = found.result("dice", "ET")
    assert et.difference == pytest.approx(statistics.mean_interval([gain]))
    assert et.levels["baseline"].interval.estimate == pytest.approx(np.mean(BASE))
    assert et.levels["student"].sd_runs == pytest.approx(np.mean(STUDENT, axis=1).std(ddof=1))
    assert et.levels["student"].sd_cases == pytest.approx(np.mean(STUDENT, axis=0).std(ddof=1))
    assert et.median_difference[0] == pytest.approx(np.median(gain.mean(axis=0)))
    assert et.share is None
    assert found.result("hd95_mm", "WT").difference.estimate == pytest.approx(-20 * gain.mean())
    # TC and WT lie 0.01 and 0.02 above ET on both sides.
    mean = found.result("dice", "mean")
    assert mean.levels["baseline"].interval.estimate == pytest.approx(np.mean(BASE) + 0.01)
    assert found.cases.values["student", "dice"][:, 0] == pytest.approx(np.mean(STUDENT, axis=0))
    assert found.cases.volumes_ml[:, 3].tolist() == [0, 1, 2, 3]
    assert len(found.results) == 4 * 6
    assert found.differs == ()


def test_holm_is_over_all_results(tmp_path: pathlib.Path) -> None:
    found = comparison.compare(*two_seeds(tmp_path), metrics=("dice", "nsd")).results
    assert [each.p_holm for each in found] == statistics.holm([r.difference.p for r in found])
    assert [r.p_wilcoxon_holm for r in found] == statistics.holm([r.p_wilcoxon for r in found])


def test_levels_stay_within_what_a_score_can_be(tmp_path: pathlib.Path) -> None:
    sides = [write_run(tmp_path / r, r, [0.0, 0.97, 0.98]) for r in ("baseline", "student")]
    found = comparison.compare(sides[:1], sides[1:])
    dice = found.result("dice", "ET").levels["student"].interval
    assert (dice.low, dice.high) == (0, 1)
    assert found.result("hd95_mm", "ET").levels["student"].interval.low == 0


def test_the_share_of_the_lead(tmp_path: pathlib.Path) -> None:
    sides = compared_runs.write_sides(tmp_path)
    found = comparison.compare(**sides, metrics=DICE, resamples=1000)
    share = found.result("dice", "mean").share
    assert share.low < 0.5 < share.high
    assert share.high - share.low < 0.2
    # One teacher of three students has one mean, not three.
    assert np.isnan(found.result("dice", "ET").levels["teacher"].sd_runs)
    assert any("one teacher" in note for note in found.notes)


def test_folds_are_found_by_their_cases(tmp_path: pathlib.Path) -> None:
    sides: dict[str, list[pathlib.Path]] = {"baseline": [], "student": []}
    for fold, role in ((f, r) for f in range(3) for r in sides):
        scores = (BASE if role == "baseline" else STUDENT)[fold % 2]
        run = write_run(tmp_path / f"{role}{fold}", role, scores, prefix=f"fold{fold}")
        sides[role].append(run)
    found = comparison.compare(**sides, metrics=DICE)
    assert found.folds == (1, 1, 1)
    assert found.result("dice", "ET").difference.df == 2
    assert len(found.cases.names) == 12
    assert any("overlap" in note for note in found.notes)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"config": {"train.steps": 99}}, r"train\.steps: .*99 in .*changed"),
    ({"config": {"loader.batch": 7}}, r"loader\.batch: .*7 in"),
    ({"config": {"optimizer.learning_rate": 0.5}}, r"optimizer\.learning_rate: .*0\.5 in"),
    ({"config": {"augment.noise": 0.5}}, r"augment\.noise"),
    ({"config": {"model.modalities": "flair"}}, r"model\.modalities: t1ce in .*flair in"),
    ({"config": {"data.spacing": 9.0}}, r"data\.spacing"),
    ({"summary": {"split_hash": "x"}}, r"split_hash: .*x in"),
    ({"summary": {"data_fingerprint": "x"}}, "data_fingerprint: .*x in"),
    ({"summary": {"hd95": "x"}}, "hd95: .*x in"),
    ({"summary": {"post_processing": "x"}}, "post_processing: none in .*x in"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_runs_that_differ_are_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    baselines, students = two_seeds(tmp_path)
    changed = write_run(tmp_path / "changed", "student", STUDENT[1], seed=1, **change)
    with pytest.raises(UserError, match=message) as caught:
        comparison.compare(baselines, [students[0], changed])
    assert str(caught.value).count("\n  - ") == 1
    found = comparison.compare(baselines, [students[0], changed], metrics=DICE, force=True)
    assert len(found.differs) == 1
    assert str(changed) in found.differs[0]


def test_what_may_differ_does(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    free = {"data.workers": 7, "preset": "brats", "split.fold": 0, "train.log_every": 3}
    free["loader.unlabelled_share"] = 0.1  # a baseline reads no scan without a reference
    other = write_run(tmp_path / "other", "baseline", BASE[1], seed=1, config=free)
    teacher = write_run(
        tmp_path / "teacher",
        "teacher",
        [0.9] * 4,
        config={"train.steps": 5, "model.widths": (4, 8)},
    )
    found = comparison.compare([baselines[0], other], students, [teacher], metrics=DICE)
    assert found.differs == ()


def test_sequences_that_a_teacher_trained_without_are_no_difference(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    dropped = {"augment.modality_dropout": 0.3}
    teacher = write_run(tmp_path / "teacher", "teacher", [0.9] * 4, config=dropped)
    # It trained its own teacher so, and dropped none of its own.
    students[1] = write_run(tmp_path / "s", "student", STUDENT[1], seed=1, config=dropped)
    assert comparison.compare(baselines, students, [teacher], metrics=DICE).differs == ()
    several = {"model.modalities": "t1ce,flair"}
    baselines[1] = write_run(tmp_path / "b", "baseline", BASE[1], seed=1, config=dropped | several)
    with pytest.raises(UserError, match=r"augment\.modality_dropout: 0\.0 in .*; 0\.3 in "):
        comparison.compare(baselines, students)


@pytest.mark.parametrize("key", ["distillation.kd_weight", "loader.unlabelled_share"])
def test_students_have_one_distillation(tmp_path: pathlib.Path, key: str) -> None:
    baselines, students = two_seeds(tmp_path)
    config = {key: 0.1, "teacher.checkpoint": "a"}  # places may differ
    students[1] = write_run(tmp_path / "s", "student", STUDENT[1], seed=1, config=config)
    with pytest.raises(UserError, match=re.escape(f"  - {key}: ")) as caught:
        comparison.compare(baselines, students)
    assert str(caught.value).count("\n  - ") == 1


def test_a_foreign_teacher_and_a_wrong_role(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    foreign = write_run(tmp_path / "t", "teacher", [0.9] * 4, summary={"params_hash": "other"})
    with pytest.raises(UserError, match="not among --teacher"):
        comparison.compare(baselines, students, [foreign])
    with pytest.raises(UserError, match=r"given as --baseline and is a student"):
        comparison.compare(students, baselines)


def test_a_run_given_twice_or_a_copy_of_it(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    with pytest.raises(UserError, match="the same network is given 2 times"):
        comparison.compare([baselines[0], tmp_path / "." / "baseline-0"], students)
    copy = shutil.copytree(students[0], tmp_path / "copy")
    with pytest.raises(UserError, match="the same network is given 2 times"):
        comparison.compare(baselines, [*students, copy], force=True)
    again = write_run(tmp_path / "again", "student", STUDENT[0], seed=1)
    with pytest.raises(UserError, match="are both seed 1"):
        comparison.compare(baselines, [*students, again], force=True)


def test_a_given_teacher_of_several_folds_is_one_network(tmp_path: pathlib.Path) -> None:
    levels = {"baseline": 0.4, "student": 0.5, "teacher": 0.6}
    sides = {
        role: [
            write_run(tmp_path / f"{role}{fold}", role, [dice, dice + 0.1], prefix=f"fold{fold}")
            for fold in range(2)
        ]
        for role, dice in levels.items()
    }
    found = comparison.compare(**sides, metrics=DICE)
    assert found.folds == (1, 1)
    assert found.result("dice", "ET").share.lead.estimate == pytest.approx(0.2)
    copy = shutil.copytree(sides["teacher"][0], tmp_path / "copy")
    with pytest.raises(UserError, match=r"is given 2 times: --teacher=.*teacher0, .*copy"):
        comparison.compare(**sides | {"teacher": [*sides["teacher"], copy]})
    # Of the others each fold has a network of its own.
    same = {"params_hash": "one"}
    sides["student"] = [
        write_run(tmp_path / f"same{f}", "student", [0.5, 0.6], prefix=f"fold{f}", summary=same)
        for f in range(2)
    ]
    with pytest.raises(UserError, match=r"is given 2 times: --student=.*same0, --student=.*same1"):
        comparison.compare(**sides)


def test_an_unfinished_run(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    (students[1] / "evaluation/summary.json").unlink()
    with pytest.raises(UserError, match=r"student-1: there are no scores .*finished"):
        comparison.compare(baselines, students)
    with pytest.raises(UserError, match=r"no post-processed scores"):
        comparison.compare(baselines, students, postprocessed=True)


def test_other_cases_are_refused_even_by_force(tmp_path: pathlib.Path) -> None:
    baselines, _ = two_seeds(tmp_path)
    fewer = write_run(tmp_path / "few", "student", [0.5, 0.6, 0.7])
    with pytest.raises(UserError, match=r"no student that was tested on the same 4 .*case-03"):
        comparison.compare(baselines, [fewer], force=True)


def test_overlapping_folds_are_refused(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    more = [write_run(tmp_path / f"{r}+", r, [0.5] * 5) for r in ("baseline", "student")]
    with pytest.raises(UserError, match=r"test cases: 4 \(case-00, .*several folds"):
        comparison.compare([*baselines, more[0]], [*students, more[1]])


def test_a_region_without_row(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    path = students[0] / "evaluation/cases.csv"
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(UserError, match=r"student-0: cases\.csv has no row of case-03, WT"):
        comparison.compare(baselines, students)


def test_a_run_without_partner(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    with pytest.raises(UserError, match=r"seed: baseline \[0, 1\], student \[0\]"):
        comparison.compare(baselines, students[:1])
    found = comparison.compare(baselines, students[:1], metrics=DICE, force=True)
    assert found.pairs == 1
    assert any("baseline-1 has no partner" in line for line in found.differs)


def test_folders_of_evaluate_have_no_config(tmp_path: pathlib.Path) -> None:
    sides = [
        evaluated(tmp_path / role, role, scores[0])
        for role, scores in (("baseline", BASE), ("student", STUDENT))
    ]
    found = comparison.compare(sides[:1], sides[1:], metrics=DICE)
    assert found.differs == ()
    assert any("training is unknown" in note and str(sides[0]) in note for note in found.notes)
    assert any("paired in the order given" in note for note in found.notes)


def test_teachers_without_a_hash_are_paired_in_the_order_given(tmp_path: pathlib.Path) -> None:
    # Of cases 0 and 1: gains 0.1, 0.1 and 0.2, 0.2, whose teachers lead by 0.2 and by 0.5.
    sides = {
        role: [evaluated(tmp_path / f"{role}{i}", role, dice) for i, dice in enumerate(both)]
        for role, both in {
            "baseline": [[0.3, 0.4], [0.3, 0.4]],
            "student": [[0.4, 0.5], [0.5, 0.6]],
            "teacher": [[0.5, 0.6], [0.8, 0.9]],
        }.items()
    }
    teachers = sides["teacher"]
    found = comparison.compare(**sides, metrics=DICE, resamples=1000)
    # Either order of the teachers has both of them, and a mean lead of 0.35.
    crossed = comparison.compare(**sides | {"teacher": teachers[::-1]}, metrics=DICE)
    for each in (found, crossed):
        assert each.result("dice", "ET").share.lead.estimate == pytest.approx(0.35)
    pairs = f"{teachers[0]} with {sides['student'][0]}, {teachers[1]} with {sides['student'][1]}."
    assert any(note.endswith(pairs) for note in found.notes)
    # One teacher may have taught all; of three for two students it is unknown which did.
    one = comparison.compare(**sides | {"teacher": teachers[1:]}, metrics=DICE)
    assert one.result("dice", "ET").share.lead.estimate == pytest.approx(0.5)
    third = evaluated(tmp_path / "teacher2", "teacher", [0.5, 0.6])
    with pytest.raises(UserError, match=r"which of them taught .*student0.* is unknown\. Give one"):
        comparison.compare(**sides | {"teacher": [*teachers, third]})


def test_a_teacher_without_a_hash_follows_the_order_of_students(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    for i, student in enumerate(students):
        shutil.rmtree(student)
        write_run(student, "student", STUDENT[i], seed=i, summary={"teacher": None})
    teachers = [
        evaluated(tmp_path / f"teacher-{i}", "teacher", [0.8 + 0.1 * i] * 4) for i in (1, 0)
    ]
    found = comparison.compare(baselines, students[::-1], teachers, metrics=DICE)
    # Baselines and students are paired by seed, 0 first; the student of seed 1 was given first.
    pairs = f"{teachers[0]} with {students[1]}, {teachers[1]} with {students[0]}."
    assert any(note.endswith(pairs) for note in found.notes)


def test_a_teacher_of_no_pair_is_named(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)
    own = write_run(tmp_path / "own", "teacher", [0.9] * 4)
    spare = write_run(tmp_path / "spare", "teacher", [0.1] * 4, summary={"params_hash": "other"})
    found = comparison.compare(baselines, students, [spare, own], metrics=DICE)
    assert found.result("dice", "ET").levels["teacher"].interval.estimate == pytest.approx(0.9)
    assert f"--teacher={spare} is no pair's teacher and is left out." in found.notes


def test_other_references_are_refused(tmp_path: pathlib.Path) -> None:
    sides = [
        evaluated(tmp_path / role, role, scores[0])
        for role, scores in (("baseline", BASE), ("student", STUDENT))
    ]
    path = sides[1] / "evaluation/cases.csv"
    # All regions of case-02 have 2000 mm3; the digits of a rounded table make no other reference.
    plain = path.read_text("utf-8")
    path.write_text(plain.replace("2000.0,2000.0", "2000.1,2000.0"), "utf-8")
    assert comparison.compare(sides[:1], sides[1:], metrics=DICE).differs == ()
    path.write_text(plain.replace("2000.0,2000.0", "2010.0,2000.0"), "utf-8")
    message = (
        r"\n  - reference of case-02, ET \(volume_ref_mm3 in cases\.csv\): "
        rf"2000\.0 in {sides[0]}; 2010\.0 in {sides[1]}\n"
    )
    with pytest.raises(UserError, match=message):
        comparison.compare(sides[:1], sides[1:])
    assert len(comparison.compare(sides[:1], sides[1:], metrics=DICE, force=True).differs) == 1
    # A teacher's references count as well.
    path.write_text(plain, "utf-8")
    teacher = evaluated(tmp_path / "teacher", "teacher", [0.9] * 4)
    rows = (teacher / "evaluation/cases.csv").read_text("utf-8")
    (teacher / "evaluation/cases.csv").write_text(rows.replace("1000.0,", "900.0,"), "utf-8")
    with pytest.raises(UserError, match=rf"case-01, ET .*; 900\.0 in {teacher}"):
        comparison.compare(sides[:1], sides[1:], [teacher])


def test_a_cavity_that_counted_as_another_class_is_refused(tmp_path: pathlib.Path) -> None:
    baselines, students = two_seeds(tmp_path)

    def said(cavity: str) -> pathlib.Path:
        # Runs say it in their config alone.
        about = {"resection_cavity": cavity}
        return write_run(tmp_path / cavity, "student", STUDENT[1], seed=1, summary=about)

    about = {"resection_cavity": "NCR"}
    baselines[1] = write_run(tmp_path / "b", "baseline", BASE[1], seed=1, summary=about)
    same = comparison.compare(baselines, [students[0], said("ncr")], metrics=DICE)
    assert same.differs == ()
    with pytest.raises(UserError, match=r"\n  - resection_cavity: ncr in .*; background in "):
        comparison.compare(baselines, [students[0], said("background")])


def test_undefined_scores_leave_their_case_out(tmp_path: pathlib.Path) -> None:
    sides = [
        write_run(tmp_path / role, role, [float("nan"), *scores[0]])
        for role, scores in (("baseline", BASE), ("student", STUDENT))
    ]
    assert comparison.compare(sides[:1], sides[1:], metrics=DICE).result("dice", "ET").cases == 4
    lone = [write_run(tmp_path / f"{r}1", r, [0.5]) for r in ("baseline", "student")]
    with pytest.raises(UserError, match=r"have one test case, case-00: a comparison needs two"):
        comparison.compare(lone[:1], lone[1:])
    undefined = [
        write_run(tmp_path / f"{r}2", r, [0.5, float("nan")]) for r in ("baseline", "student")
    ]
    with pytest.raises(UserError, match=r"fewer than 2 cases .*--metric"):
        comparison.compare(undefined[:1], undefined[1:])


def test_post_processed_scores_are_read_from_their_place(tmp_path: pathlib.Path) -> None:
    sides = []
    for role, plain, processed in (("baseline", BASE, STUDENT), ("student", STUDENT, STUDENT)):
        run = write_run(tmp_path / role, role, plain[0])
        # Each run's threshold is its own; the rule is one.
        rule = {
            "post_processing": "thresholds chosen on validation cases",
            "post_processing_chosen": f"ET below 0.{len(sides)} ml becomes NCR",
        }
        other = write_run(tmp_path / f"{role}+", role, processed[0], summary=rule)
        shutil.copytree(other / "evaluation", run / "evaluation/postprocessed")
        sides.append(run)
    found = comparison.compare(sides[:1], sides[1:], metrics=DICE, postprocessed=True)
    assert found.result("dice", "ET").difference.estimate == 0
    assert found.postprocessed
    plain = comparison.compare(sides[:1], sides[1:], metrics=DICE)
    assert plain.result("dice", "ET").difference.estimate == pytest.approx(0.0675)


def test_metrics_are_checked() -> None:
    assert comparison.read_metrics(None) == list(comparison.MEASURES)
    assert comparison.read_metrics(["hd95_mm"]) == ["hd95_mm"]
    with pytest.raises(UserError, match=r"--metric is 'hd95'.*did you mean 'hd95_mm'"):
        comparison.read_metrics(["hd95"])
    with pytest.raises(UserError, match="once"):
        comparison.read_metrics(["dice", "dice"])


def test_a_task_of_one_region_has_no_mean_of_regions(tmp_path: pathlib.Path) -> None:
    task = made_up_tasks.LESION
    sides = {
        role: [write_run(tmp_path / role, role, dice, task=task)]
        for role, dice in (("baseline", [0.5, 0.6, 0.7]), ("student", [0.6, 0.8, 0.8]))
    }
    found = comparison.compare(**sides, resamples=1000)

    assert found.columns == ("lesion",)
    assert found.main == "lesion"
    assert len(found.results) == len(comparison.MEASURES)
    assert found.result("dice", "lesion").difference.estimate == pytest.approx(0.4 / 3)
    assert found.cases.volumes_ml[:, 0].tolist() == [0.0, 1.0, 2.0]
    said = " ".join(comparison_text.verdict(found))
    assert "Dice of lesion: baseline 0.600, student 0.733." in said
    assert "mean of the regions" not in comparison_text.markdown(found)
    assert len(comparison_figures.slope(found).axes) == 1


def test_many_regions_are_drawn_below_one_another(tmp_path: pathlib.Path) -> None:
    task = made_up_tasks.of_regions(6)
    sides = {
        role: [write_run(tmp_path / role, role, dice, task=task)]
        for role, dice in (("baseline", [0.5, 0.6]), ("student", [0.6, 0.8]))
    }
    found = comparison.compare(**sides, metrics=["dice"], resamples=1000)
    panels = comparison_figures.slope(found).axes
    assert [panel.get_title() for panel in panels if panel.get_title()] == [
        *task.region_names,
        "mean of the regions",
    ]
    drawn = [len(panel.lines) for panel in panels]
    assert drawn == [drawn[0]] * 7 + [0] * 3
    assert "mean of region 1, region 2, region 3, region 4, region 5 and region 6" in (
        " ".join(comparison_text.verdict(found))
    )


def test_runs_of_different_tasks_are_refused_even_by_force(tmp_path: pathlib.Path) -> None:
    baseline = write_run(tmp_path / "b", "baseline", [0.5, 0.6], task=made_up_tasks.LESION)
    student = write_run(tmp_path / "s", "student", [0.6, 0.8], task=made_up_tasks.PROSTATE)
    with pytest.raises(UserError, match=r"different tasks: .*lesions with the regions lesion"):
        comparison.compare([baseline], [student], force=True)
    # The same names of other classes are another task.
    task = {"name": "white matter lesions", "regions": {"lesion": ["lesion", "edema"]}}
    other = write_run(
        tmp_path / "o", "student", [0.6, 0.8], task=made_up_tasks.LESION, summary={"task": task}
    )
    with pytest.raises(UserError, match=r"lesion \(lesion, edema\)\. Give runs of one task"):
        comparison.compare([baseline], [other])
