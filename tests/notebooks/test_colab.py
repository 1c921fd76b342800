"""The notebook runs as it is, top to bottom, but for one parameter."""

import base64
import contextlib
import copy
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest

nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient")
pytest.importorskip("ipykernel", reason="the notebook needs a Python kernel")
nbformat = pytest.importorskip("nbformat")

from tests.helpers import commands  # noqa: E402

NOTEBOOK = commands.ROOT / "notebooks/kdnet_colab.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, 4)


@pytest.fixture(scope="module")
def executed(
    notebook: Any, tmp_path_factory: pytest.TempPathFactory, command_env: dict[str, str]
) -> tuple[Any, pathlib.Path]:
    """The notebook after a run with the smallest preset, and the folder it ran in.

    Synthetic cases in the folder BraTS are the user's own.
    """
    folder = tmp_path_factory.mktemp("notebook")
    words = ["--phantom", "--cases=5", "--spacing=6", f"--scans={folder / 'BraTS'}"]
    assert commands.run("build_data", *words, env=command_env).returncode == 0
    smaller = _with(
        notebook,
        {'PRESET = "phantom"': 'PRESET = "smoke"', 'BRATS = ""': f'BRATS = "{folder / "BraTS"}"'},
    )
    # The demo's student's cell twice, as after an interruption.
    (index,) = (i for i, cell in enumerate(smaller.cells) if "configs/student.py" in cell.source)
    smaller.cells.insert(index + 1, copy.deepcopy(smaller.cells[index]))
    smaller.cells[index + 1]["id"] = "again"
    with _importable():
        _execute(smaller, folder)
    return smaller, folder


def _with(notebook: Any, settings: dict[str, str]) -> Any:
    """Returns a copy of the notebook with other settings."""
    other = copy.deepcopy(notebook)
    (parameters,) = (cell for cell in other.cells if "parameters" in _tags(cell))
    for line, wanted in settings.items():
        assert parameters.source.count(line) == 1
        parameters.source = parameters.source.replace(line, wanted)
    return other


