"""The axial, coronal and sagittal plane of a volume, drawn as a radiologist looks at them.

Volumes come in SPL (d grows to Superior, h to Posterior, w to the patient's Left). The patient's
right is on the left of the picture, anterior and superior are up.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import patheffects
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.core import colours

Spacing = tuple[float, float, float]

# In points, by a region's place: neighbours differ in grey as well.
_WIDTHS: Final = (2.3, 1.8, 1.4)
LINE_STYLES: Final = {"reference": "solid", "prediction": (0, (3.0, 1.8))}
# Iso-levels of a calibrated probability.
LEVELS: Final = (0.1, 0.5, 0.9)
LEVEL_STYLES: Final = {0.1: (0, (1.0, 1.6)), 0.5: "solid", 0.9: (0, (6.0, 1.6, 1.0, 1.6))}
_MARGIN_MM: Final = 6.0
PANELS_INCHES: Final = 10.98


class Look(NamedTuple):
    """How a region's lines are drawn: the colour, and the width in points."""

    colour: str
    width: float


def looks(regions: Sequence[str]) -> dict[str, Look]:
    """Returns how each region is drawn, by its place; after ten the colours repeat."""
    return {
        name: Look(colours.at(place), _WIDTHS[place % len(_WIDTHS)])
        for place, name in enumerate(regions)
    }


class Plane(NamedTuple):
    """How one axis of an SPL volume is looked along.

    Attributes:
      name: The plane.
      flip_rows: Whether the first row on the screen is the last in the array.
      left, right, top, bottom: What lies at the edges: R, L, A, P, S or I.
    """

    name: str
    flip_rows: bool
    left: str
    right: str
    top: str
    bottom: str


# By the axis that is cut: d, h, w.
PLANES: Final = (
    Plane("axial", False, "R", "L", "A", "P"),
    Plane("coronal", True, "R", "L", "S", "I"),
    Plane("sagittal", True, "A", "P", "S", "I"),
)


def to_screen(
    volume: Shaped[np.ndarray, "d h w"], axis: int, index: int
) -> Shaped[np.ndarray, "rows columns"]:
    """Returns the slice across `axis` as it is drawn, the first row at the top."""
    view = np.take(volume, index, axis=axis)
    return view[::-1] if PLANES[axis].flip_rows else view


def view_box(
    foreground: Bool[np.ndarray, "d h w"],
    masks: Iterable[Integer[np.ndarray, "d h w"]],
    spacing: Spacing,
) -> tuple[slice, ...]:
    """Returns the box of all that is not background, with a margin."""
    content = foreground
    for mask in masks:
        content = content | (mask != 0)
    found = ndimage.find_objects(content.astype(np.uint8))
    if not found:
        return tuple(slice(0, side) for side in foreground.shape)
    margins = [math.ceil(_MARGIN_MM / step) for step in spacing]
    return tuple(
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, margin, size in zip(found[0], margins, foreground.shape, strict=True)
    )


def slices_of_interest(
    masks: Sequence[Bool[np.ndarray, "d h w"]], box: Sequence[slice]
) -> tuple[int, ...]:
    """Returns the slice of each axis with most voxels of the first mask that is not empty.

    Without any, it is the middle of the box.
    """
    for mask in masks:
        if mask.any():
            others = ((1, 2), (0, 2), (0, 1))
            return tuple(int(mask.sum(axis=rest).argmax()) for rest in others)
    return tuple((side.start + side.stop - 1) // 2 for side in box)


def grey_window(
    image: Float[np.ndarray, "*grid"], foreground: Bool[np.ndarray, "*grid"]
) -> tuple[float, float]:
    """Returns black and white: the 0.5 and 99.5 % percentiles over the foreground."""
    shown = image[foreground & np.isfinite(image)]
    if not shown.size:
        return 0.0, 1.0
    low, high = np.percentile(shown, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1.0)


def pixel(spacing: Spacing, axis: int) -> tuple[float, float]:
    """Returns mm per row and per column of the slices across `axis`."""
    rows, columns = (edge for other, edge in enumerate(spacing) if other != axis)
    return rows, columns


def panels(
    box: Sequence[slice], spacing: Spacing, rows: int, foot: float = 0.75
) -> tuple[mpl_figure.Figure, np.ndarray]:
    """Returns a black figure with rows x 3 axes that show the box's planes at one scale.

    `foot` is the height below them in inches.
    """
    depth, height, width = (
        (side.stop - side.start) * step for side, step in zip(box, spacing, strict=True)
    )
    widths, tallest = (width, width, height), max(depth, height)
    inches_per_mm = 10.5 / sum(widths)
    head, gap = 0.75, 0.12
    height = rows * tallest * inches_per_mm + (rows - 1) * gap
    size = (PANELS_INCHES, height + head + foot)
    figure = mpl_figure.Figure(figsize=size, facecolor="black")
    full_width, full_height = figure.get_size_inches()
    grid = figure.subplots(
        rows,
        3,
        gridspec_kw={
            "width_ratios": widths,
            "left": gap / full_width,
            "right": 1 - gap / full_width,
            "bottom": foot / full_height,
            "top": 1 - head / full_height,
            "wspace": 0.03,
            "hspace": 0.03,
        },
    )
    return figure, grid


def draw_image(
    panel: mpl_axes.Axes,
    image: Float[np.ndarray, "d h w"],
    foreground: Bool[np.ndarray, "d h w"],
    axis: int,
    index: int,
    spacing: Spacing,
    window: tuple[float, float],
) -> None:
    """Draws a slice in grey, in mm from the upper left corner; black outside of the foreground."""
    view = to_screen(image, axis, index)
    row_mm, column_mm = pixel(spacing, axis)
    # A z-scored image may have its background, 0, amid its greys.
    inside = np.asarray(ndimage.binary_fill_holes(to_screen(foreground, axis, index)))
    panel.imshow(
        np.where(inside, view, window[0]),
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, view.shape[1] * column_mm, view.shape[0] * row_mm, 0),
        interpolation="bilinear",
    )
    panel.set_axis_off()


