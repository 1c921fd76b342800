"""Which cases a run's report shows, and the lines it prints."""

from kdnet_jax.metrics import cases
from kdnet_jax.reporting import run_report


def _scores(dice: dict[str, tuple[float, float]]) -> list[cases.RegionScore]:
    return [
        cases.RegionScore(case, region, value, 1.0, 0.5, 0.5, 0.9, 10.0, 10.0, False, False)
        for case, values in dice.items()
        for region, value in zip(("ET", "TC"), values, strict=True)
    ]


def test_best_median_and_worst_by_mean_dice() -> None:
    # Means: a 0.5, b 0.8, c 0.2.
    scores = _scores({"a": (0.9, 0.1), "b": (0.8, 0.8), "c": (0.0, 0.4)})
    assert run_report.ranked(scores) == {"best": "b", "median": "a", "worst": "c"}


def test_few_cases_are_shown_once() -> None:
    assert run_report.ranked(_scores({"a": (0.5, 0.5)})) == {"best": "a"}
    two = run_report.ranked(_scores({"a": (0.5, 0.5), "b": (0.7, 0.7)}))
    assert two["best"] == "b"
    assert sorted(two.values()) == ["a", "b"]


def test_lines_of_dice() -> None:
    regions = {r: {"dice": {"mean": v}} for r, v in (("ET", 0.5), ("TC", 0.25), ("WT", 0.75))}
    summary = {"regions": regions, "mean_dice": 0.5, "cases": 3, "modalities": ["t1ce"]}
    assert run_report.dice_sentence("student", summary) == (
        "student (t1ce): test Dice ET 0.500, TC 0.250, WT 0.750, mean 0.500 over 3 cases"
    )
    table = run_report.region_table({"student": summary}).splitlines()
    assert table[1].split() == ["ET", "TC", "WT", "mean"]
    assert table[2].split() == ["student", "0.500", "0.250", "0.750", "0.500"]
