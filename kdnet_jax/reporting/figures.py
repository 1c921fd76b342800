"""Pictures of cases, trainings and comparisons, as matplotlib figures without global state.

Colours follow Okabe and Ito, whose hues stay apart for colour-blind readers.
"""

import base64
import contextlib
import io
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Integer
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from scipy import ndimage

from kdnet_jax import conventions
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases
from kdnet_jax.reporting import planes

Spacing = tuple[float, float, float]

# On white.
LINE_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A")
_REGION_INKS: Final = {"ET": "#D55E00", "TC": "#B58900", "WT": "#0072B2"}
_PAPER, _INK = "#ffffff", "#1b1f24"
_NOT_LOSSES: Final = ("step", "split", "epoch", "learning_rate", "gradient_norm")


# --- A case ------------------------------------------------------------------------------------


def shown_sequence(modalities: Sequence[str]) -> str:
    """Returns the sequence that overlays show: T1ce where the network sees it, else its first."""
    return "t1ce" if "t1ce" in modalities else modalities[0]


def overlay(
    image: Float[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "d h w"] | None,
    prediction: Integer[np.ndarray, "d h w"] | None,
    *,
    spacing: Spacing,
    title: str,
    regions: Sequence[str] = conventions.REGIONS,
) -> mpl_figure.Figure:
    """Three planes through the tumour's largest extent, as they are and with contours.

    Args:
      image: One modality in SPL; exact zeros around the brain are background.
      reference: Classes on the same grid; drawn as solid lines.
      prediction: Classes on the same grid; drawn as dashed lines.
      spacing: mm per axis.
      title: Stands above the planes.
      regions: Regions that are outlined.

    Returns:
      A figure with two rows of axes (plain, outlined) in the order axial, coronal, sagittal. Each
      plane is the one with most tumour of the reference, else of the prediction, else the middle.
    """
    image = np.asarray(image, np.float32)
    masks = {"reference": reference, "prediction": prediction}
    masks = {name: classes for name, classes in masks.items() if classes is not None}
    box = planes.view_box(image, masks.values(), spacing)
    tumours = [conventions.region_mask(classes, "WT") for classes in masks.values()]
    window = planes.grey_window(image)
    figure, panels = planes.panels(box, spacing)
    for axis, index in enumerate(planes.slices_of_interest(tumours, box)):
        here = index - box[axis].start
        for panel in panels[:, axis]:
            planes.draw_image(panel, image[box], axis, here, spacing, window)
            planes.mark_edges(panel, planes.PLANES[axis])
        for name, classes in masks.items():
            view = planes.to_screen(classes[box], axis, here)
            planes.outline(panels[1, axis], view, planes.pixel(spacing, axis), name, regions)
        position = f"{planes.PLANES[axis].name}, slice {index + 1} of {image.shape[axis]}"
        panels[0, axis].set_title(position, color="white", fontsize=10)
    planes.scale_bar(panels[0, 0])
    figure.suptitle(title, color="white", fontsize=12, y=0.985)
    _overlay_legend(figure, list(masks), regions)
    return figure


def _overlay_legend(
    figure: mpl_figure.Figure, names: Sequence[str], regions: Sequence[str]
) -> None:
    handles = [
        mpl_lines.Line2D([], [], color=planes.REGION_COLOURS[region], linewidth=3, label=region)
        for region in regions
    ]
    handles += [
        mpl_lines.Line2D(
            [], [], color="white", linewidth=1.6, linestyle=planes.LINE_STYLES[name], label=name
        )
        for name in names
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.005),
        ncols=len(handles),
        frameon=False,
        labelcolor="white",
        fontsize=11,
        handlelength=2.8,
    )


# --- A training --------------------------------------------------------------------------------


def curves(rows: Sequence[Mapping[str, Any]]) -> mpl_figure.Figure:
    """Loss and its terms over the steps, and the validation's Dice per region.

    Args:
      rows: Rows of `metrics.jsonl`. A thin line is the value as logged, the thick one its running
        mean over about a thirtieth of the rows.
    """
    figure = mpl_figure.Figure(figsize=(9.0, 3.6), facecolor=_PAPER, layout="constrained")
    losses, dice = figure.subplots(1, 2)
    train = [row for row in rows if row["split"] == "train"]
    validation = [row for row in rows if row["split"] == "validation"]
    _draw_losses(losses, train, validation)
    for region in conventions.REGIONS:
        steps, values = _series(validation, f"dice_{region.lower()}")
        if steps.size:
            dice.plot(
                steps, values, marker="o", markersize=3, color=_REGION_INKS[region], label=region
            )
    _finish(losses, "step", "loss")
    _finish(dice, "step", "validation Dice")
    dice.set_ylim(0, 1)
    return figure


