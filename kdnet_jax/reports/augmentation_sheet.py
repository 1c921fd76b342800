"""One picture of what the augmentation does: a row per part, its strengths from left to right."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment, spatial
from kdnet_jax.augment import draws as augment_draws
from kdnet_jax.core import typed
from kdnet_jax.data.loading import patches
from kdnet_jax.data.scans import prepare
from kdnet_jax.drawing import planes

_AXIAL: Final = 0  # of the SPL axes, the one that is cut
_STRENGTHS: Final = 4  # columns beside the patch as it is
_DRAWN_ROWS: Final = 3
_CELL_INCHES, _CAPTION_INCHES, _NAME_INCHES = 2.1, 0.4, 1.7
_CAPTION_COLUMNS: Final = 32
_HEAD_INCHES, _FOOT_INCHES = 0.9, 0.6


class Scene(NamedTuple):
    """What is augmented and shown.

    Attributes:
        image: a crop of one sequence, 0 is background.
        label: its classes.
        patch: the size that is shown, in the middle of the crop.
        index: the axial slice that is shown, of the patch.
    """

    image: Float[np.ndarray, "D H W 1"]
    label: Integer[np.ndarray, "D H W"]
    patch: tuple[int, int, int]
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """An axial slice as drawn, its classes, and what was done to it."""

    view: Float[np.ndarray, "h w"]
    classes: Integer[np.ndarray, "h w"]
    caption: str


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A part of the augmentation: its name, how often it is drawn, and its cells."""

    name: str
    chance: str
    cells: Sequence[Cell]


def make_scene(
    case: prepare.PreparedCase,
    sequence: str,
    patch: tuple[int, int, int],
    options: augment.AugmentOptions,
    *,
    task: task_lib.Task,
) -> Scene:
    """Cuts a crop as training does, centred on the middle of what is segmented."""
    # "d h w m" and "d h w"
    shape = case.image.shape[:3]
    classes = np.zeros(shape, np.uint8) if case.label is None else case.label
    found = np.argwhere(classes)
    centre = found.mean(0).round() if len(found) else np.array(shape) // 2
    size = augment.source_patch(patch, options)
    margin = np.subtract(size, patch) // 2
    middle = patches.centred_start(shape, patch, centre.tolist())
    start = np.subtract(middle, margin).tolist()
    image = patches.crop(case.image, start, size)[..., [case.modalities.index(sequence)]]
    label = patches.crop(classes, start, size)
    label = np.where(label < len(task.classes), label, 0).astype(np.uint8)
    inner = np.asarray(spatial.middle(jnp.asarray(label), patch))
    box = [slice(0, edge) for edge in patch]
    return Scene(image, label, patch, planes.slices_of_interest([inner > 0], box)[_AXIAL])


