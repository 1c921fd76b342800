"""What the page scrolls through: the right slices, the right way round, with the right outlines."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from kdnet_jax import task as task_lib
from kdnet_jax.reports import viewer

SHAPE = (12, 40, 32)
SPACING = (3.0, 1.0, 1.5)


def head() -> np.ndarray:
    """Grey without background, slice d at (d + 1) / 12 of white; anterior right is darkest."""
    image = np.empty(SHAPE, np.float32)
    image[:] = (np.arange(12) + 1)[:, None, None] * 20
    image[:, :8, :6] = 1.0
    return image


def classes(*place: slice) -> np.ndarray:
    volume = np.zeros(SHAPE, np.uint8)
    volume[place] = 3
    return volume


def cell(data: dict, place: int) -> np.ndarray:
    """The picture of a place of the slider, as the page's script cuts it out."""
    raw = base64.b64decode(data["sheet"].partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(raw)).convert("L"), float)
    width, height = data["cell"]
    left, top = place % data["columns"] * width, place // data["columns"] * height
    return sheet[top : top + height, left : left + width]


def points(path: str, units: int = 2) -> np.ndarray:
    """The corners of an SVG path of one closed line, in voxels (x, y)."""
    start, moves = re.fullmatch(r"M(-?\d+ ?-?\d+)l([^Mz]*)z", path).groups()
    pairs = [
        np.array([int(n) for n in re.findall(r"-?\d+", part)]).reshape(-1, 2)
        for part in (start, moves)
    ]
    return np.cumsum(np.concatenate(pairs), axis=0) / units


def build(**given: object) -> dict:
    values = {
        "image": head(),
        "reference": classes(slice(2, 5), slice(10, 20), slice(4, 9)),
        "prediction": classes(slice(2, 4), slice(10, 20), slice(4, 10)),
        "probabilities": None,
        "spacing": SPACING,
        "task": task_lib.GLIOMA,
    } | given
    return viewer.build(**values)


def layer(data: dict, source: str, region: str, level: float = 0.5) -> list[str]:
    found = [
        each["paths"]
        for each in data["layers"]
        if (each["source"], each["region"], each["level"]) == (source, region, level)
    ]
    assert len(found) == 1
    return found[0]


def test_every_slice_is_there_once_in_order() -> None:
    data = build()
    assert data["slices"] == list(range(1, 13))
    assert data["depth"] == 12
    assert data["size"] == [32, 40]
    assert data["pixel_mm"] == [1.5, 1.0]
    for place in range(12):
        middle = cell(data, place)[20:30, 15:25].mean()
        # Black is the darkest half percent, white the brightest.
        assert middle == pytest.approx(255 * (20 * (place + 1) - 1) / 239, abs=6)


def test_right_is_left_and_anterior_is_up() -> None:
    # SPL: low h is anterior, low w the patient's right.
    view = cell(build(), 11)
    assert view[:7, :5].mean() < 20
    assert min(view[-7:, :5].mean(), view[:7, -5:].mean(), view[-7:, -5:].mean()) > 200


def test_it_starts_where_most_tumour_is_and_numbers_slices_on_the_grid() -> None:
    image = head()
    image[:5] = 0  # cut away, up to a margin of 6 mm: two slices
    image[:, :, 28:] = 0
    reference = classes(slice(8, 10), slice(10, 20), slice(4, 9))
    reference[9, 5, 5] = 3
    data = build(image=image, reference=reference, prediction=np.zeros_like(reference))
    assert data["slices"] == list(range(4, 13))
    assert data["depth"] == 12
    assert data["start"] == 10
    assert cell(data, 9 - 3)[20, 15] == pytest.approx(255 * 200 / 240, abs=8)
    assert layer(data, "reference", "WT")[8 - 3]
    assert not layer(data, "reference", "WT")[7 - 3]