def outline(
    panel: mpl_axes.Axes,
    classes: Integer[np.ndarray, "rows columns"],
    pixel_mm: tuple[float, float],
    name: str,
    task: task_lib.Task,
) -> None:
    """Draws the regions of a slice as drawn; `pixel_mm` is mm per row and column."""
    # A rim of background closes the outline of a region at the edge of the view.
    padded = np.pad(classes, 1)
    rows, columns = (
        (np.arange(size) - 0.5) * step for size, step in zip(padded.shape, pixel_mm, strict=True)
    )
    look = looks(task.region_names)
    # In the order of painting, so that inner regions lie on top.
    for region in painted(task):
        mask = task.mask(padded, region)
        if mask.any():
            contours = panel.contour(
                columns,
                rows,
                mask.astype(np.float32),
                levels=[0.5],
                colors=[look[region].colour],
                linewidths=look[region].width,
                linestyles=[LINE_STYLES[name]],
            )
            rim = patheffects.withStroke(linewidth=look[region].width + 1.2, foreground="#000b")
            contours.set_path_effects([rim])


def painted(task: task_lib.Task) -> list[str]:
    """Returns the regions in the order in which they are drawn: inner ones last, on top."""
    return [task.region_names[place] for place in task.painting]


def probability_lines(
    panel: mpl_axes.Axes,
    probability: Float[np.ndarray, "rows columns"],
    pixel_mm: tuple[float, float],
    look: Look,
) -> None:
    """Draws the iso-levels of a region's probability on a slice as drawn."""
    padded = np.pad(probability, 1)
    rows, columns = (
        (np.arange(size) - 0.5) * step for size, step in zip(padded.shape, pixel_mm, strict=True)
    )
    for level in LEVELS:
        if padded.max() > level:
            panel.contour(
                columns,
                rows,
                padded,
                levels=[level],
                colors=[look.colour],
                linewidths=0.7 * look.width,
                linestyles=[LEVEL_STYLES[level]],
            )


def mark_edges(panel: mpl_axes.Axes, plane: Plane) -> None:
    """Writes what lies at the four edges: R, L, A, P, S or I."""
    places = {
        plane.left: (0.015, 0.5, "left", "center"),
        plane.right: (0.985, 0.5, "right", "center"),
        plane.top: (0.5, 0.985, "center", "top"),
        plane.bottom: (0.5, 0.015, "center", "bottom"),
    }
    for letter, (x, y, horizontal, vertical) in places.items():
        panel.text(
            x,
            y,
            letter,
            transform=panel.transAxes,
            ha=horizontal,
            va=vertical,
            color="white",
            fontsize=11,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="black")],
        )


def scale_bar(panel: mpl_axes.Axes) -> None:
    """Draws 5 cm at the lower left, or 1 cm where 5 do not fit."""
    left, right = panel.get_xlim()
    length_mm = 50.0 if right - left >= 4 + 50 else 10.0
    bottom = panel.get_ylim()[0] - 3
    panel.plot([4, 4 + length_mm], [bottom, bottom], color="white", linewidth=2)
    panel.text(
        4, bottom - 2, f"{length_mm / 10:.0f} cm", color="white", fontsize=9, va="bottom", ha="left"
    )


def legend_columns(labels: Sequence[str], inches: float, fontsize: float) -> int:
    """Returns how many columns of a legend fit into a width: all, or equally wide ones."""
    # Handle, gaps, and what letters take on average, in units of the font's size.
    widths = [fontsize / 72 * (6.0 + 0.55 * len(label)) for label in labels]
    return len(labels) if sum(widths) <= inches else max(1, int(inches / max(widths)))


def head_and_foot(
    figure: mpl_figure.Figure, heading: str, note: str, regions: Sequence[str]
) -> None:
    """Writes a heading above a black sheet, and below it the regions' colours under `note`."""
    width, height = figure.get_size_inches()
    figure.suptitle(heading, color="white", fontsize=12, y=1 - 0.08 / height, va="top")
    handles = [
        mpl_lines.Line2D([], [], color=look.colour, linewidth=3, label=name)
        for name, look in looks(regions).items()
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / height),
        ncols=legend_columns(list(regions), width, 9),
        frameon=False,
        labelcolor="white",
        title=note,
        title_fontproperties={"size": 9},
        fontsize=9,
    ).get_title().set_color("white")
