"""Tables of scores: the numbers by hand, and what is undefined."""

import math
from collections.abc import Callable

import pytest
from scipy import stats

from kdnet_jax import task as task_lib
from kdnet_jax.metrics import cases
from kdnet_jax.reports import score_tables

Make = Callable[..., cases.RegionScore]


def test_mean_and_interval_by_hand() -> None:
    # 0.2, 0.4, 0.6, 0.8: mean 0.5, SD 0.2582, standard error 0.1291; t(0.975, 3) = 3.1824.
    found = score_tables.mean([0.2, 0.4, 0.6, 0.8], 0.0, 1.0)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.41086, 0.5 + 0.41086), abs=1e-4)
    values = [0.31, 0.42, 0.77, 0.5, 0.62]
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert score_tables.mean(values, 0.0, 1.0)[1:3] == pytest.approx((peer.low, peer.high))


def test_an_interval_holds_only_what_the_score_can_be() -> None:
    found = score_tables.mean([0.1, 1.0], 0.0, 1.0)
    assert (found.low, found.high) == (0.0, 1.0)
    assert score_tables.mean([-0.9, 0.9], -1.0, 1.0).low == -1.0
    assert math.isnan(score_tables.mean([0.5], 0.0, 1.0).low)


def test_results_by_region_and_run(make_score: Make) -> None:
    student = [
        make_score(dice=0.4, hd95_mm=2.0),
        make_score(case="b", dice=0.6, hd95_mm=373.12866, ref_empty=True),
        make_score(case="c", dice=0.5, hd95_mm=4.0),
    ]
    runs = {"student": student, "student\npost-processed": student[:1]}
    table = score_tables.results(runs, "Post-processing: none.", task=task_lib.GLIOMA)
    assert [row[0] for row in table.rows] == ["ET", *runs, "TC", *runs, "WT", *runs]
    # SD 0.1, t(0.975, 2) = 4.3027: 0.5 ± 0.2484.
    first = dict(zip(table.header, table.rows[1], strict=True))
    assert first["Dice"] == "0.500\n0.252 to 0.748"
    assert first["Lesion-wise Dice"] == "0.250\n0.250 to 0.250"
    assert first["HD95, mm"].startswith("126.4\n0.0 to ")
    assert first["HD95, mm, median"] == "4.0"
    assert first["NSD at 1 mm"].startswith("0.800")
    assert first["NSD at 2 mm"].startswith("0.900")
    assert (first["Cases"], first["Reference empty"]) == ("3", "1")
    assert table.rows[2][1] == "0.400"  # one case has no interval
    assert table.rows[4][1:] == ["–"] * 6 + ["0", "0"]  # TC has no row
    assert table.note.endswith("Post-processing: none.")
    assert "t(0.975, n − 1)" in table.note


def test_one_case(make_score: Make) -> None:
    table = score_tables.of_case("a", [make_score(), make_score(region="TC", dice=1.0)])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["Region"] == "ET"
    assert row["Dice"] == "0.500"
    assert (row["Reference, ml"], row["Prediction, ml"]) == ("2.5", "3.5")
    assert (row["Lesions missed"], row["Lesions false"]) == ("1 of 2", "3 of 4")
    assert table.rows[1][1] == "1.000"


def test_probabilities_by_region_and_run() -> None:
    row = {"ece_before": 0.1234, "ece_after": None, "dice_rank": 0.5, "dice_error": 0.25}
    regions = {"ET": row | {"covered": 3, "ranged": 4}, "TC": row | {"covered": 0, "ranged": 0}}
    (table,) = score_tables.calibration({"student": {"temperature": 1.5, "regions": regions}})
    assert table.rows == [
        ["student", "ET", "1.50", "0.123", "–", "0.50", "0.250", "3 of 4"],
        ["student", "TC", "1.50", "0.123", "–", "0.50", "0.250", "–"],
    ]
    assert len(table.header) == 8
    assert score_tables.calibration({}) == []