def _draw_losses(
    panel: mpl_axes.Axes, train: Sequence[Mapping], validation: Sequence[Mapping]
) -> None:
    names = list(dict.fromkeys(name for row in train for name in row if _is_loss(name)))
    for name, colour in zip(names, _cycle(_INK, len(names)), strict=True):
        steps, values = _series(train, name)
        panel.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
        width = 2.0 if name == "loss" else 1.3
        panel.plot(steps, _running_mean(values), color=colour, linewidth=width, label=name)
    steps, values = _series(validation, "loss")
    if steps.size:
        panel.plot(
            steps,
            values,
            color=_INK,
            marker="o",
            markersize=3,
            linestyle="--",
            label="loss, validation",
        )


def _is_loss(name: str) -> bool:
    return not name.startswith(("time_", "dice_")) and name not in _NOT_LOSSES


def _cycle(first: str, count: int) -> list[str]:
    return [first, *(LINE_COLOURS[i % len(LINE_COLOURS)] for i in range(count))][:count]


def _series(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    points = [(step, value) for step, value in points if value is not None and value == value]
    table = np.asarray(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_mean(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    size = max(1, values.size // 30)
    return ndimage.uniform_filter1d(values, size, mode="nearest") if values.size else values


# --- Runs beside each other --------------------------------------------------------------------


def dice_plot(runs: Mapping[str, Sequence[cases.RegionScore]]) -> mpl_figure.Figure:
    """Dice of every case, per region and run; a thin line joins one case in neighbouring runs.

    Args:
      runs: Scores by the run's name, in the order of the columns. Hollow dots are cases whose
        reference has none of the region; the bar with its number is the mean.
    """
    figure = mpl_figure.Figure(figsize=(9.0, 3.8), facecolor=_PAPER, layout="constrained")
    panels = figure.subplots(1, len(conventions.REGIONS), sharey=True)
    for panel, region in zip(panels, conventions.REGIONS, strict=True):
        columns = [[row for row in scores if row.region == region] for scores in runs.values()]
        _join_cases(panel, columns)
        for place, scores in enumerate(columns):
            _draw_dots(panel, place, scores)
        panel.set_xticks(range(len(runs)), list(runs))
        panel.set_xlim(-0.6, len(runs) - 0.3)
        panel.set_title(region, color=_INK, fontsize=11)
        _finish(panel, "", "Dice" if region == conventions.REGIONS[0] else "")
    panels[0].set_ylim(-0.03, 1.03)
    if any(row.ref_empty for scores in runs.values() for row in scores):
        hollow = {"marker": "o", "linestyle": "", "markerfacecolor": _PAPER, "color": _INK}
        handle = mpl_lines.Line2D([], [], **hollow, label="reference without the region")
        figure.legend(handles=[handle], loc="outside lower center", frameon=False, fontsize=9)
    return figure


def _jitter(count: int) -> Float[np.ndarray, "n"]:
    """Returns offsets within ±0.12, the same for the same count, so that dots do not hide."""
    golden = 0.6180339887
    return ((np.arange(count) * golden) % 1 - 0.5) * 0.24


def _draw_dots(panel: mpl_axes.Axes, place: int, scores: Sequence[cases.RegionScore]) -> None:
    if not scores:
        return
    colour = LINE_COLOURS[place % len(LINE_COLOURS)]
    values = np.asarray([row.dice for row in scores])
    faces = [_PAPER if row.ref_empty else colour for row in scores]
    panel.scatter(
        place + _jitter(len(scores)), values, s=22, c=faces, edgecolors=colour, alpha=0.85, zorder=3
    )
    mean = float(values.mean())
    panel.plot([place - 0.25, place + 0.25], [mean, mean], color=_INK, linewidth=2, zorder=4)
    panel.text(place + 0.28, mean, f"{mean:.3f}", color=_INK, fontsize=9, va="center", zorder=5)


def _join_cases(panel: mpl_axes.Axes, columns: Sequence[Sequence[cases.RegionScore]]) -> None:
    places = [
        {
            row.case: (place + shift, row.dice)
            for row, shift in zip(scores, _jitter(len(scores)), strict=True)
        }
        for place, scores in enumerate(columns)
    ]
    for left, right in itertools.pairwise(places):
        for case in left.keys() & right.keys():
            ends = np.asarray([left[case], right[case]])
            panel.plot(ends[:, 0], ends[:, 1], color="#9aa0a6", linewidth=0.6, zorder=1)


def _finish(panel: mpl_axes.Axes, x_label: str, y_label: str) -> None:
    panel.set_xlabel(x_label, color=_INK)
    panel.set_ylabel(y_label, color=_INK)
    panel.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[1]:
        panel.legend(frameon=False, fontsize=9)


# --- Files -------------------------------------------------------------------------------------


def to_png_bytes(figure: mpl_figure.Figure, dpi: int = 110) -> bytes:
    """Returns the figure as a PNG."""
    buffer = io.BytesIO()
    # No date and version inside: equal figures give equal bytes.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: mpl_figure.Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Writes the figure as a PNG file, beside and then renamed; makes the folder if needed.

    Raises:
        UserError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(to_png_bytes(figure, dpi))
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the picture cannot be written ({error.strerror}). Give another place."
        ) from error


def to_data_uri(figure: mpl_figure.Figure, dpi: int = 110) -> str:
    """Returns the figure as a PNG within a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(to_png_bytes(figure, dpi)).decode("ascii")