def test_outlines_lie_around_the_voxels_of_their_slice() -> None:
    data = build()
    for region in ("ET", "TC", "WT"):  # all the same: the tumour is ET alone
        paths = layer(data, "reference", region)
        assert [bool(path) for path in paths] == [d in (2, 3, 4) for d in range(12)]
        corners = points(paths[3])
        assert corners.min(axis=0).tolist() == [4, 10]
        assert corners.max(axis=0).tolist() == [9, 20]
        assert len(corners) == 8  # straight runs are one move; corners are cut
    assert points(layer(data, "prediction", "ET")[3]).max(axis=0).tolist() == [10, 20]


def test_a_tumour_at_the_edge_is_closed() -> None:
    corners = points(viewer.outline(np.ones((4, 6), np.float32), 0.5, 2))
    assert corners.min(axis=0).tolist() == [0, 0]
    assert corners.max(axis=0).tolist() == [6, 4]
    assert viewer.outline(np.zeros((4, 6), np.float32), 0.5, 2) == ""


def test_probabilities_are_drawn_at_their_levels_per_region() -> None:
    probabilities = np.zeros((*SHAPE, 3), np.float32)
    # TC falls off by 0.2 a voxel from column 10 on.
    probabilities[3, 10:20, :, 1] = np.clip(1 - 0.2 * (np.arange(32) - 10), 0, 1)
    data = build(probabilities=probabilities)
    for level in (0.1, 0.5, 0.9):
        right = points(layer(data, "probability", "TC", level)[3])[:, 0].max()
        assert right == pytest.approx(10.5 + (1 - level) / 0.2, abs=0.25)
        assert not any(layer(data, "probability", "ET", level))
    assert not [each for each in build()["layers"] if each["source"] == "probability"]


def test_over_the_budget_slices_are_left_out_but_never_the_one_with_most_tumour() -> None:
    rng = np.random.default_rng(0)
    image = np.where(head() > 0, rng.normal(50, 20, SHAPE), 0).astype(np.float32)
    reference = classes(slice(3, 4), slice(10, 20), slice(4, 9))
    whole = build(image=image, reference=reference)
    budget = len(json.dumps(whole)) * 2 // 3
    data = build(image=image, reference=reference, max_bytes=budget)
    assert len(json.dumps(data)) <= budget
    step = data["slices"][1] - data["slices"][0]
    assert step > 1
    assert data["start"] == 4
    assert 4 in data["slices"]
    assert set(np.diff(data["slices"])) == {step}
    assert data["cell"] == [-(-32 // step), -(-40 // step)]
    place = data["slices"].index(4)
    assert points(layer(data, "reference", "ET")[place]).max(axis=0).tolist() == [9, 20]


def test_pixels_of_several_voxels_lie_where_the_outlines_do() -> None:
    """Also the last of a row, where the 32 columns are no multiple of 3 voxels."""
    image = np.ones(SHAPE, np.float32)
    image[:, :, 24:] = 2  # the ninth pixel of three voxels begins here
    reference = classes(slice(3, 4), slice(9, 21), slice(24, 30))
    given = {"image": image, "reference": reference, "prediction": reference}
    data = next(
        data
        for size in range(20_000, 0, -50)
        if (data := build(max_bytes=size, **given))["cell"][0] == 11
    )
    assert data["cell"] == [11, 14]
    place = data["slices"].index(4)
    view = cell(data, place)
    # The page draws the picture and the outlines over all of `size`.
    voxels = data["size"][0] / data["cell"][0], data["size"][1] / data["cell"][1]
    edge = int(np.argmax(view[7] > 128)) * voxels[0]
    assert points(layer(data, "reference", "ET")[place])[:, 0].min() == edge == 24
    assert voxels == (3, 3)


def test_coarse_grids_have_finer_units() -> None:
    data = build(spacing=(3.0, 3.0, 3.0))
    assert (data["units"], build()["units"]) == (4, 2)
    path = layer(data, "reference", "WT")[3]
    assert points(path, units=4).min(axis=0).tolist() == [4, 10]


def test_an_empty_case_can_be_shown() -> None:
    nothing = np.zeros(SHAPE, np.uint8)
    data = build(image=np.zeros(SHAPE, np.float32), reference=nothing, prediction=nothing)
    assert len(data["slices"]) == 12
    assert cell(data, 0).max() < 4
