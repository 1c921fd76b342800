"""The overlay's orientation, slices and outlines by construction."""

import base64
import io

import numpy as np
import pytest
from matplotlib import colors
from matplotlib import figure as mpl_figure
from PIL import Image

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import figures, planes

SHAPE = (20, 30, 24)
SPACING = (5.0, 1.0, 2.0)


def head(dtype: type = np.float32) -> np.ndarray:
    """A grey head without background at its rim, so that nothing is cropped."""
    return np.full(SHAPE, 10, dtype)


def classes_at(*slices: slice) -> np.ndarray:
    classes = np.zeros(SHAPE, np.uint8)
    classes[slices] = 3
    return classes


# SPL: superior is high d, anterior low h, the patient's right low w.
ANTERIOR_RIGHT_SUPERIOR = (slice(14, 17), slice(3, 8), slice(2, 6))


def draw(
    image: np.ndarray, reference: np.ndarray | None, prediction: np.ndarray | None = None
) -> mpl_figure.Figure:
    return figures.overlay(
        image, reference, prediction, spacing=SPACING, title="case", task=task_lib.GLIOMA
    )


def shown(figure: mpl_figure.Figure, panel: int) -> tuple[np.ndarray, tuple]:
    image = figure.axes[panel].images[0]
    return np.asarray(image.get_array()), tuple(image.get_extent())


def test_a_cube_anterior_right_superior_lies_in_the_upper_left() -> None:
    # Axial: right on the left, anterior up. Coronal: right on the left, superior up. Sagittal:
    # anterior on the left, superior up.
    image = head()
    image[ANTERIOR_RIGHT_SUPERIOR] = 99
    figure = draw(image, classes_at(*ANTERIOR_RIGHT_SUPERIOR))
    for panel in range(3):
        view, _ = shown(figure, panel)
        rows, columns = np.nonzero(view > 50)
        assert rows.max() < view.shape[0] / 2
        assert columns.max() < view.shape[1] / 2


def test_a_cube_posterior_left_inferior_lies_in_the_lower_right() -> None:
    image, place = head(), (slice(2, 5), slice(22, 27), slice(18, 22))
    image[place] = 99
    figure = draw(image, classes_at(*place))
    for panel in range(3):
        view, _ = shown(figure, panel)
        rows, columns = np.nonzero(view > 50)
        assert rows.min() > view.shape[0] / 2
        assert columns.min() > view.shape[1] / 2


def test_pixels_of_the_rendered_picture_show_the_cube_where_it_belongs() -> None:
    # The whole way to the PNG: imshow's origin and extent could still turn the picture over.
    image = head()
    image[ANTERIOR_RIGHT_SUPERIOR] = 99
    figure = draw(image, classes_at(*ANTERIOR_RIGHT_SUPERIOR))
    png = figures.to_png_bytes(figure, dpi=80)
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)
    for panel in range(3):
        box = figure.axes[panel].get_window_extent()
        scale = 80 / figure.dpi
        left, right = (int(edge * scale) for edge in (box.x0, box.x1))
        top, bottom = (grey.shape[0] - int(edge * scale) for edge in (box.y1, box.y0))
        view = grey[top:bottom, left:right] > 240
        half_row, half_column = view.shape[0] // 2, view.shape[1] // 2
        upper_left = view[:half_row, :half_column].sum()
        assert upper_left > 3 * (view.sum() - upper_left), planes.PLANES[panel].name


def test_edges_are_marked() -> None:
    figure = draw(head(), None)
    for panel, letters in enumerate(("RLAP", "RLSI", "APSI")):
        places = {
            text.get_text(): text.get_position()
            for text in figure.axes[panel].texts
            if len(text.get_text()) == 1
        }
        left, right, top, bottom = letters
        assert set(places) == set(letters)
        assert places[left][0] < 0.1
        assert places[right][0] > 0.9
        assert places[top][1] > 0.9
        assert places[bottom][1] < 0.1


def test_extent_is_in_mm() -> None:
    figure = draw(head(), None)
    depth, height, width = (side * step for side, step in zip(SHAPE, SPACING, strict=True))
    assert shown(figure, 0)[1] == (0, width, height, 0)
    assert shown(figure, 1)[1] == (0, width, depth, 0)
    assert shown(figure, 2)[1] == (0, height, depth, 0)
    assert all(axes.get_aspect() == 1.0 for axes in figure.axes)


def titles(figure: mpl_figure.Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes[:3]]


