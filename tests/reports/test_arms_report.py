"""The report of a study of few labels, and the files beside it."""

import csv
import json
import pathlib

import pytest

from kdnet_jax.config import study
from kdnet_jax.reports import arms_report
from tests.helpers import compared_runs


def test_the_page_and_the_numbers_beside_it(tmp_path: pathlib.Path) -> None:
    primary = study.Endpoint("C-A", "dice", "mean")
    runs = compared_runs.write_arms(tmp_path, compared_runs.ARMS)
    page, verdict = arms_report.write(
        tmp_path,
        runs,
        primary=primary,
        least_room=0.2,
        facts=[("command", "python -m kdnet_jax.main")],
        synthetic=True,
    )
    text = page.read_text("utf-8")
    assert verdict[0] in text
    # D - A is 0.16, and this study asked for more.
    assert text.count("Room: D - A is below 0.2.") == 2
    assert "once more, after post-processing" in text
    for arm in study.ARMS.values():
        assert f"seed-1/{arm.folder}/report.html" in text
    # Every score can be computed from again.
    for folder in ("few_labels", "few_labels_postprocessed"):
        with (tmp_path / folder / "scores.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 5 * 2 * 3 * 3
        own = [float(row["dice"]) for row in rows if (row["arm"], row["region"]) == ("C", "ET")]
        assert own == pytest.approx(compared_runs.ARMS["C"].ravel())
        assert {(row["fold"], row["seed"]) for row in rows} == {("0", "0"), ("0", "1")}
    with (tmp_path / "few_labels" / "differences.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if row["primary"] == "True"]
    assert (row["contrast"], row["metric"], row["region"]) == tuple(primary)
    assert float(row["share"]) == pytest.approx(0.5)
    everything = json.loads((tmp_path / "few_labels" / "few_labels.json").read_text("utf-8"))
    assert everything["differences"][3]["p_holm"] is None
    assert everything["verdict"] == verdict
