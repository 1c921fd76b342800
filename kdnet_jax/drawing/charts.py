"""Charts of trainings and of scores, as matplotlib figures without global state.

Colours follow Okabe and Ito, whose hues stay apart for colour-blind readers; markers, line styles
and labels say the same without colour.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from scipy import ndimage

from kdnet_jax.core import typed
from kdnet_jax.drawing import planes
from kdnet_jax.metrics import cases, surface

# On white.
LINE_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
# By a region's place: 10 colours, 4 line styles and 7 markers, so that no two look alike.
_REGION_COLOURS: Final = (
    *("#D55E00", "#B58900", "#0072B2", "#009E73", "#CC79A7"),
    *("#5A5A5A", "#7A4FD0", "#8C510A", "#2AA7C9", "#1B1F24"),
)
_REGION_STYLES: Final = ("solid", "dashed", "dotted", "dashdot")
_PANELS: Final = 4  # side by side
_NAMES_IN_PANEL: Final = 3
# Of a bin of probabilities: the share of fewer is chance.
_FEWEST_VOXELS: Final = 50
_INCHES: Final = 9.0
_PAPER, _INK = "#ffffff", "#1b1f24"
# Names of the loss and its terms (losses/), among all that `metrics.jsonl` holds.
_LOSS: Final = re.compile(r"loss|kl|(gt|kd|pl)_\w+|hint|gram|contrastive|prototype|affinity|masked")
_COLUMNS: Final = 3


class Measure(NamedTuple):
    """A score that is shown per case: column of `cases.csv`, its name, digits of its mean."""

    column: str
    label: str
    digits: int


DICE: Final = Measure("dice", "Dice", 3)
HD95: Final = Measure("hd95_mm", "HD95 (mm)", 1)


# --- A training --------------------------------------------------------------------------------


def curves(rows: Sequence[typed.JsonView], regions: Sequence[str]) -> mpl_figure.Figure:
    """The loss, each of its terms and the validation's Dice over the steps, a panel for each.

    Args:
      rows: Rows of `metrics.jsonl`. A thin line is the value as logged, the thick one its running
        mean over about a fifteenth of the rows.
      regions: Names of the regions whose Dice is drawn.
    """
    train = [row for row in rows if row["split"] == "train"]
    validation = [row for row in rows if row["split"] == "validation"]
    found = dict.fromkeys(name for row in train for name in row if _LOSS.fullmatch(name))
    names = sorted(found, key=lambda name: name != "loss")
    lines = math.ceil((len(names) + 1) / _COLUMNS)
    figure = mpl_figure.Figure((_INCHES, 2.5 * lines), facecolor=_PAPER, layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_loss(panel, name, train, validation)
    _draw_validation(panels[len(names)], validation, regions)
    for panel in panels[len(names) + 1 :]:
        panel.set_axis_off()
    return figure


def _draw_loss(
    panel: mpl_axes.Axes, name: str, train: Sequence[Mapping], validation: Sequence[Mapping]
) -> None:
    steps, values = _series(train, name)
    panel.plot(steps, values, color=LINE_COLOURS[0], linewidth=0.6, alpha=0.45)
    panel.plot(steps, _running_mean(values), color=_INK, linewidth=1.8, label=name)
    steps, values = _series(validation, name)
    if steps.size:
        panel.plot(steps, values, color="#D55E00", marker="o", markersize=3, linestyle="--")
    # An early peak must not flatten the rest; a term may be negative or constant.
    panel.margins(y=0.08)
    _finish(panel, name, "step", "")


def _draw_validation(
    panel: mpl_axes.Axes, validation: Sequence[Mapping], regions: Sequence[str]
) -> None:
    for place, region in enumerate(regions):
        steps, values = _series(validation, f"dice_{region.lower()}")
        if steps.size:
            panel.plot(
                steps,
                values,
                color=_REGION_COLOURS[place % len(_REGION_COLOURS)],
                linestyle=_REGION_STYLES[place % len(_REGION_STYLES)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=4,
                label=region,
            )
    panel.set_ylim(0, 1)
    _finish(panel, "validation Dice", "step", "")
    if panel.lines:
        options = {"frameon": False, "fontsize": 9, "handlelength": 2.6}
        # The panel has room for three names; more stand below the figure.
        if len(panel.lines) <= _NAMES_IN_PANEL:
            panel.legend(ncols=len(panel.lines), **options)
        else:
            columns = planes.legend_columns(regions, _INCHES, 9)
            where = {"handles": panel.lines, "loc": "outside lower center", "ncols": columns}
            panel.figure.legend(**where, **options)


def _series(
    rows: Sequence[typed.JsonView], name: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    points = [(step, value) for step, value in points if value is not None and value == value]
    table = np.asarray(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_mean(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    size = max(1, values.size // 15)
    return ndimage.uniform_filter1d(values, size, mode="nearest") if values.size else values


# --- Runs beside each other --------------------------------------------------------------------


def case_plot(
    runs: Mapping[str, Sequence[cases.RegionScore]], measure: Measure, regions: Sequence[str]
) -> mpl_figure.Figure:
    """A score of every case, per region and run; a thin line joins one case in neighbouring runs.

    Args:
      runs: Scores by the run's name, in the order of the columns. Hollow dots are cases whose
        reference has none of the region; the bar with its number is the mean, for HD95 the median.
      measure: What is shown.
      regions: A panel for each.
    """
    figure, panels = _panels(len(regions))
    for number, (panel, region) in enumerate(zip(panels, regions, strict=False)):
        own = [[row for row in scores if row.region == region] for scores in runs.values()]
        _join_cases(panel, own, measure)
        for place, scores in enumerate(own):
            _draw_dots(panel, place, scores, measure)
        panel.set_xticks(range(len(runs)), list(runs))
        panel.set_xlim(-0.5, len(runs) - 0.2)
        first = number % min(_PANELS, len(regions)) == 0
        _finish(panel, region, "", measure.label if first else "")
    _scale(panels[0], measure)
    if any(row.ref_empty for scores in runs.values() for row in scores):
        handle = mpl_lines.Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            markerfacecolor=_PAPER,
            color=_INK,
            label="reference without the region",
        )
        figure.legend(handles=[handle], loc="outside lower center", frameon=False, fontsize=9)
    return figure


def reliability(
    measured: Mapping[str, typed.JsonView], regions: Sequence[str]
) -> mpl_figure.Figure:
    """How often a region is there, over the probability that it is given; a diagonal is right.

    Args:
      measured: Region -> its bins before and after calibration (`calibration.summarise`); those of
        fewer than 50 voxels are left out.
      regions: A panel for each.
    """
    figure, panels = _panels(len(regions))
    series = (
        ("before", "as trained", "#5A5A5A", "--", "o"),
        ("after", "calibrated", "#0072B2", "-", "s"),
    )
    for number, (panel, region) in enumerate(zip(panels, regions, strict=False)):
        panel.plot([0, 1], [0, 1], color="#9aa0a6", linewidth=0.8, label="right")
        for when, label, colour, style, marker in series:
            voxels, expected, true = np.array(measured[region][f"bins_{when}"]).T
            kept = voxels >= _FEWEST_VOXELS
            panel.plot(
                expected[kept] / voxels[kept],
                true[kept] / voxels[kept],
                color=colour,
                linestyle=style,
                marker=marker,
                markersize=4,
                label=label,
            )
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-0.02, 1.02)
        panel.set_aspect("equal")
        first = number % min(_PANELS, len(regions)) == 0
        _finish(panel, region, "probability", "share of voxels in the region" if first else "")
    figure.legend(
        handles=panels[0].lines, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _panels(count: int) -> tuple[mpl_figure.Figure, Sequence[mpl_axes.Axes]]:
    """Returns a figure with so many panels, those that no one needs switched off."""
    columns = min(_PANELS, count)
    lines = math.ceil(count / columns)
    size = (_INCHES if columns > 1 else 5.0, 3.8 + 3.2 * (lines - 1))
    figure = mpl_figure.Figure(figsize=size, facecolor=_PAPER, layout="constrained")
    panels = [*figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()]
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def _scale(panel: mpl_axes.Axes, measure: Measure) -> None:
    if measure == DICE:
        panel.set_ylim(-0.03, 1.03)
        return
    # From below a voxel to the penalty of an empty mask: linear up to 1 mm, then logarithmic.
    panel.set_yscale("symlog", linthresh=1, linscale=0.4)
    panel.set_ylim(-0.15, surface.EMPTY_PENALTY_MM * 1.6)
    ticks = (0, 1, 3, 10, 30, 100, surface.EMPTY_PENALTY_MM)
    panel.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks])
    panel.minorticks_off()


def _jitter(count: int) -> Float[np.ndarray, "n"]:
    """Returns offsets within ±0.12, the same for the same count, so that dots do not hide."""
    golden = 0.6180339887
    return ((np.arange(count) * golden) % 1 - 0.5) * 0.24


def _draw_dots(
    panel: mpl_axes.Axes, place: int, scores: Sequence[cases.RegionScore], measure: Measure
) -> None:
    if not scores:
        return
    colour = LINE_COLOURS[place % len(LINE_COLOURS)]
    values = np.asarray([getattr(row, measure.column) for row in scores])
    panel.scatter(
        place + _jitter(len(scores)),
        values,
        s=24,
        c=[_PAPER if row.ref_empty else colour for row in scores],
        edgecolors=colour,
        marker=_MARKERS[place % len(_MARKERS)],
        alpha=0.85,
        zorder=3,
    )
    # The penalty for an empty mask would drag a mean to where no case is.
    middle = float(values.mean() if measure == DICE else np.median(values))
    panel.plot([place - 0.25, place + 0.25], [middle, middle], color=_INK, linewidth=2, zorder=4)
    text = f"{middle:.{measure.digits}f}"
    panel.annotate(
        text,
        (place + 0.27, middle),
        color=_INK,
        fontsize=9,
        va="center",
        zorder=5,
        bbox={"facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
    )


def _join_cases(
    panel: mpl_axes.Axes, columns: Sequence[Sequence[cases.RegionScore]], measure: Measure
) -> None:
    places = [
        {
            row.case: (place + shift, getattr(row, measure.column))
            for row, shift in zip(scores, _jitter(len(scores)), strict=True)
        }
        for place, scores in enumerate(columns)
    ]
    for left, right in itertools.pairwise(places):
        for case in left.keys() & right.keys():
            ends = np.asarray([left[case], right[case]])
            panel.plot(ends[:, 0], ends[:, 1], color="#9aa0a6", linewidth=0.6, zorder=1)


def _finish(panel: mpl_axes.Axes, title: str, x_label: str, y_label: str) -> None:
    panel.set_title(title, color=_INK, fontsize=10)
    panel.set_xlabel(x_label, color=_INK)
    panel.set_ylabel(y_label, color=_INK)
    panel.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