def test_slices_follow_the_reference_then_the_prediction_then_the_middle() -> None:
    reference = classes_at(slice(3, 4), slice(5, 6), slice(7, 8))
    reference[0, 0, 0] = 4  # a cavity is no tumour
    prediction = classes_at(slice(11, 12), slice(12, 13), slice(13, 14))
    of_reference = ["axial, slice 4 of 20", "coronal, slice 6 of 30", "sagittal, slice 8 of 24"]
    of_prediction = ["axial, slice 12 of 20", "coronal, slice 13 of 30", "sagittal, slice 14 of 24"]
    middle = ["axial, slice 10 of 20", "coronal, slice 15 of 30", "sagittal, slice 12 of 24"]
    assert titles(draw(head(), reference, prediction)) == of_reference
    assert titles(draw(head(), np.zeros_like(reference), prediction)) == of_prediction
    assert titles(draw(head(), None, prediction)) == of_prediction
    assert titles(draw(head(), None)) == middle
    assert titles(draw(np.zeros(SHAPE, np.float32), None)) == middle


def test_background_is_black_and_cropped_also_after_a_z_score() -> None:
    image = np.zeros(SHAPE, np.float32)
    image[4:16, 8:24, 6:18] = np.random.default_rng(0).normal(size=(12, 16, 12))
    view, _ = shown(draw(image, None), 0)
    assert view.shape == (16 + 2 * 6, 12 + 2 * 3)  # a margin of 6 mm
    assert view[0, 0] == pytest.approx(np.percentile(image[image != 0], 0.5))


def test_outlines_lie_around_the_voxels() -> None:
    figure = draw(head(), classes_at(slice(0, 3), slice(3, 8), slice(2, 6)))
    plain, outlined = figure.axes[0], figure.axes[3]
    assert not plain.collections
    for contour in outlined.collections:  # ET, TC and WT are one here
        low, high = contour.get_paths()[0].vertices.min(0), contour.get_paths()[0].vertices.max(0)
        assert low == pytest.approx([2 * 2.0, 3 * 1.0])
        assert high == pytest.approx([6 * 2.0, 8 * 1.0])
    assert len(outlined.collections) == 3
    # The cube touches the lowest slice; its outline is closed there.
    assert figure.axes[4].collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(100)


def test_reference_is_solid_and_prediction_dashed() -> None:
    reference, prediction = classes_at(slice(3, 6), slice(3, 8)), classes_at(slice(3, 6))
    figure = draw(head(), reference, prediction)
    dashes = [contour.get_linestyle()[0][1] for contour in figure.axes[3].collections]
    assert [dash is None for dash in dashes] == [True] * 3 + [False] * 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ET", "TC", "WT", "reference", "prediction"]
    assert "prediction" not in [
        t.get_text() for t in draw(head(), reference).legends[0].get_texts()
    ]


def test_probabilities_stand_in_a_third_row_at_their_levels() -> None:
    place = (slice(3, 6), slice(10, 20), slice(8, 16))
    probabilities = np.zeros((*SHAPE, 3), np.float32)
    probabilities[(*place, 2)] = 0.6  # WT alone, and never as sure as 0.9
    figure = figures.overlay(
        head(),
        classes_at(*place),
        None,
        spacing=SPACING,
        title="case",
        probabilities=probabilities,
        task=task_lib.GLIOMA,
    )
    assert len(figure.axes) == 9
    for panel in figure.axes[6:]:
        colours = {tuple(np.round(line.get_edgecolor()[0], 3)) for line in panel.collections}
        assert colours == {
            tuple(
                np.round(colors.to_rgba(planes.looks(task_lib.GLIOMA.region_names)["WT"].colour), 3)
            )
        }
        assert len(panel.collections) == 2
    outer, half = (line.get_paths()[0].vertices for line in figure.axes[6].collections)
    # Linear between 0 and 0.6 over one voxel of 2 mm: 0.1 is crossed 1/6 of the way.
    assert outer[:, 0].min() == pytest.approx((7.5 + 1 / 6) * 2.0, abs=1e-4)
    assert half[:, 0].min() == pytest.approx((7.5 + 5 / 6) * 2.0, abs=1e-4)
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "probability 0.9" in texts


def test_png_is_a_picture_and_repeats() -> None:
    first, second = (figures.to_png_bytes(draw(head(), None), dpi=40) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).format == "PNG"


def test_data_address_holds_the_whole_figure() -> None:
    figure = draw(head(), None)
    address = figures.to_data_uri(figure)
    assert address.startswith("data:image/webp;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert picture.size == figures.pixels(figure)
