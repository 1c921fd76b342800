"""The page and the text of a profile (`kdnet_jax.profiling`)."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from kdnet_jax.reporting import charts, html

_ROWS = 15


def text(summary: Mapping[str, Any]) -> str:
    """Returns the summary for a terminal."""
    lines = [*_sentences(summary), "Time per step by part, ms (all threads or streams together)"]
    for name, seconds in summary["operation_seconds"]["phase"].items():
        lines.append(f"  {name:<20}{1e3 * seconds:10.2f}{_share(summary, seconds):>8}")
    return "\n".join(lines)


def write(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Writes the page: one self-contained file."""
    groups = summary["operation_seconds"]
    html.write_report(
        path,
        html.Report(
            title="Where the time of a training step goes",
            summary=_sentences(summary),
            pictures=[
                html.Picture(
                    _chart(groups["phase and kind"]),
                    "Milliseconds per step by part of the step and kind of operation",
                    "Operations that run at the same time are counted each.",
                )
            ],
            tables=[
                _table("By part of the step", groups["phase"], summary),
                _table("By kind of operation in the network", groups["kind"], summary),
                _table("By level of the network", groups["level"], summary),
                _table(f"The {_ROWS} longest operations", groups["operation"], summary),
            ],
            facts=_facts(summary),
        ),
    )


def _sentences(summary: Mapping[str, Any]) -> list[str]:
    peak = summary["peak_flops_per_second"] / 1e12
    return [
        f"A step takes {1e3 * summary['step_seconds']:.1f} ms (mean of {summary['steps']}).",
        f"It does {summary['flops'] / 1e9:.4g} GFLOP, {summary['flops_per_second'] / 1e12:.3g} "
        f"TFLOP/s: {summary['share_of_peak']:.0%} of the {peak:.3g} "
        "TFLOP/s measured on this device.",
        f"The loop waits for data {summary['waiting_share']:.1%} of the time, and nothing runs on "
        f"the device {summary['device_idle_share']:.1%} of it.",
    ]


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Device", summary["device"]),
        ("Steps traced", str(summary["steps"])),
        ("Memory of a step (XLA's plan)", f"{summary['step_bytes'] / 2**30:.2f} GiB"),
        (
            "Operations counted",
            "convolutions and matrix products, from the program; 2 per multiply and add",
        ),
        (
            "Peak",
            "the fastest of a large matrix product and, on CPU, a convolution of 64 channels, in "
            "the network's type, in this process",
        ),
        (
            "The whole trace",
            "the folder plugins/ beside this page, for ui.perfetto.dev or TensorBoard",
        ),
    ]


def _share(summary: Mapping[str, Any], seconds: float) -> str:
    total = sum(summary["operation_seconds"]["phase"].values())
    return f"{seconds / total:.1%}" if total else "-"


def _table(caption: str, group: Mapping[str, float], summary: Mapping[str, Any]) -> html.Table:
    rows = [
        [name or "outside the network", f"{1e3 * seconds:.2f}", _share(summary, seconds)]
        for name, seconds in list(group.items())[:_ROWS]
    ]
    return html.Table(caption, ["", "ms per step", "share"], rows)


def _chart(group: Mapping[str, float]) -> mpl_figure.Figure:
    """A bar per part of the step, cut by kind of operation."""
    pairs = {tuple(key.split(": ")): 1e3 * seconds for key, seconds in group.items()}
    phases = list(dict.fromkeys(phase for phase, _ in pairs))
    kinds = list(dict.fromkeys(kind for _, kind in pairs))
    figure = mpl_figure.Figure(figsize=(8, 0.5 * len(phases) + 1.4), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(phases))
    hatches = ("", "//", "..", "xx", "\\\\", "--", "oo")
    for index, kind in enumerate(kinds):
        widths = np.array([pairs.get((phase, kind), 0.0) for phase in phases])
        axes.barh(
            phases,
            widths,
            left=left,
            label=kind,
            color=charts.LINE_COLOURS[index % len(charts.LINE_COLOURS)],
            hatch=hatches[index % len(hatches)],
            edgecolor="white",
            linewidth=0.5,
        )
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("ms per step")
    axes.legend(frameon=False, fontsize="small")
    return figure
