"""The contact sheet: the slice, its orientation, what is missing and what is said."""

import io

import numpy as np
from matplotlib import colors
from PIL import Image

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import figures, planes
from kdnet_jax.reports import contact_sheet

SHAPE = (10, 30, 24)
SPACING = (5.0, 1.0, 1.0)


def head() -> np.ndarray:
    return np.full(SHAPE, 10, np.float32) + np.random.default_rng(0).uniform(0, 1, SHAPE)


def make(
    volumes: dict[str, np.ndarray],
    classes: np.ndarray | None = None,
    severity: str = "",
    findings: tuple[str, ...] = (),
) -> contact_sheet.Row:
    return contact_sheet.make_row(
        "case", severity, findings, volumes, classes, SPACING, task=task_lib.GLIOMA
    )


def texts(*rows: contact_sheet.Row) -> list[str]:
    figure = contact_sheet.draw(rows, ("t1", "flair"), 7, "title", task=task_lib.GLIOMA)
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_slice_is_that_with_most_tumour_else_the_middle_one() -> None:
    volume = np.broadcast_to(np.arange(1.0, 11)[:, None, None], SHAPE)  # the number of the slice
    classes = np.zeros(SHAPE, np.uint8)
    classes[2, 3:5, 3:5] = 3
    classes[7, 3:9, 3:9] = 2
    assert np.unique(make({"t1": volume}, classes).images["t1"]) == [8]
    assert make({"t1": volume}, classes).classes.sum() == 2 * 36
    assert np.unique(make({"t1": volume}).images["t1"]) == [5]
    assert np.unique(make({"t1": volume}, 0 * classes).images["t1"]) == [5]


def test_right_is_on_the_left_and_anterior_is_up() -> None:
    # SPL: anterior is low h, the patient's right low w. On the rendered picture.
    volume = head()
    volume[:, 2:8, 2:7] = 99
    figure = contact_sheet.draw([make({"t1": volume})], ("t1",), 1, "title", task=task_lib.GLIOMA)
    png = figures.to_png_bytes(figure, dpi=100)
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)
    box = figure.axes[1].get_window_extent()
    top, bottom = (grey.shape[0] - int(edge) for edge in (box.y1, box.y0))
    view = grey[top:bottom, int(box.x0) : int(box.x1)]
    rows, columns = np.nonzero(view[:, view.shape[1] // 8 :] > 250)  # without the letter R
    assert rows.mean() < 0.4 * view.shape[0]
    assert columns.mean() + view.shape[1] // 8 < 0.45 * view.shape[1]
    assert rows.size > 100


def test_the_reference_is_outlined_in_each_sequence() -> None:
    classes = np.zeros(SHAPE, np.uint8)
    classes[5, 8:16, 8:16], classes[5, 10:13, 10:13] = 2, 3
    row = make({"t1": head(), "flair": head()}, classes)
    figure = contact_sheet.draw([row], ("t1", "flair"), 1, "title", task=task_lib.GLIOMA)
    for panel in figure.axes[1:]:
        inks = [item.get_edgecolor() for item in panel.collections]
        assert {colors.to_hex(ink[0], keep_alpha=False) for ink in inks} == {
            look.colour.lower() for look in planes.looks(task_lib.GLIOMA.region_names).values()
        }
    figure = contact_sheet.draw([make({"t1": head()})], ("t1",), 1, "title", task=task_lib.GLIOMA)
    assert not figure.axes[1].collections


def test_a_missing_sequence_and_an_unreadable_case_are_said() -> None:
    assert "no flair\nto show" in texts(make({"t1": head()}))
    both = texts(make({}))
    assert "no t1\nto show" in both
    assert "no flair\nto show" in both


def test_a_problem_is_told_in_words_too() -> None:
    rows = [make({"t1": head()}, None, name, ("is bad",)) for name in ("error", "warning", "")]
    assert [text for text in texts(*rows) if "ERR" in text or "warn" in text or "no f" in text] == [
        "✕ ERROR",
        "no flair\nto show",
        "! warning",
        "no flair\nto show",
        "no finding",
        "no flair\nto show",
    ]


def test_findings_that_do_not_fit_are_cut_and_the_cut_is_said() -> None:
    row = make({"t1": head()}, None, "error", tuple(f"finding {i} " + 70 * "x" for i in range(9)))
    (told,) = [text for text in texts(row) if text.startswith("- finding 0")]
    assert len(told.splitlines()) <= 9
    assert told.endswith("(the list of problems has it all)")


def test_the_heading_says_how_many_cases_are_shown() -> None:
    row = make({"t1": head()})
    heading = contact_sheet.draw([row], ("t1",), 7, "BraTS", task=task_lib.GLIOMA).get_suptitle()
    assert "BraTS\n1 of 7 cases" in heading
    assert (
        "all 1 cases"
        in contact_sheet.draw([row], ("t1",), 1, "BraTS", task=task_lib.GLIOMA).get_suptitle()
    )