# --- Rows --------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part, how a strength of it is written, and what is drawn for that.

    Its strengths go from the lowest to the highest of its range, both added to `middle`.
    """

    name: str
    caption: str
    drawn: Callable[[float], typed.Json]
    middle: float = 0.0


_NOTHING: Final = {"geometry": None, "parts": {}, "flips": np.zeros(3, bool)}


def make_rows(scene: Scene, options: augment.AugmentOptions, key: jax.Array) -> list[Row]:
    """Applies each part that can be drawn over its range, then draws all as training does."""
    apply = jax.jit(augment.one_sample(options, scene.patch))

    def cell(drawn: typed.Json, caption: str) -> Cell:
        draws = augment_draws.Draws(**_NOTHING | drawn, keys=key)
        return _cell(scene, apply(scene.image, scene.label, draws), caption)

    as_it_is = cell({}, "as it is")
    rows = []
    for part in _parts(scene.patch, key):
        chance = options.chances[part.name]
        if chance.probability:
            strengths = part.middle + np.linspace(chance.low, chance.high, _STRENGTHS)
            cells = [cell(part.drawn(x), part.caption.format(x)) for x in strengths]
            rows.append(Row(part.name, f"in {chance.probability:.0%}", [as_it_is, *cells]))
    flips = [
        cell({"flips": np.array([letter == axis for letter in "dhw"])}, axis)
        for axis in options.flip_axes
    ]
    if flips:
        rows.append(Row("flip_axes", "each in 50%", [as_it_is, *flips]))
    return rows + _drawn_rows(scene, options, key)


def _parts(patch: tuple[int, int, int], key: jax.Array) -> list[_Part]:
    """Returns the parts in the order in which they are applied."""

    def intensity(name: str, shape: tuple[int, ...] = (1,)) -> Callable[[float], typed.Json]:
        return lambda x: {"parts": {name: (np.bool_(True), np.full(shape, x, np.float32))}}

    def brightness(factor: float, offset: float) -> typed.Json:
        values = tuple(np.full(1, x, np.float32) for x in (factor, offset))
        return {"parts": {"brightness": (None, values)}}

    return [
        _Part("rotation", "{:+.0f}°", _rotation),
        _Part("zoom_out", "× {:.2f}", lambda x: _geometry(x * np.eye(3))),
        _Part("elastic", "up to {:.1f} voxels", lambda x: _bend(x, patch, key)),
        _Part("noise", "deviation {:.3f}", intensity("noise", ())),
        _Part("blur", "sigma {:.2f} voxels", intensity("blur", (1, 3))),
        _Part("scale", "× {:.2f}", lambda x: brightness(x, 0.0), middle=1.0),
        _Part("shift", "{:+.2f}", lambda x: brightness(1.0, x)),
        _Part("contrast", "× {:.2f}", intensity("contrast")),
        _Part("low_resolution", "{:.0%} per axis", intensity("low_resolution")),
        _Part("gamma_inverted", "exponent {:.2f}", intensity("gamma_inverted")),
        _Part("gamma", "exponent {:.2f}", intensity("gamma")),
    ]


def _geometry(matrix: Array | np.ndarray, bend: Array | None = None) -> typed.Json:
    drawn, matrix = jnp.asarray(True), jnp.asarray(matrix, jnp.float32)
    return {"geometry": spatial.Geometry(drawn, matrix, bend)}


def _rotation(degrees: float) -> typed.Json:
    # About the d axis: within the axial slice that is shown.
    angles = jnp.radians(jnp.array([[degrees, 0.0, 0.0]]))
    return _geometry(spatial.rotation_matrix(angles)[0])


def _bend(reach: float, patch: tuple[int, int, int], key: jax.Array) -> typed.Json:
    return _geometry(np.eye(3), spatial.draw_bend(key, patch, jnp.array([reach]))[0])


def _drawn_rows(scene: Scene, options: augment.AugmentOptions, key: jax.Array) -> list[Row]:
    run = jax.jit(augment.one_sample(options, scene.patch))
    per_row = _STRENGTHS + 1
    samples = _DRAWN_ROWS * per_row
    drawn = augment_draws.draw(key, samples, 1, scene.patch, options.chances)
    cells = []
    for sample in range(samples):
        own = jax.tree.map(lambda array, sample=sample: array[sample], drawn)
        made = run(scene.image, scene.label, own)
        cells.append(_cell(scene, made, _names(own, options.flip_axes)))
    return [
        Row("as in training", "drawn anew", cells[first : first + per_row])
        for first in range(0, samples, per_row)
    ]


def _names(drawn: augment_draws.Draws, flip_axes: str) -> str:
    """Names what was drawn for a sample."""
    names = ["geometry"] if drawn.geometry is not None and drawn.geometry.drawn else []
    factor, offset = drawn.parts["brightness"][1]
    if factor != 1 or offset != 0:
        names.append("brightness")
    names += [name for name, (hit, _) in drawn.parts.items() if hit is not None and hit]
    hits = zip("dhw", drawn.flips, strict=True)
    flipped = "".join(axis for axis, hit in hits if hit and axis in flip_axes)
    return ", ".join([*names, f"flip {flipped}"] if flipped else names) or "nothing"


def _cell(scene: Scene, made: tuple[jax.Array, jax.Array], caption: str) -> Cell:
    image, label = (np.asarray(array[scene.index]) for array in made)
    return Cell(image[..., 0], label, caption)


# --- The picture -------------------------------------------------------------------------------


def draw(rows: Sequence[Row], title: str, *, task: task_lib.Task) -> mpl_figure.Figure:
    """Draws the rows; all cells have the grey scale of the first cell, as it is."""
    first = rows[0].cells[0].view
    window = planes.grey_window(first, first != 0)
    columns = _STRENGTHS + 1
    height = len(rows) * (_CELL_INCHES + _CAPTION_INCHES) + _HEAD_INCHES + _FOOT_INCHES
    width = _NAME_INCHES + columns * _CELL_INCHES
    figure = mpl_figure.Figure(figsize=(width, height), facecolor="black")
    grid = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _NAME_INCHES / width,
            "right": 0.995,
            "bottom": _FOOT_INCHES / height,
            "top": 1 - _HEAD_INCHES / height,
            "wspace": 0.03,
            "hspace": _CAPTION_INCHES / _CELL_INCHES,
        },
    )
    for row, panels in zip(rows, grid, strict=True):
        style = {"transform": panels[0].transAxes, "ha": "right", "va": "center"}
        panels[0].text(-0.06, 0.56, row.name, color="white", fontsize=11, weight="bold", **style)
        panels[0].text(-0.06, 0.44, row.chance, color="#DDDDDD", fontsize=9, **style)
        for panel in panels:
            panel.set_axis_off()
        for cell, panel in zip(row.cells, panels, strict=False):
            _draw_cell(panel, cell, window, task)
    planes.head_and_foot(
        figure,
        title,
        "outline of the label as it is moved along; one axial slice, the patient's right on "
        "the left before flips",
        task.region_names,
    )
    return figure


def _draw_cell(
    panel: mpl_axes.Axes, cell: Cell, window: tuple[float, float], task: task_lib.Task
) -> None:
    voxel = (1.0, 1.0)
    view = cell.view[None]
    planes.draw_image(panel, view, view != 0, _AXIAL, 0, (1.0, *voxel), window)
    planes.outline(panel, cell.classes, voxel, "reference", task)
    # The axes of a flip stay on its line.
    caption = textwrap.fill(
        cell.caption.replace("flip ", "flip\N{NO-BREAK SPACE}"), _CAPTION_COLUMNS
    )
    panel.set_title(caption, color="white", fontsize=8.5, pad=2.5)
