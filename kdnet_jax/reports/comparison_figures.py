"""Figures of a comparison: case by case, against the volume of the reference, and cumulative.

Colours follow Okabe and Ito; line styles and markers tell the same in grey.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import axes as mpl_axes
from matplotlib import axis as mpl_axis
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker

from kdnet_jax.drawing import figures
from kdnet_jax.evaluation import comparison, comparison_scores


class _Style(NamedTuple):
    colour: str
    line: str
    marker: str


_SIDES: Final = {
    "baseline": _Style("#D55E00", "dashed", "s"),
    "student": _Style("#0072B2", "solid", "o"),
    "teacher": _Style("#5A5A5A", "dotted", "^"),
}
_BETTER: Final = _Style("#0072B2", "solid", "o")
_WORSE: Final = _Style("#D55E00", "dashed", "v")
_SAME: Final = _Style("#8A8A8A", "dotted", "d")
_INK: Final = "#1b1f24"
_WIDE: Final = 5  # panels side by side


def slope(c: comparison.Comparison, metric: str = "dice") -> mpl_figure.Figure:
    """Draws each case from baseline to student, and on to the teacher where there is one."""
    figure, panels = _panels(
        c, 1, f"{_label(metric)} of each case, mean over its runs ({_count(c)})"
    )
    places = np.arange(len(c.sides))
    for column, panel in enumerate(panels[0]):
        scores = np.stack([c.cases.values[side, metric][:, column] for side in c.sides])
        styles = _gains(metric, scores[1] - scores[0])
        for case, style in zip(scores.T, styles, strict=True):
            panel.plot(places[:2], case[:2], color=style.colour, ls=style.line, lw=0.9, alpha=0.6)
            # The teacher is a reference; it is no part of the comparison.
            panel.plot(places[1:], case[1:], color="#9a9a9a", ls=_SAME.line, lw=0.7, alpha=0.6)
        panel.plot(places, np.nanmean(scores, axis=1), color=_INK, lw=2.4, marker="D", ms=6)
        panel.set_xticks(places, list(c.sides))
        panel.set_xlim(-0.2, len(places) - 0.8)
        better, worse = styles.count(_BETTER), styles.count(_WORSE)
        panel.set_xlabel(f"{better} better, {worse} worse, {len(styles) - better - worse} equal")
        _spread(metric, panel.yaxis, panel.set_yscale, panel.set_ylim)
    panels[0, 0].set_ylabel(_label(metric))
    handles = [_handle(_BETTER, "student better"), _handle(_WORSE, "student worse")]
    handles.append(mpl_lines.Line2D([], [], color=_INK, lw=2.4, marker="D", label="mean"))
    _legend(figure, handles)
    return figure


def by_volume(c: comparison.Comparison, metric: str = "dice") -> mpl_figure.Figure:
    """Draws each case's difference against the volume of its reference, on a log axis."""
    title = f"{_label(metric)}: student - baseline of each case, mean over its runs ({_count(c)})"
    figure, panels = _panels(c, 1, title)
    for column, panel in enumerate(panels[0]):
        difference = _difference(c, metric)[:, column]
        volume = c.cases.volumes_ml[:, column]
        result = c.result(metric, c.columns[column])
        panel.axhspan(*result.difference[1:3], color="#dddddd", lw=0, zorder=0)
        panel.axhline(0, color=_INK, lw=0.8)
        panel.axhline(result.difference.estimate, color=_INK, lw=1.6, ls="dashed")
        empty = _scatter(panel, metric, volume, difference)
        name = c.columns[column]
        if name == comparison_scores.MEAN:
            name = c.cases.largest or "largest region"
        panel.set_xlabel(
            f"{name} of the reference, ml" + (f"\n({empty} empty: at the left)" if empty else "")
        )
    panels[0, 0].set_ylabel(f"difference of {_label(metric)}")
    handles = [_handle(_BETTER, "student better", line=False)]
    handles.append(_handle(_WORSE, "student worse", line=False))
    handles.append(
        mpl_lines.Line2D([], [], color=_INK, lw=1.6, ls="dashed", label="mean, 95 % interval")
    )
    _legend(figure, handles)
    return figure


def _scatter(
    panel: mpl_axes.Axes,
    metric: str,
    volume: Float[np.ndarray, " cases"],
    difference: Float[np.ndarray, " cases"],
) -> int:
    """Draws the cases, an empty reference left of all others; returns how many of these."""
    present = volume > 0
    smallest = volume[present].min() if present.any() else 1.0
    shown = np.where(present, volume, smallest / 3)
    for point in zip(shown, difference, _gains(metric, difference), strict=True):
        x, y, style = point
        panel.plot(x, y, style.marker, color=style.colour, ms=5, alpha=0.75, mec="white", mew=0.4)
    panel.set_xscale("log")
    panel.set_xlim(shown.min() / 1.5, shown.max() * 1.5)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=7))
    panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    return int(np.sum(~present))


