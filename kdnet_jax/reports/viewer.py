"""The axial slices of a case as data that the report's own script scrolls through.

Why not a bundled volume viewer: NiiVue is over 1 MB of script, and a float volume of 240x240x155
tens of MB. Here a case is one picture with all its slices side by side (WebP, grey) and outlines as
SVG paths, well under 1 MB, and every part of it can be read back and tested.
"""

import base64
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Final

import contourpy
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.drawing import planes

Slices = tuple[slice, ...]

# The report shows up to 12 cases (ten worst, median, best) and is to stay below 15 MB.
CASE_BYTES: Final = 900_000
# Outlines are whole numbers of half or quarter voxels, at most about half a millimetre.
_UNIT_MM: Final = 0.6
_QUALITY: Final = 60
# Beyond every fourth slice nothing useful is left to see.
_COARSEST: Final = 4


def build(
    image: Float[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "d h w"],
    prediction: Integer[np.ndarray, "d h w"],
    probabilities: Float[np.ndarray, "d h w r"] | None,
    *,
    spacing: planes.Spacing,
    task: task_lib.Task,
    foreground: Bool[np.ndarray, "d h w"] | None = None,
    max_bytes: int = CASE_BYTES,
) -> typed.Json:
    """Returns the slices of a case, cropped to the foreground, and the outlines on them.

    Where they exceed `max_bytes`, every second slice is kept at half the resolution, then every
    third at a third, and so on to a fourth; outlines keep the resolution of the grid.

    Args:
      image: One modality in SPL.
      reference: Classes on the same grid.
      prediction: Classes on the same grid.
      probabilities: One channel per region, in the order of the task, if known.
      spacing: mm per axis.
      task: Whose regions are outlined.
      foreground: What is not background; without it, all that is not 0.
      max_bytes: The budget, as JSON.

    Returns:
      Values for JSON: `sheet` (data address of the picture; its cells run from left to right, then
      down), `columns`, `cell` (width, height in pixels), `size` (width, height of a slice in voxels
      of the grid, rounded up to whole pixels), `pixel_mm` (width, height of such a voxel), `slices`
      (their numbers on the grid, from 1), `depth` (slices of the grid), `start` (number of the
      slice with most of it), `units` and `layers`: for each source, region and level the line's
      colour and width and the SVG paths by slice, in 1/`units` voxels from the upper left corner of
      the picture.
    """
    image = np.asarray(image, np.float32)
    inside = np.not_equal(image, 0) if foreground is None else foreground
    box = planes.view_box(inside, (reference, prediction), spacing)
    hulls = [task.hull_mask(classes) for classes in (reference, prediction)]
    most = planes.slices_of_interest(hulls, box)[0]
    units = 2 if min(spacing[1:]) / 2 <= _UNIT_MM else 4
    layers = list(_layers(reference[box], prediction[box], probabilities, box, units, task))
    grey = _grey(image, inside, box)
    for step in range(1, _COARSEST + 1):
        # Counted from the slice with most of the regions, so that this one is kept.
        kept = range((most - box[0].start) % step, len(grey), step)
        data = _view(grey, layers, kept, step) | {
            "pixel_mm": [spacing[2], spacing[1]],
            "slices": [box[0].start + index + 1 for index in kept],
            "depth": image.shape[0],
            "units": units,
            "start": most + 1,
        }
        if len(json.dumps(data)) <= max_bytes:
            break
    return data


def _view(
    grey: UInt8[np.ndarray, "d h w"], layers: Sequence[dict], kept: range, step: int
) -> typed.Json:
    cells = [Image.fromarray(grey[index]).reduce(step) for index in kept]
    columns = math.ceil(math.sqrt(len(cells)))
    return {
        "sheet": _sheet(cells, columns),
        "columns": columns,
        "cell": list(cells[0].size),
        # A last pixel of fewer voxels is shown as wide as the others, so that outlines fit it.
        "size": [side * step for side in cells[0].size],
        "layers": [
            layer | {"paths": [layer["paths"][index] for index in kept]} for layer in layers
        ],
    }


def _grey(
    image: Float[np.ndarray, "d h w"], foreground: Bool[np.ndarray, "d h w"], box: Slices
) -> UInt8[np.ndarray, "D H W"]:
    low, high = planes.grey_window(image, foreground)
    view = image[box]
    levels = np.clip((view - low) / (high - low), 0, 1) * 255
    # A z-scored image may have its background, 0, amid its greys.
    inside = np.stack([np.asarray(ndimage.binary_fill_holes(each)) for each in foreground[box]])
    return np.where(inside, np.rint(levels), 0).astype(np.uint8)


def _sheet(cells: Sequence[Image.Image], columns: int) -> str:
    width, height = cells[0].size
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("L", (columns * width, rows * height))
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- Outlines ----------------------------------------------------------------------------------


def _layers(
    reference: Integer[np.ndarray, "d h w"],
    prediction: Integer[np.ndarray, "d h w"],
    probabilities: Float[np.ndarray, "D H W r"] | None,
    box: Slices,
    units: int,
    task: task_lib.Task,
) -> Iterator[typed.Json]:
    """Yields what can be shown: reference and prediction, then the levels of the probability.

    Outer regions come first, so that the inner ones are drawn on top.
    """
    regions, looks = planes.painted(task), planes.looks(task.region_names)
    for name, classes in (("reference", reference), ("prediction", prediction)):
        for region in regions:
            field = task.mask(classes, region).astype(np.float32)
            yield _layer(name, region, looks[region], 0.5, field, units)
    if probabilities is None:
        return
    for region, level in itertools.product(regions, planes.LEVELS):
        field = probabilities[(*box, task.region_names.index(region))]
        yield _layer("probability", region, looks[region], level, field, units, thin=True)


def _layer(
    source: str,
    region: str,
    look: planes.Look,
    level: float,
    field: Float[np.ndarray, "d h w"],
    units: int,
    thin: bool = False,
) -> typed.Json:
    paths = [outline(each, level, units) for each in field]
    return {
        "source": source,
        "region": region,
        "level": level,
        "colour": look.colour,
        # A screen's pixels are finer than a figure's points.
        "width": round(1.4 * look.width * (0.7 if thin else 1), 2),
        "paths": paths,
    }


def outline(field: Float[np.ndarray, "h w"], level: float, units: int) -> str:
    """Returns the SVG path around the pixels above `level`, "" if there are none.

    Numbers are 1/`units` pixels from the upper left corner of the picture.
    """
    if not (field > level).any():
        return ""
    # A rim below the level closes what touches the edge; pixel centres lie at one half.
    padded = np.pad(field, 1)
    lines = contourpy.contour_generator(z=padded).lines(level)
    return "".join(_closed(np.rint((np.asarray(line) - 0.5) * units).astype(int)) for line in lines)


def _closed(points: Integer[np.ndarray, "n 2"]) -> str:
    """Returns a closed line as an SVG path of relative moves, straight runs as one move."""
    moves = np.diff(points, axis=0)
    moves = moves[moves.any(axis=1)]
    if len(moves) < 3:
        return ""
    turns = np.flatnonzero(np.any(moves[1:] != moves[:-1], axis=1)) + 1
    runs = np.add.reduceat(moves, [0, *turns.tolist()])
    words = " ".join(f"{x} {y}" for x, y in runs[:-1])
    return f"M{points[0, 0]} {points[0, 1]}l{words}z".replace(" -", "-")