def _execute(notebook: Any, folder: pathlib.Path) -> None:
    resources = {"metadata": {"path": folder}}
    options = {"timeout": 300, "kernel_name": "python3", "resources": resources}
    nbclient.NotebookClient(notebook, **options).execute()


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(commands.ROOT), before])
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def _said(notebook: Any, words: str) -> str:
    """All that the cell with these words in its source printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and words in cell.source]
    return "".join(output.get("text", "") for output in cells[-1].outputs)


def test_its_figures_are_shown(executed: tuple[Any, pathlib.Path]) -> None:
    outputs = [
        output for cell in executed[0].cells if cell.cell_type == "code" for output in cell.outputs
    ]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    assert not [output for output in outputs if output.output_type == "error"]
    (card,) = (output.data for output in outputs if "text/markdown" in output.get("data", {}))
    assert "no medical device" in card["text/markdown"]


def test_a_second_start_repeats_nothing(executed: tuple[Any, pathlib.Path]) -> None:
    again = _said(executed[0], "configs/student.py")
    assert again.count("already evaluated") == 2
    assert "loss" not in again


def test_a_mask_lies_on_the_scan_s_grid(executed: tuple[Any, pathlib.Path]) -> None:
    runs = executed[1] / "runs"
    mask, scan = (
        nib.load(path)
        for path in (runs / "mask.nii.gz", runs / "scans/phantom-0000/phantom-0000_t1ce.nii.gz")
    )
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)


def test_the_user_s_own_student_segments_a_scan(executed: tuple[Any, pathlib.Path]) -> None:
    done, folder = executed
    runs = folder / "runs"
    test = json.loads((runs / "student-brats/split.json").read_text("utf-8"))["test"]
    (cell,) = (cell for cell in done.cells if cell.source.startswith("if BRATS:\n    scan = SCAN"))
    assert [each for each in cell.outputs if "image/png" in each.get("data", {})]
    mask = nib.load(runs / "own_mask.nii.gz")
    scan = nib.load(folder / "BraTS" / test[0] / f"{test[0]}_t1ce.nii.gz")
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.shape == scan.shape
    # The same student is handed over, and used from Python.
    assert str(mask.shape) in _said(done, "kdnet_jax.load(")
    exported = json.loads((runs / "student-brats-export/model.json").read_text("utf-8"))
    scored = json.loads((runs / "student-brats/evaluation/summary.json").read_text("utf-8"))
    assert exported["parameters_sha256"] == scored["params_hash"]


def test_two_views_hold_the_scan_with_its_mask_and_with_its_uncertainty(
    executed: tuple[Any, pathlib.Path],
) -> None:
    """Read from the state of the widgets, which a browser would draw."""
    pytest.importorskip("ipyniivue", reason="the views are drawn by ipyniivue")
    done, folder = executed
    runs = folder / "runs"
    test = json.loads((runs / "student-brats/split.json").read_text("utf-8"))["test"]
    scans = {
        "mask": runs / "scans/phantom-0000/phantom-0000_t1ce.nii.gz",
        "own_mask": folder / "BraTS" / test[0] / f"{test[0]}_t1ce.nii.gz",
    }
    widgets = _widgets(done)
    views = [each["state"] for each in widgets.values() if "volumes" in each["state"]]
    volumes = [
        [widgets[key.removeprefix("IPY_MODEL_")] for key in view["volumes"]] for view in views
    ]
    assert sorted([_file(each) for each in held] for held in volumes) == sorted(
        [(scan.name, scan.read_bytes()), (over.name, over.read_bytes())]
        for name, scan in scans.items()
        for over in (runs / f"{name}.nii.gz", runs / f"{name}_entropy.nii.gz")
    )
    for view, (_, over) in zip(views, volumes, strict=True):
        assert view["opts"]["isRadiologicalConvention"]
        assert view["opts"]["sagittalNoseLeft"]
        name = _file(over)[0].replace("_entropy", "")
        np.testing.assert_allclose(view["scene"]["crosshairPos"], _middle(runs / name))


def test_a_view_has_the_colours_that_the_mask_names(executed: tuple[Any, pathlib.Path]) -> None:
    pytest.importorskip("ipyniivue", reason="the views are drawn by ipyniivue")
    states = [each["state"] for each in _widgets(executed[0]).values()]
    table = next(each["colormap_label"] for each in states if each.get("colormap_label"))
    # NCR, ED, no class 3, and ET.
    assert (table["min"], table["max"]) == (0, 4)
    colours = np.reshape(table["lut"], (5, 4)).tolist()
    assert colours[1:] == [[255, 106, 19, 255], [240, 228, 66, 255], [0] * 4, [86, 180, 233, 255]]
    assert colours[0][3] == 0
    legend = next(each["value"] for each in states if "■" in str(each.get("value")))
    assert re.sub("<.*?>", "", legend) == "■ NCR ■ ED ■ ET"


def _widgets(notebook: Any) -> dict[str, Any]:
    return notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]


def _middle(mask: pathlib.Path) -> Any:
    """Where a mask's middle lies, as shares of its axes to Right, Anterior and Superior."""
    image = nib.as_closest_canonical(nib.load(mask))
    inside = np.argwhere(image.dataobj)
    return (np.median(inside, axis=0) + 0.5) / image.shape if len(inside) else (0.5, 0.5, 0.5)


def _file(volume: Any) -> tuple[str, bytes]:
    """Name and content of the file that a volume sends to the browser."""
    (sent,) = (each for each in volume["buffers"] if each["path"] == ["path", "data"])
    return volume["state"]["path"]["name"], base64.b64decode(sent["data"])


def test_without_ipyniivue_the_notebook_goes_on(notebook: Any, tmp_path: pathlib.Path) -> None:
    other = copy.deepcopy(notebook)
    other.cells = [
        cell for cell in other.cells if cell.id in ("cell-02", "cell-04", "cell-06", "cell-view-2")
    ]
    hidden = 'sys.modules["ipyniivue"] = None\nscan = "scan.nii.gz"'
    other.cells.insert(-1, nbformat.v4.new_code_cell(hidden))
    with _importable():
        _execute(other, tmp_path)
    assert "pip install ipyniivue" in _said(other, "def browse(")


def test_drive_is_mounted_before_anything_is_written(notebook: Any) -> None:
    """And after the installation, which needs none of it."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    mounted = next(i for i, source in enumerate(sources) if "drive.mount" in source)
    installed = next(i for i, source in enumerate(sources) if "pip" in source)
    used = next(i for i, source in enumerate(sources) if "RUNS)" in source or "{RUNS}" in source)
    assert installed < mounted < used


def test_what_is_committed_is_whole_and_says_nothing_of_a_machine(notebook: Any) -> None:
    nbformat.validate(notebook)
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 1_000_000
    assert not re.findall(r"/(?:home|root|work|tmp|Users)/", text)
    assert '"output_type": "error"' not in text
    # Which would be megabytes, with the scans in it.
    assert "widgets" not in notebook.metadata
