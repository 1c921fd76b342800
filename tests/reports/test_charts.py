"""Curves and dots show just the data that they are given."""

from collections.abc import Callable

import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import charts
from kdnet_jax.losses import objective
from kdnet_jax.metrics import cases, surface


def test_each_term_has_its_own_panel() -> None:
    rows = [
        {
            "step": s,
            "split": "train",
            "kd_dice": float("nan") if s == 2 else 0.5,
            "loss": 1 / s,
            "time_steps_per_second": 3.0,
            "learning_rate": 1e-3,
            "gradient_norm": 2.0,
            "skipped_steps": 1,
        }
        for s in range(1, 5)
    ] + [{"step": 4, "split": "validation", "loss": 0.4, "dice_et": 0.1, "dice_wt": 0.7}]
    loss, kd_dice, dice = charts.curves(rows, task_lib.GLIOMA.region_names).axes
    titles = [panel.get_title() for panel in (loss, kd_dice, dice)]
    assert titles == ["loss", "kd_dice", "validation Dice"]
    raw, mean, validation = loss.lines
    assert raw.get_xydata().tolist() == [[s, 1 / s] for s in range(1, 5)]
    assert raw.get_linewidth() < mean.get_linewidth()
    assert validation.get_xydata().tolist() == [[4, 0.4]]
    assert kd_dice.lines[0].get_xdata().tolist() == [1, 3, 4]
    assert [line.get_label() for line in dice.lines] == ["ET", "WT"]
    assert len({line.get_linestyle() for line in dice.lines}) == 2  # not colour alone
    assert dice.lines[1].get_xydata().tolist() == [[4, 0.7]]


def test_every_registered_term_is_drawn() -> None:
    # A network that reconstructs has no report.
    names = {"loss", *objective.TERMS} - {"reconstruction"}
    row = dict.fromkeys(names, 0.5) | {"step": 1, "split": "train", "epoch": 1.0}
    titles = [
        panel.get_title() for panel in charts.curves([row], task_lib.GLIOMA.region_names).axes
    ]
    assert {title for title in titles if title} == names | {"validation Dice"}


def test_the_thick_line_is_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=150)
    rows = [{"step": s, "split": "train", "loss": v} for s, v in enumerate(values)]
    mean = charts.curves(rows, task_lib.GLIOMA.region_names).axes[0].lines[1].get_ydata()
    assert np.isclose(mean[75], values[70:80].mean())  # 150 / 15 = 10 rows
    assert charts.curves([], task_lib.GLIOMA.region_names).axes


def test_every_case_and_the_middle(make_score: Callable[..., cases.RegionScore]) -> None:
    student = [
        make_score(dice=0.5, hd95_mm=1.0),
        make_score(case="b", dice=1.0, hd95_mm=2.0, ref_empty=True),
        make_score(case="c", dice=0.0, hd95_mm=surface.EMPTY_PENALTY_MM),
    ]
    runs = {"teacher": [make_score(dice=0.9, hd95_mm=3.0)], "student": student}
    panel = charts.case_plot(runs, charts.DICE, task_lib.GLIOMA.region_names).axes[0]
    dots = [np.asarray(dots.get_offsets())[:, 1].tolist() for dots in panel.collections]
    assert dots == [[0.9], [0.5, 1.0, 0.0]]
    assert panel.collections[1].get_facecolor()[1].tolist() == [1, 1, 1, 0.85]  # hollow
    assert [text.get_text() for text in panel.texts] == ["0.900", "0.500"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["teacher", "student"]
    joined = [line.get_ydata().tolist() for line in panel.lines if len(set(line.get_ydata())) > 1]
    assert joined == [[0.9, 0.5]]
    distances = charts.case_plot(runs, charts.HD95, task_lib.GLIOMA.region_names).axes[0]
    assert [text.get_text() for text in distances.texts] == ["3.0", "2.0"]  # the median
    low, high = distances.get_ylim()
    assert low < 0 < surface.EMPTY_PENALTY_MM < high


def test_reliability_is_that_of_the_bins() -> None:
    bins = np.zeros((20, 3))
    bins[2], bins[10], bins[19] = (100, 12, 30), (200, 105, 50), (49, 48, 0)
    region = {"bins_before": bins.tolist(), "bins_after": (bins * 2).tolist()}
    panels = charts.reliability({"ET": region, "TC": region}, ["ET", "TC"]).axes
    assert [panel.get_title() for panel in panels] == ["ET", "TC"]
    right, before, after = panels[0].lines
    assert right.get_xydata().tolist() == [[0, 0], [1, 1]]
    # 49 voxels are too few for a share; twice as many are not.
    np.testing.assert_allclose(before.get_xydata(), [[0.12, 0.3], [0.525, 0.25]])
    np.testing.assert_allclose(after.get_xydata()[-1], [48 / 49, 0])
    assert before.get_linestyle() != after.get_linestyle()
