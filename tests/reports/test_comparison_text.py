"""What a comparison says in words and tables."""

import csv
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from kdnet_jax.evaluation import comparison
from kdnet_jax.metrics import statistics
from kdnet_jax.reports import comparison_text, latex_table
from tests.helpers import compared_runs


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    sides = compared_runs.write_sides(tmp_path_factory.mktemp("runs_of_100%"))
    return comparison.compare(**sides, resamples=1000)


def with_dice(
    compared: comparison.Comparison, low: float, high: float, p_wilcoxon: float = 0.5
) -> comparison.Comparison:
    """Returns the comparison with another interval of the mean Dice's difference."""
    interval = statistics.Interval((low + high) / 2, low, high, 0.01, 4.0, 0.04 + 0.5 * (low < 0))
    results = [
        dataclasses.replace(r, difference=interval, p_wilcoxon=p_wilcoxon)
        if (r.metric, r.region) == ("dice", "mean")
        else r
        for r in compared.results
    ]
    return dataclasses.replace(compared, results=tuple(results))


def test_what_stands_out_is_named_with_its_region(compared: comparison.Comparison) -> None:
    # The student is better in all; with these p the four rows of Dice stand out.
    results = [
        dataclasses.replace(r, p_holm=0.01 if r.metric == "dice" else 1.0) for r in compared.results
    ]
    said = " ".join(comparison_text.verdict(dataclasses.replace(compared, results=tuple(results))))
    assert "the student differs in 4: Dice of ET: better by +0." in said
    assert "; Dice of WT: better by" in said
    assert "; Dice, mean of the regions: better by" in said


NEITHER = "show neither that the student beats"
MARGINS = [
    (0.03, 0.05, "beats the baseline", r"gain is 0\.02 or more\."),
    (0.01, 0.05, "beats the baseline", r"gain of 0\.02 or more is possible .*loss .* excluded"),
    (0.001, 0.015, "beats the baseline", r"difference of 0\.02 or more is excluded"),
    (-0.01, 0.01, NEITHER, r"difference of 0\.02 or more is excluded, in either direction"),
    (-0.05, 0.01, NEITHER, r"gain of 0\.02 or more is excluded; a loss .*only one above 0\.050"),
    (
        -0.01,
        0.05,
        NEITHER,
        r"only one above 0\.050 is excluded\); a loss of 0\.02 .* is excluded\.",
    ),
    (-0.05, 0.04, NEITHER, r"above 0\.040 .*above 0\.050 .*too small to decide"),
    (-0.05, -0.03, "is worse than the baseline", r"loss is 0\.02 or more"),
]


@pytest.mark.parametrize(("low", "high", "direction", "margin"), MARGINS)
def test_the_verdict_says_what_is_excluded(
    compared: comparison.Comparison, low: float, high: float, direction: str, margin: str
) -> None:
    said = comparison_text.verdict(with_dice(compared, low, high))
    assert direction in said[1]
    assert re.search(margin, said[1])
    assert "too small to decide" in said[1] or not low < -0.02 < 0.02 < high
    assert "no difference" not in said[1]


def test_a_difference_of_these_networks_alone_is_called_so(compared: comparison.Comparison) -> None:
    said = " ".join(comparison_text.verdict(with_dice(compared, -0.01, 0.05, p_wilcoxon=0.001)))
    assert "not one beyond what other seeds may bring" in said
    said = " ".join(comparison_text.verdict(with_dice(compared, -0.01, 0.05)))
    assert "other seeds may bring" not in said


def test_one_seed_makes_no_claim_about_the_method(
    compared: comparison.Comparison, tmp_path: pathlib.Path
) -> None:
    sides = compared_runs.write_sides(tmp_path, seeds=1)
    said = comparison_text.verdict(comparison.compare(**sides, resamples=1000))
    assert "nothing can be said about the method" in said[0]
    assert "this student beats this baseline" in said[2]
    one = dataclasses.replace(
        comparison.compare(**sides, resamples=1000),
        results=with_dice(compared, -1, 1, 0.001).results,
    )
    assert "other seeds may bring" not in " ".join(comparison_text.verdict(one))


def test_force_and_an_undefined_share_are_said(tmp_path: pathlib.Path) -> None:
    sides = compared_runs.write_sides(tmp_path, seeds=2)
    weak = compared_runs.write_run(
        tmp_path / "weak", "teacher", [0.5, 0.51] * 10, config={"train.steps": 1, "loader.batch": 9}
    )
    found = comparison.compare(**sides | {"teacher": [weak]}, force=True, resamples=1000)
    said = comparison_text.verdict(found)
    assert "no verdict on the method" in said[0]
    assert any("share that the student closes is undefined" in sentence for sentence in said)
    assert found.differs[0].startswith("loader.batch: ")
    assert "loader.batch" in comparison_text.markdown(found).split("Dice, mean")[0]
    assert "loader.batch" in comparison_text.latex(found)
    header, rows = comparison_text.rows(found)
    assert rows[3][header.index("Share of the lead")] == "undefined"


def test_rows_fit_the_header_and_hold_the_numbers(compared: comparison.Comparison) -> None:
    header, rows = comparison_text.rows(compared)
    assert {len(row) for row in rows} == {len(header)}
    wt = compared.result("dice", "WT")
    row = dict(zip(header, next(r for r in rows if r[:2] == ["Dice", "WT"]), strict=True))
    assert row["Student - baseline"].startswith(f"{wt.difference.estimate:+.3f} [")
    assert row["p (seeds and cases)"] == comparison_text.p_value(wt.p_holm)
    assert comparison_text.p_value(0.0009) == "<0.001"


def test_files_hold_everything(compared: comparison.Comparison, tmp_path: pathlib.Path) -> None:
    comparison_text.write(compared, tmp_path)
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        r
        for r in rows
        if (r["metric"], r["region"], r["quantity"]) == ("dice", "mean", "difference")
    ]
    result = compared.result("dice", "mean")
    assert float(row["estimate"]) == result.difference.estimate
    assert float(row["p_holm"]) == result.p_holm
    everything = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert everything["verdict"] == comparison_text.verdict(compared)
    assert everything["results"][3]["share"]["low"] == result.share.low
    assert everything["results"][0]["levels"]["teacher"]["sd_runs"] is None
    assert "NaN" not in (tmp_path / "comparison.json").read_text("utf-8")
    assert not list(tmp_path.glob(".*"))


def test_latex_is_escaped() -> None:
    assert latex_table.escape("a_b & 5 % <0.001 #{x} \\ ~^$") == (
        r"a\_b \& 5 \% $<$0.001 \#\{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}\$"
    )
    assert latex_table.escape("Student - baseline, -0.1 [-2, +3] seed-1") == (
        "Student - baseline, $-$0.1 [$-$2, $+$3] seed-1"
    )


def test_latex_has_as_many_cells_as_columns(compared: comparison.Comparison) -> None:
    text = comparison_text.latex(compared)
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1))
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 1 + len(compared.results)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}
    assert not re.search(r"(?<!\\)[%_#]", text.split("\n", 1)[1].replace("{!}{%", ""))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="LaTeX is not installed")
def test_latex_compiles(compared: comparison.Comparison, tmp_path: pathlib.Path) -> None:
    comparison_text.write(compared, tmp_path)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}"
        "\\begin{document}\\input{comparison.tex}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
