"""Pictures of cases as matplotlib figures without global state, and figures as files."""

import base64
import contextlib
import io
import math
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib import artist as mpl_artist
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import text as mpl_text

from kdnet_jax import task as task_lib
from kdnet_jax.core import files
from kdnet_jax.drawing import planes
from kdnet_jax.errors import UserError

DPI: Final = 110
_LEGEND_FONT: Final = 11
_LEGEND_ROW: Final = 0.25  # inches

# --- A case ------------------------------------------------------------------------------------


def shown_sequence(modalities: Sequence[str], task: task_lib.Task) -> str:
    """Returns the sequence that overlays show: the student's if it is one, else the first."""
    student = task.student
    return student if student is not None and student in modalities else modalities[0]


def overlay(
    image: Float[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "d h w"] | None,
    prediction: Integer[np.ndarray, "d h w"] | None,
    *,
    spacing: planes.Spacing,
    title: str,
    task: task_lib.Task,
    foreground: Bool[np.ndarray, "d h w"] | None = None,
    probabilities: Float[np.ndarray, "d h w r"] | None = None,
) -> mpl_figure.Figure:
    """Three planes through the largest extent of what is segmented, plain and with contours.

    Args:
      image: One modality in SPL.
      reference: Classes on the same grid; drawn as solid lines.
      prediction: Classes on the same grid; drawn as dashed lines.
      spacing: mm per axis.
      title: Stands above the planes.
      task: Whose regions are outlined.
      foreground: What is not background; without it, all that is not 0.
      probabilities: One channel per region, in the order of the task; their iso-levels are drawn
        in a third row.

    Returns:
      A figure with rows of axes (plain, outlined, and with probabilities) in the order axial,
      coronal, sagittal. Each plane is the one with most voxels of all regions in the reference,
      else in the prediction, else the middle.
    """
    image = np.asarray(image, np.float32)
    given = {"reference": reference, "prediction": prediction}
    masks = {name: classes for name, classes in given.items() if classes is not None}
    inside = np.not_equal(image, 0) if foreground is None else foreground
    box = planes.view_box(inside, masks.values(), spacing)
    hulls = [task.hull_mask(classes) for classes in masks.values()]
    window = planes.grey_window(image, inside)
    rows = 2 if probabilities is None else 3
    names = [*task.region_names, *masks]
    columns = planes.legend_columns(names, planes.PANELS_INCHES, _LEGEND_FONT)
    foot = 0.75 + _LEGEND_ROW * (math.ceil(len(names) / columns) - 1)
    figure, panels = planes.panels(box, spacing, rows, foot)
    for axis, index in enumerate(planes.slices_of_interest(hulls, box)):
        here = index - box[axis].start
        for panel in panels[:, axis]:
            planes.draw_image(panel, image[box], inside[box], axis, here, spacing, window)
            planes.mark_edges(panel, planes.PLANES[axis])
        for name, classes in masks.items():
            view = planes.to_screen(classes[box], axis, here)
            planes.outline(panels[1, axis], view, planes.pixel(spacing, axis), name, task)
        if probabilities is not None:
            _draw_probabilities(panels[2, axis], probabilities[box], axis, here, spacing, task)
        position = f"{planes.PLANES[axis].name}, slice {index + 1} of {image.shape[axis]}"
        panels[0, axis].set_title(position, color="white", fontsize=10)
    planes.scale_bar(panels[0, 0])
    figure.suptitle(title, color="white", fontsize=12, y=0.985)
    _overlay_legend(figure, list(masks), task, columns, probabilities is not None)
    return figure


def _draw_probabilities(
    panel: mpl_axes.Axes,
    probabilities: Float[np.ndarray, "d h w r"],
    axis: int,
    index: int,
    spacing: planes.Spacing,
    task: task_lib.Task,
) -> None:
    looks = planes.looks(task.region_names)
    for region in planes.painted(task):
        channel = probabilities[..., task.region_names.index(region)]
        view = planes.to_screen(channel, axis, index)
        planes.probability_lines(panel, view, planes.pixel(spacing, axis), looks[region])


def _overlay_legend(
    figure: mpl_figure.Figure,
    names: Sequence[str],
    task: task_lib.Task,
    columns: int,
    probability: bool,
) -> None:
    handles = [
        mpl_lines.Line2D([], [], color=look.colour, linewidth=1.5 * look.width, label=region)
        for region, look in planes.looks(task.region_names).items()
    ]
    handles += [
        mpl_lines.Line2D(
            [], [], color="white", linewidth=1.6, linestyle=planes.LINE_STYLES[name], label=name
        )
        for name in names
    ]
    levels = [
        mpl_lines.Line2D(
            [], [], color="white", linewidth=1.2, linestyle=style, label=f"probability {level}"
        )
        for level, style in planes.LEVEL_STYLES.items()
    ]
    rows = [handles, levels] if probability else [handles]
    for place, row in enumerate(reversed(rows)):
        figure.legend(
            handles=row,
            loc="lower center",
            bbox_to_anchor=(0.5, (0.05 + 0.32 * place) / figure.get_figheight()),
            ncols=min(columns, len(row)),
            frameon=False,
            labelcolor="white",
            fontsize=_LEGEND_FONT,
            handlelength=3.2,
        )


# --- Files -------------------------------------------------------------------------------------


def pixels(figure: mpl_figure.Figure) -> tuple[int, int]:
    """Returns width and height of the figure as a picture."""
    width, height = figure.get_size_inches() * DPI
    return int(width), int(height)


def _texts(
    artist: mpl_artist.Artist, left_out: Collection[mpl_artist.Artist]
) -> Iterator[mpl_text.Text]:
    """Yields the texts within an artist, but for those within some."""
    for child in artist.get_children():
        if isinstance(child, mpl_text.Text):
            yield child
        if child not in left_out:
            yield from _texts(child, left_out)


@contextlib.contextmanager
def _plain_texts(figure: mpl_figure.Figure) -> Iterator[None]:
    """Lets names be drawn as they are: a $ begins no formula, a missing letter is a box."""
    # Matplotlib writes the powers of ten on a logarithmic axis as formulas, and makes the ticks of
    # a panel without axes when it is asked for them.
    left_out = {
        axis
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        if axis.get_scale() != "linear" or not panel.axison
    }
    for axis in left_out:
        axis.label.set_parse_math(False)
    for text in _texts(figure, left_out):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def to_png_bytes(figure: mpl_figure.Figure, dpi: int = DPI) -> bytes:
    """Returns the figure as a PNG."""
    buffer = io.BytesIO()
    # No date and version inside: equal figures give equal bytes.
    with _plain_texts(figure):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: mpl_figure.Figure, path: str | os.PathLike[str], dpi: int = DPI) -> None:
    """Writes the figure as a PNG file, beside and then renamed; makes the folder if needed.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        with files.replacing(path) as beside:
            beside.write_bytes(to_png_bytes(figure, dpi))
    except OSError as error:
        raise UserError(
            f"{path}: the picture cannot be written ({error.strerror}). Give another place."
        ) from error


def to_data_uri(figure: mpl_figure.Figure) -> str:
    """Returns the figure as a picture within a `data:` address.

    It is a WebP: scans in it are a fifth of their size as PNG.
    """
    buffer = io.BytesIO()
    # Below this, the colours of thin lines fade into the grey around them.
    with _plain_texts(figure):
        figure.savefig(buffer, format="webp", dpi=DPI, pil_kwargs={"quality": 90, "method": 4})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
