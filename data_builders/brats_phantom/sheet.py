"""Contact sheet of phantom cases: every sequence beside the same slice with the reference.

    python -m data_builders.brats_phantom.sheet --figure=FILE.png

draws two cases.
"""

import pathlib
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from absl import flags
from jaxtyping import Shaped
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines

from kdnet_jax import cli
from kdnet_jax import task as task_lib
from kdnet_jax.data.phantom import phantom
from kdnet_jax.drawing import figures, planes
from kdnet_jax.errors import UserError

_FIGURE = flags.DEFINE_string("figure", None, "Where to draw two cases (.png).")
# One at the ventricles and one at the tentorium, of seed 0.
_SHOWN = (0, 4)

_AXIAL = 0
_PANEL_INCHES = 2.9


def draw(path: pathlib.Path, cases: Sequence[phantom.PhantomCase]) -> None:
    """Writes a PNG: two rows per case, the sequences plain and with the regions outlined.

    The slice is the axial one with the most tumour; the patient's right is on the left.
    """
    rows = 2 * len(cases)
    height = _PANEL_INCHES * 1.2 * rows + 0.6
    figure = mpl_figure.Figure(
        figsize=(4 * _PANEL_INCHES, height), facecolor="black", layout="constrained"
    )
    grid = figure.subplots(rows, len(task_lib.GLIOMA.modalities), squeeze=False)
    for number, case in enumerate(cases):
        _draw_case(grid[2 * number : 2 * number + 2], case)
    for panel, name in zip(grid[0], task_lib.GLIOMA.modalities, strict=True):
        panel.set_title(name, color="white", fontsize=13)
    _legend(figure)
    figures.save_png(figure, path)


def _draw_case(panels: np.ndarray, case: phantom.PhantomCase) -> None:
    spacing = tuple(float(mm) for mm in nib.affines.voxel_sizes(case.affine)[::-1])
    classes = _to_spl(case.labels)
    for column, name in zip(panels.T, task_lib.GLIOMA.modalities, strict=True):
        image = _to_spl(case.images[name]).astype(np.float32)
        brain = image != 0
        box = planes.view_box(brain, [classes], spacing)
        tumour = task_lib.GLIOMA.hull_mask(classes)
        index = planes.slices_of_interest([tumour], box)[_AXIAL] - box[_AXIAL].start
        window = planes.grey_window(image, brain)
        for panel in column:
            planes.draw_image(panel, image[box], brain[box], _AXIAL, index, spacing, window)
            planes.mark_edges(panel, planes.PLANES[_AXIAL])
        view = planes.to_screen(classes[box], _AXIAL, index)
        pixel = planes.pixel(spacing, _AXIAL)
        planes.outline(column[1], view, pixel, "reference", task_lib.GLIOMA)
    planes.scale_bar(panels[0, 0])
    _name(panels[0, 0], case.case_id)


def _to_spl(volume: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "d h w"]:
    # Phantoms are stored LPS.
    return volume.transpose(2, 1, 0)


def _name(panel: mpl_axes.Axes, text: str) -> None:
    panel.text(0.02, 0.98, text, transform=panel.transAxes, va="top", color="white", fontsize=10)


def _legend(figure: mpl_figure.Figure) -> None:
    looks = planes.looks(task_lib.GLIOMA.region_names)
    handles = [
        mpl_lines.Line2D(
            [],
            [],
            color=looks[region.name].colour,
            linewidth=3,
            label=f"{region.name}: {region.description}",
        )
        for region in task_lib.GLIOMA.regions
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, labelcolor="white"
    )


def main(argv: list[str]) -> None:
    """Draws two cases of 1 mm."""
    cli.refuse_arguments(argv)
    path = pathlib.Path(_FIGURE.value or "")
    if path.suffix.lower() != ".png":
        raise UserError(f"--figure={_FIGURE.value or ''}: expected a file that ends in .png")
    draw(path, [phantom.generate(0, index, 1.0) for index in _SHOWN])


if __name__ == "__main__":
    cli.run(main)