def cumulative(c: comparison.Comparison) -> mpl_figure.Figure:
    """Draws the share of cases with Dice above x, and with HD95 below x, where compared."""
    metrics = [name for name in ("dice", "hd95_mm") if name in c.metrics] or [c.metrics[0]]
    title = f"Share of cases, each scored by the mean over its runs ({_count(c)})"
    figure, panels = _panels(c, len(metrics), title)
    for row, metric in zip(panels, metrics, strict=True):
        word = "above" if comparison.MEASURES[metric].larger_is_better else "below"
        for column, panel in enumerate(row):
            for side in c.sides:
                _steps(panel, c.cases.values[side, metric][:, column], _SIDES[side], word)
            panel.set_ylim(-0.02, 1.02)
            panel.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
            panel.set_xlabel(f"x: {_label(metric)}")
            _spread(metric, panel.xaxis, panel.set_xscale, panel.set_xlim)
        row[0].set_ylabel(f"cases {word} x")
    _legend(figure, [_handle(_SIDES[side], side) for side in c.sides])
    return figure


def _steps(
    panel: mpl_axes.Axes, values: Float[np.ndarray, " cases"], style: _Style, word: str
) -> None:
    """Draws the share of values above or below x as steps."""
    ordered = np.sort(values[~np.isnan(values)])
    below = np.arange(1, len(ordered) + 1) / len(ordered)
    share, first = (1 - below, 1.0) if word == "above" else (below, 0.0)
    start = min(0.0, ordered[0])
    panel.step(
        [start, *ordered],
        [first, *share],
        where="post",
        color=style.colour,
        ls=style.line,
        lw=1.8,
    )


# --- What the figures share ---------------------------------------------------------------------


def write(c: comparison.Comparison, folder: pathlib.Path) -> None:
    """Writes the figures as PNG: slope and volume of Dice and HD95 where compared, cumulative."""
    main = [name for name in ("dice", "hd95_mm") if name in c.metrics] or [c.metrics[0]]
    for metric in main:
        figures.save_png(slope(c, metric), folder / f"slope_{metric}.png")
        figures.save_png(by_volume(c, metric), folder / f"by_volume_{metric}.png")
    figures.save_png(cumulative(c), folder / "cumulative.png")


def _panels(
    c: comparison.Comparison, rows: int, title: str
) -> tuple[mpl_figure.Figure, np.ndarray]:
    """Returns a figure and its panels, rows x columns; more columns than fit are drawn below."""
    count = len(c.columns)
    wide = min(count, _WIDE)
    lines = math.ceil(count / wide)
    size = (13 if wide > 2 else 4 + 3 * wide, 0.9 + 3.7 * rows * lines)
    figure = mpl_figure.Figure(figsize=size, layout="constrained")
    drawn = figure.subplots(
        rows * lines, wide, sharey="row", squeeze=False, gridspec_kw={"wspace": 0.03}
    ).reshape(rows, -1)
    for spare in drawn[:, count:].flat:
        spare.set_axis_off()
    panels = drawn[:, :count]
    for region, panel in zip(c.columns, panels[0], strict=True):
        panel.set_title(comparison_scores.title(region), fontsize=12)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e6e6e6", lw=0.6)
        panel.set_axisbelow(True)
    figure.suptitle(title, fontsize=13)
    return figure, panels


def _spread(
    metric: str,
    axis: mpl_axis.Axis,
    set_scale: Callable[..., None],
    set_limits: Callable[[float, float], object],
) -> None:
    """Spreads the small ones of distances in mm: they reach from 0 to a penalty of 373 mm."""
    if not comparison.MEASURES[metric].larger_is_better:
        set_scale("symlog", linthresh=10)
        axis.set_major_locator(ticker.FixedLocator([0, 5, 10, 20, 50, 100, 373]))
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        set_limits(-0.5, 420)


def _gains(metric: str, difference: Float[np.ndarray, " cases"]) -> list[_Style]:
    sign = 1 if comparison.MEASURES[metric].larger_is_better else -1
    return [_BETTER if each > 0 else _WORSE if each < 0 else _SAME for each in sign * difference]


def _difference(c: comparison.Comparison, metric: str) -> Float[np.ndarray, "cases regions"]:
    return c.cases.values["student", metric] - c.cases.values["baseline", metric]


def _label(metric: str) -> str:
    return comparison.MEASURES[metric].label


def _count(c: comparison.Comparison) -> str:
    runs = f"{c.pairs} pair{'' if c.pairs == 1 else 's'} of runs"
    return f"n = {len(c.cases.names)} cases, {runs}"


def _handle(style: _Style, label: str, *, line: bool = True) -> mpl_lines.Line2D:
    """Returns a legend's entry: the line of a style, or its marker."""
    handle = mpl_lines.Line2D([], [], color=style.colour, label=label)
    if line:
        handle.set(ls=style.line, lw=1.8)
    else:
        handle.set(ls="none", marker=style.marker)
    return handle


def _legend(figure: mpl_figure.Figure, handles: list[mpl_lines.Line2D]) -> None:
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        handlelength=3.5,
    )
