"""Reports of tasks of one and of several regions: every region has its place on the page."""

import json
import pathlib
import re

import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry, nifti, prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.drawing import charts, figures, planes
from kdnet_jax.evaluation import score_files
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.models import heads
from kdnet_jax.reports import run_report
from tests.helpers import made_up_tasks, stores

SHAPE = (10, 40, 48)
SPACING = (3.0, 1.0, 1.0)


def _case(number: int, task: task_lib.Task) -> prepare.PreparedCase:
    """A box for each class, side by side, in images without background."""
    rng = np.random.default_rng(number)
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, len(task.classes)):
        row, column = divmod(value - 1, 3)
        label[3:7, 3 + 13 * row : 12 + 13 * row, 4 + 14 * column : 14 + 14 * column] = value
    image = rng.normal(size=(*SHAPE, 2)) + 2 * label[..., None]
    box = tuple((0, size) for size in SHAPE)
    way = geometry.make_geometry(SHAPE[::-1], np.diag([-1.0, -1.0, 3.0, 1.0]), box=box)
    return prepare.PreparedCase(
        f"case-{number}", f"case-{number}", None, ("t1", "t2"), image.astype(np.float16), label,
        label, way, np.ones(SHAPE, bool),
    )  # fmt: skip


def _write_run(
    folder: pathlib.Path, task: task_lib.Task, cases: list[prepare.PreparedCase]
) -> None:
    """Writes what an evaluated run leaves: predictions a voxel beside the reference."""
    (folder / score_files.PROBABILITIES).mkdir(parents=True)
    (folder / score_files.PREDICTIONS).mkdir()
    rows = []
    for case in cases:
        found = np.roll(case.label, 1, axis=2)
        rows += case_metrics.score_case(case.case_id, case.label, found, SPACING, task=task)
        on_grid = found.transpose(2, 1, 0)  # SPL to the stored axes, L P S
        path = folder / score_files.PREDICTIONS / f"{case.case_id}.nii.gz"
        nifti.write_mask(path, on_grid, case.geometry.affine)
        sure = np.stack([found == value for value in range(len(task.classes))], axis=-1)
        path = folder / score_files.PROBABILITIES / f"{case.case_id}.npz"
        np.savez_compressed(path, probabilities=(sure * 200).astype(np.uint8))
    about = {
        "role": "student",
        "modalities": ["t2"],
        "labels": labels.own_convention(task),
        "post_processing": "none",
        "provenance": {"command": "python -m kdnet_jax.main"},
    }
    scores = folder / score_files.FOLDER
    score_files.write_scores(scores, rows, about, task=task)
    score_files.write_scores(scores / score_files.POSTPROCESSED, rows, about, task=task)
    dice = {f"dice_{name.lower()}": 0.1 * place for place, name in enumerate(task.region_names)}
    log = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 30)] + [
        {"step": step, "split": "validation"} | dice for step in (10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


def write_page(folder: pathlib.Path, task: task_lib.Task) -> pathlib.Path:
    cases = [_case(number, task) for number in range(3)]
    _write_run(folder, task, cases)
    return run_report.write(
        folder,
        stores.store_of(cases, task),
        channel=1,
        head=heads.Head(task),
        cavity="background",
        others={},
        synthetic=False,
        facts=[],
    )


@pytest.mark.once
@pytest.mark.parametrize("count", [1, 5])
def test_a_report_names_and_draws_every_region(tmp_path: pathlib.Path, count: int) -> None:
    task = made_up_tasks.of_regions(count)
    page = write_page(tmp_path, task).read_text("utf-8")

    assert re.findall(r'data-region="([^"]*)"', page) == list(task.region_names)
    colours = [look.colour for look in planes.looks(task.region_names).values()]
    assert len(set(colours)) == count
    assert all(f"stroke: {colour}" in page for colour in colours)
    assert "plane is the one with most foreground of the reference" in page
    (head, *groups) = re.findall(r'<tr class="group">.*?</tr>', page, re.DOTALL)
    assert [name in text for name, text in zip(task.region_names, (head, *groups), strict=True)]
    for word in ("ET", "tumour", "BraTS 2021"):
        assert not re.search(rf"\b{word}\b", page.split("<script")[0])
    data = json.loads(re.search(r'id="slices-1">(.*?)</script>', page, re.DOTALL).group(1))
    assert {layer["region"] for layer in data["layers"]} == set(task.region_names)
    assert all(any(layer["paths"]) for layer in data["layers"] if layer["source"] == "reference")
    table = run_report.region_table({"student": score_files.read_summary(tmp_path)})
    assert all(name in table.splitlines()[1] for name in task.region_names)


def test_lines_of_ten_regions_are_told_apart() -> None:
    regions = made_up_tasks.of_regions(10).region_names
    row = {f"dice_{name}": 0.5 for name in regions} | {"split": "validation"}
    panel = charts.curves([row | {"step": 1}, row | {"step": 2}], regions).axes[0]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in panel.lines}
    assert len(looks) == len(panel.lines) == 10
    assert len({line.get_color() for line in panel.lines}) == 10
    assert len({look.colour for look in planes.looks(regions).values()}) == 10


def test_the_foreground_says_what_is_drawn_black() -> None:
    # Zeros of a volume that was z-scored over all voxels are greys, and no background.
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    image[:, 20:, :] = 0
    options = {"spacing": SPACING, "title": "case", "task": made_up_tasks.LESION}
    whole = figures.overlay(image, None, None, foreground=np.ones(SHAPE, bool), **options)
    cut = figures.overlay(image, None, None, **options)
    assert whole.axes[0].images[0].get_array().shape == SHAPE[1:]
    assert whole.axes[0].images[0].get_array()[39, 0] == 0
    assert cut.axes[0].images[0].get_array().shape == (20 + 6, SHAPE[2])
