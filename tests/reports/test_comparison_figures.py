"""What the figures of a comparison show."""

import pathlib

import numpy as np
import pytest
from matplotlib import colors

from kdnet_jax.evaluation import comparison
from kdnet_jax.reports import comparison_figures
from tests.helpers import compared_runs


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    folder = tmp_path_factory.mktemp("runs")
    sides = {
        "baseline": [compared_runs.write_run(folder / "b", "baseline", [0.5, 0.6, 0.7])],
        "student": [compared_runs.write_run(folder / "s", "student", [0.6, 0.6, 0.5])],
        "teacher": [compared_runs.write_run(folder / "t", "teacher", [0.9, 0.8, 0.9])],
    }
    return comparison.compare(**sides, resamples=1000)


def test_slopes_join_the_scores_of_a_case(compared: comparison.Comparison) -> None:
    figure = comparison_figures.slope(compared)
    panel = figure.axes[0]
    drawn = [line.get_ydata().tolist() for line in panel.lines]
    assert drawn[0] == pytest.approx([0.5, 0.6])
    assert drawn[1] == pytest.approx([0.6, 0.9])
    assert drawn[-1] == pytest.approx([0.6, 1.7 / 3, 2.6 / 3])  # the means
    assert panel.get_xlabel() == "1 better, 1 worse, 1 equal"
    assert "n = 3 cases, 1 pair of runs" in figure.get_suptitle()
    # Of a distance, less is better.
    assert comparison_figures.slope(compared, "hd95_mm").axes[0].lines[0].get_color() == (
        panel.lines[0].get_color()
    )


def test_differences_stand_at_their_volumes(compared: comparison.Comparison) -> None:
    panel = comparison_figures.by_volume(compared).axes[2]
    points = [line for line in panel.lines if line.get_marker() in ("o", "v", "d")]
    drawn = {(round(p.get_xdata()[0], 3), round(p.get_ydata()[0], 3)) for p in points}
    # 0, 1 and 2 ml: an empty reference stands at a third of the smallest.
    assert drawn == {(0.333, 0.1), (1.0, 0.0), (2.0, -0.2)}
    assert panel.get_xscale() == "log"
    assert "1 empty" in panel.get_xlabel()


def test_cumulative_counts_cases(compared: comparison.Comparison) -> None:
    figure = comparison_figures.cumulative(compared)
    dice, hd95 = figure.axes[0], figure.axes[4]
    x, share = dice.lines[1].get_data()
    assert x == pytest.approx([0, 0.5, 0.6, 0.6])
    assert share == pytest.approx([1, 2 / 3, 1 / 3, 0])
    x, share = hd95.lines[0].get_data()
    assert x == pytest.approx([0, 6, 8, 10])
    assert share == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_sides_differ_in_grey_too(compared: comparison.Comparison) -> None:
    lines = comparison_figures.cumulative(compared).axes[0].lines
    assert len({str(line.get_linestyle()) for line in lines}) == 3
    slopes = comparison_figures.slope(compared).axes[0].lines
    better, worse = slopes[0], slopes[4]
    assert better.get_linestyle() != worse.get_linestyle()
    contrast = np.subtract(*(colors.to_rgb(line.get_color()) for line in (better, worse)))
    assert np.abs(contrast).max() > 0.5


@pytest.mark.once
def test_files_follow_the_metrics(compared: comparison.Comparison, tmp_path: pathlib.Path) -> None:
    comparison_figures.write(compared, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"slope_dice.png", "by_volume_hd95_mm.png", "cumulative.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
