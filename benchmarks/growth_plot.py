"""The picture of `benchmarks.growth`."""

import pathlib
from collections.abc import Mapping, Sequence

from benchmarks.growth_points import Point
from kdnet_jax.core import files

_LABELS = {
    "edge": "edge of the patch (voxels)",
    "batch": "patches in a batch",
    "width": "channels of the finest level",
    "cases": "training cases",
}
# Okabe and Ito's blue and vermilion, and unlike marks: legible without colour.
_STYLES = {
    "ours": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "kdnet_jax"},
    "peer": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "PyTorch"},
}


def draw(found: Mapping[str, Sequence[Point]], path: pathlib.Path) -> None:
    """Draws time above memory for each axis, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(
        2, len(found), figsize=(3.4 * len(found), 6), sharex="col", layout="constrained"
    )
    for column, (name, values) in enumerate(found.items()):
        for row, quantity in enumerate(("seconds", "gib")):
            axis = axes[row, column]
            for side, style in _STYLES.items():
                drawn = [point for point in values if f"{side}_{quantity}" in point]
                if drawn:
                    x = [point[name] for point in drawn]
                    axis.plot(x, [point[f"{side}_{quantity}"] for point in drawn], **style)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_xticks([point[name] for point in values])
            axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
            axis.xaxis.set_minor_locator(ticker.NullLocator())
            axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(ticker.NullFormatter())
            axis.grid(visible=True, which="both", color="#dddddd", linewidth=0.6)
            axis.set_ylim(_limits(values, quantity))
        axes[1, column].set_xlabel(_LABELS[name])
    axes[0, 0].set_ylabel("a training step (s)")
    axes[1, 0].set_ylabel("peak memory (GiB)")
    axes[0, 0].legend(frameon=False)
    with files.replacing(path, suffix=".png") as beside:
        figure.savefig(beside, dpi=150)
    pyplot.close(figure)


def _limits(values: Sequence[Point], quantity: str) -> tuple[float, float]:
    """Returns limits of at least a decade, so that what does not grow looks flat."""
    every = [point[key] for point in values for key in point if key.endswith(f"s_{quantity}")]
    every += [point[key] for point in values for key in point if key == f"peer_{quantity}"]
    low, high = min(every) / 1.5, max(every) * 1.5
    widen = max(10 / (high / low), 1) ** 0.5
    return low / widen, high * widen
