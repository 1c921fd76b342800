"""One picture of a collection: a row per case, an axial slice of each sequence, the findings."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Integer
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import planes

_AXIAL: Final = 0  # of the SPL axes, the one that is cut
_ROW_INCHES, _TEXT_INCHES, _HEAD_INCHES, _FOOT_INCHES = 1.9, 4.3, 0.75, 0.5
_TEXT_COLUMNS, _TEXT_LINES = 62, 9
# Light on black, and distinguished by the word and the sign before them as well.
_INKS: Final = {"error": "#FF8C69", "warning": "#F0E442", "": "#FFFFFF"}
_SIGNS: Final = {"error": "✕ ERROR", "warning": "! warning", "": "no finding"}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A case on the sheet.

    Attributes:
        case: the case id.
        severity: "error", "warning" or "" for the worst of its findings.
        findings: a sentence each.
        images: modality -> slice as drawn, 0 is background; what is missing is said.
        windows: modality -> black and white of the grey scale.
        classes: the reference in that slice, or None.
        pixel_mm: mm per row and per column.
    """

    case: str
    severity: str
    findings: Sequence[str]
    images: Mapping[str, Float[np.ndarray, "rows columns"]]
    windows: Mapping[str, tuple[float, float]]
    classes: Integer[np.ndarray, "rows columns"] | None
    pixel_mm: tuple[float, float]


def make_row(
    case: str,
    severity: str,
    findings: Sequence[str],
    volumes: Mapping[str, Float[np.ndarray, "d h w"]],
    classes: Integer[np.ndarray, "d h w"] | None,
    spacing: planes.Spacing,
    *,
    task: task_lib.Task,
) -> Row:
    """Cuts the axial slice with most of all regions, or the middle one, out of a case's volumes.

    Args:
        case: the case id.
        severity: see `Row`.
        findings: see `Row`.
        volumes: modality -> intensities in SPL, 0 is background.
        classes: the reference on the same grid, or None.
        spacing: mm per axis.
        task: what is segmented.
    """
    if not volumes:
        return Row(case, severity, findings, {}, {}, None, (1.0, 1.0))
    box = planes.view_box(np.any([v != 0 for v in volumes.values()], axis=0), [], spacing)
    hulls = [] if classes is None else [task.hull_mask(classes)]
    index = planes.slices_of_interest(hulls, box)[_AXIAL]
    cut = (index, *box[1:])
    return Row(
        case,
        severity,
        findings,
        {name: np.array(volume[cut]) for name, volume in volumes.items()},
        {name: planes.grey_window(volume, volume != 0) for name, volume in volumes.items()},
        None if classes is None else np.array(classes[cut]),
        planes.pixel(spacing, _AXIAL),
    )


def draw(
    rows: Sequence[Row], modalities: Sequence[str], total: int, title: str, *, task: task_lib.Task
) -> mpl_figure.Figure:
    """Draws the rows in their order.

    Args:
        rows: the cases that are shown.
        modalities: the columns.
        total: how many cases there are; the heading says so where not all are shown.
        title: names the collection.
        task: what is segmented.
    """
    width = _ROW_INCHES * len(modalities) + _TEXT_INCHES
    height = _ROW_INCHES * len(rows) + _HEAD_INCHES + _FOOT_INCHES
    figure = mpl_figure.Figure(figsize=(width, height), facecolor="black")
    grid = figure.subplots(
        len(rows),
        1 + len(modalities),
        squeeze=False,
        gridspec_kw={
            "width_ratios": (_TEXT_INCHES, *[_ROW_INCHES] * len(modalities)),
            "left": 0.01,
            "right": 0.995,
            "bottom": _FOOT_INCHES / height,
            "top": 1 - _HEAD_INCHES / height,
            "wspace": 0.02,
            "hspace": 0.04,
        },
    )
    for row, panels in zip(rows, grid, strict=True):
        _write_findings(panels[0], row)
        for modality, panel in zip(modalities, panels[1:], strict=True):
            _draw_thumbnail(panel, row, modality, task)
    for modality, panel in zip(modalities, grid[0, 1:], strict=True):
        panel.set_title(modality, color="white", fontsize=12)
    _head_and_foot(figure, len(rows), total, title, task)
    return figure


def _write_findings(panel: mpl_axes.Axes, row: Row) -> None:
    panel.set_axis_off()
    lines = [line for text in row.findings for line in textwrap.wrap(f"- {text}", _TEXT_COLUMNS)]
    if len(lines) > _TEXT_LINES:
        lines = [*lines[: _TEXT_LINES - 1], "... (the list of problems has it all)"]
    style = {"transform": panel.transAxes, "ha": "left", "va": "top"}
    ink = _INKS[row.severity]
    panel.text(0.01, 0.97, row.case, color="white", fontsize=11, weight="bold", **style)
    panel.text(0.01, 0.85, _SIGNS[row.severity], color=ink, fontsize=10, weight="bold", **style)
    panel.text(0.01, 0.74, "\n".join(lines), color="#DDDDDD", fontsize=8, **style)


def _draw_thumbnail(panel: mpl_axes.Axes, row: Row, modality: str, task: task_lib.Task) -> None:
    view = row.images.get(modality)
    if view is None:
        panel.set_axis_off()
        style = {"transform": panel.transAxes, "ha": "center", "va": "center"}
        panel.text(0.5, 0.5, f"no {modality}\nto show", color="white", fontsize=10, **style)
        return
    spacing = (1.0, *row.pixel_mm)
    planes.draw_image(panel, view[None], view[None] != 0, _AXIAL, 0, spacing, row.windows[modality])
    if row.classes is not None:
        planes.outline(panel, row.classes, row.pixel_mm, "reference", task)
    for letter, x, side in (("R", 0.02, "left"), ("L", 0.98, "right")):
        style = {"transform": panel.transAxes, "ha": side, "va": "center"}
        panel.text(x, 0.5, letter, color="white", fontsize=8, **style)


def _head_and_foot(
    figure: mpl_figure.Figure, shown: int, total: int, title: str, task: task_lib.Task
) -> None:
    number = f"all {total} cases" if shown == total else f"{shown} of {total} cases"
    planes.head_and_foot(
        figure,
        f"{title}\n{number}, those with problems first; axial slice with most {task.noun}",
        "outline of the reference; the patient's right is on the left (R)",
        task.region_names,
    )
