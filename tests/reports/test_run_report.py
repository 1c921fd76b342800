"""What a run's report says, and the lines it prints."""

from collections.abc import Callable

import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.evaluation import evaluation
from kdnet_jax.metrics import cases
from kdnet_jax.models import heads
from kdnet_jax.reports import run_facts, run_report

SOFTMAX, REGIONS = (heads.Head(task_lib.GLIOMA, kind) for kind in ("softmax", "regions"))
Make = Callable[..., cases.RegionScore]


def _scores(make: Make, dice: dict[str, tuple[float, ...]]) -> list[cases.RegionScore]:
    return [
        make(case=case, region=region, dice=value)
        for case, values in dice.items()
        for region, value in zip(("ET", "TC"), values, strict=True)
    ]


def _summary(mean: float, modalities: list[str]) -> dict:
    regions = {r: {"dice": {"mean": v}} for r, v in (("ET", 0.5), ("TC", 0.25), ("WT", 0.75))}
    return {"regions": regions, "mean_dice": mean, "cases": 3, "modalities": modalities}


def test_why_a_case_is_shown(make_score: Make) -> None:
    # Means: c 0.2, a 0.5, b 0.8.
    scores = _scores(make_score, {"a": (0.9, 0.1), "b": (0.8, 0.8), "c": (0.0, 0.4)})
    assert run_report.ranks(scores, ["c", "a", "b"]) == ["worst", "median", "best"]
    many = _scores(make_score, {f"{i:02d}": (i / 30, i / 30) for i in range(30)})
    shown = evaluation.shown_cases(many)
    ranks = dict(zip(shown, run_report.ranks(many, shown), strict=True))
    assert ranks == {
        "00": "worst",
        "01": "2nd worst",
        "02": "3rd worst",
        **{f"{i - 1:02d}": f"{i}th worst" for i in range(4, 11)},
        "15": "median",
        "29": "best",
    }
    assert run_report.ranks(many, ["10", "20"]) == ["11th worst", "21st worst"]


@pytest.mark.parametrize(
    ("cases_scored", "said"),
    [
        (11, "All 11 test cases, the worst first, by"),
        # Of 12 the seventh worst is the median, of 19 the tenth.
        (12, "the worst first, the median among them, then the best case."),
        (19, "the worst first, the median among them, then the best case."),
        (20, "the worst first, then the median and the best case."),
    ],
)
def test_the_note_says_which_cases_are_shown(
    make_score: Make, cases_scored: int, said: str
) -> None:
    scores = _scores(make_score, {f"{i:02d}": (i / 30, i / 30) for i in range(cases_scored)})
    shown = evaluation.shown_cases(scores)
    words = run_report.ranks(scores, shown)
    assert ("median" in words[:10]) == ("among them" in said or "All" in said)
    assert said in run_report._cases_note({"cases": cases_scored}, len(shown), "tumour")


def test_the_result_in_words(make_score: Make) -> None:
    student = _scores(make_score, {"a": (0.4, 0.4), "b": (0.5, 0.5), "c": (0.6, 0.6)})
    teacher = _scores(make_score, {"a": (0.6, 0.6), "b": (0.8, 0.8), "c": (0.7, 0.7)})
    texts = run_facts.sentences(
        {"teacher": _summary(0.7, ["t1", "t1ce"]), "student": _summary(0.5, ["t1ce"])},
        {"teacher": None, "student": {"mean_dice": 0.55, "post_processing": "small ET"}},
        {"teacher": teacher, "student": student},
        "student",
    )
    # Standard deviations of 0.1; t(0.975, 2) = 4.3027.
    assert texts == [
        "The student (t1ce) reaches a mean test Dice of 0.500 (95 % interval 0.252 to 0.748) over "
        "3 cases: ET 0.500, TC 0.250, WT 0.750.",
        "The teacher (t1, t1ce) reaches a mean test Dice of 0.700 (95 % interval 0.452 to 0.948) "
        "over 3 cases: ET 0.500, TC 0.250, WT 0.750.",
        # Differences −0.2, −0.3, −0.1.
        "On the same 3 cases the student’s mean Dice differs from the teacher’s by −0.200 (95 % "
        "interval −0.448 to +0.048).",
        "With post-processing (small ET) the student’s mean Dice goes from 0.500 to 0.550.",
    ]
    unchanged = run_facts.sentences(
        {"student": _summary(0.5, ["t1ce"])},
        {"student": {"mean_dice": 0.5, "post_processing": "none"}},
        {"student": student},
        "student",
    )
    assert unchanged[1:] == ["With post-processing (none) the student’s mean Dice stays at 0.500."]


def test_facts_are_those_that_are_known() -> None:
    summary = {
        "step": 600,
        "steps": 800,
        "parameters": 88860,
        "teacher": None,
        "train_seconds": 172.5,
        "evaluate_seconds": 41.0,
        "peak_memory_gib": 1.83,
        "split_hash": "e" * 64,
        "provenance": {"commit": "abc", "jax": "0.10", "flax": "0.12", "device": "1 x cpu"},
    }
    facts = dict(run_facts.rows(summary))
    assert facts == {
        "Best checkpoint": "step 600 of 800",
        "Parameters": "88,860",
        "Wall time, training": "2.9 min",
        "Wall time, evaluation": "41 s",
        "Peak memory (host)": "1.8 GiB",
        "Split (hash)": "e" * 16,
        "Commit": "abc",
        "Device": "1 x cpu",
        "Versions": "jax 0.10, flax 0.12",
    }
    taught = {"teacher": {"path": "runs/t", "hash": "f" * 64}, "train_seconds": 9000}
    assert run_facts.rows(taught) == [
        ("Wall time, training", "2.5 h"),
        ("Teacher", f"runs/t ({'f' * 16})"),
    ]
    assert run_facts.rows({}) == []


def test_lines_of_dice() -> None:
    table = run_report.region_table({"student": _summary(0.5, ["t1ce"])}).splitlines()
    assert table[1].split() == ["ET", "TC", "WT", "mean"]
    assert table[2].split() == ["student", "0.500", "0.250", "0.750", "0.500"]
