"""The page in headless Chromium: it fits, it is quiet, and its slices can be scrolled through."""

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from matplotlib import figure as mpl_figure

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import html as report_html
from kdnet_jax.reports import viewer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is found")

PHONE, DESK = 390, 1200
SHAPE = (9, 40, 32)

# Runs in the page: does what a reader would, and tells after each step what is shown.
PROBE = """
<script>
addEventListener("load", async () => {
  const told = [];
  const find = (id) => document.getElementById(id);
  const tell = async (what) => {
    await new Promise((done) => setTimeout(done, 150));
    const canvas = find("viewer-canvas");
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
    const at = (x, y) => pixels[4 * (y * canvas.width + x)];
    const paths = [...find("viewer-lines").querySelectorAll("path.line")];
    told.push({
      what, slice: Number(find("viewer").dataset.slice),
      drawn: Number(find("viewer").dataset.drawn),
      case: Number(find("viewer").dataset.case), says: find("viewer-says").textContent,
      middle: at(canvas.width >> 1, canvas.height >> 1), corner: at(1, 1), hash: location.hash,
      paths: paths.map((path) => [path.getAttribute("class"), path.getAttribute("d")]),
    });
  };
  const press = (key) =>
    find("viewer-stage").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await tell("opened");
  press("ArrowUp"); await tell("ArrowUp");
  press("ArrowLeft"); press("ArrowLeft"); await tell("ArrowLeft twice");
  press("Home"); await tell("Home");
  press("End"); await tell("End");
  find("viewer-down").click(); await tell("minus");
  find("viewer-slice").value = 2;
  find("viewer-slice").dispatchEvent(new Event("input")); await tell("slider");
  const wheel = new WheelEvent("wheel", { deltaY: -80, cancelable: true });
  find("viewer-stage").dispatchEvent(wheel); await tell("wheel");
  press("3"); await tell("probability");
  document.querySelector("input[data-region=WT]").click(); await tell("without WT");
  find("viewer-plain").click(); await tell("plain");
  location.hash = "#case=2&slice=4"; await tell("address");
  const page = document.documentElement;
  parent.postMessage(JSON.stringify({
    told, width: page.clientWidth, scroll: page.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    wide: [...document.querySelectorAll("main *")].filter((each) =>
      each.getBoundingClientRect().right > page.clientWidth + 1
      && !each.closest(".scroll, .chart, pre")).map((each) => each.outerHTML.slice(0, 80)),
  }), "*");
});
</script>
"""
# A browser's own window is never as narrow as a phone; a frame is.
FRAME = """<!doctype html><body style="margin: 0"><pre id="told"></pre>
<script>onmessage = (event) => (document.getElementById("told").textContent = event.data);</script>
<iframe src="ADDRESS" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
"""


def case(number: int) -> report_html.CaseView:
    image = np.empty(SHAPE, np.float32)
    image[:] = (np.arange(SHAPE[0]) + number)[:, None, None] * 20
    image[:, :6, :6] = 1.0  # anterior right
    classes = np.zeros(SHAPE, np.uint8)
    classes[3:6, 10:20, 4:12] = 3
    classes[4, 10:24, 4:16] = 3
    probabilities = np.zeros((*SHAPE, 3), np.float32)
    probabilities[2:7, 8:22, 2:14] = 0.6
    slices = viewer.build(
        image, classes, classes, probabilities, spacing=(2.0, 1.0, 1.0), task=task_lib.GLIOMA
    )
    name = f"a-case-with-a-very-long-name-that-does-not-fit-on-a-phone-{number}"
    header = ["Region", *(f"Score {column}" for column in range(12))]
    table = report_html.Table(f"Scores of {name}", header, [["ET", *["0.500"] * 12]], "A note.")
    picture = report_html.Picture(mpl_figure.Figure((9, 4), facecolor="black"), "three planes")
    return report_html.CaseView("worst", name, picture, table, slices)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = report_html.Report(
        title="KD-Net student: t1ce",
        summary=["The student reaches a mean test Dice of 0.694."],
        tables=[case(1).table],
        pictures=[report_html.Picture(mpl_figure.Figure((9, 3)), "curves", "A caption.")],
        cases=[case(1), case(2)],
        regions=task_lib.GLIOMA.region_names,
        facts=[("Split (hash)", "e" * 200)],
        commands=[("Repeat", "python -m kdnet_jax.main " + "--config.key=value " * 20)],
    )
    report_html.write_report(path, report)
    return path


def browse(address: str, tmp_path: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """Returns the page's document after its scripts ran, and what it wrote to the console."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", *options]
    done = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probe(page: pathlib.Path, width: int, tmp_path: pathlib.Path, *options: str) -> dict[str, Any]:
    """Returns what the probe tells of the page at a width."""
    text = page.read_text("utf-8")
    policy = re.search(r"<meta http-equiv[^>]*>", text).group()
    copy = tmp_path / "probed.html"
    copy.write_text(text.replace(policy, "").replace("</body>", PROBE + "</body>"), "utf-8")
    frame = tmp_path / "frame.html"
    address = copy.as_uri() + "#case=1&amp;slice=5"
    frame.write_text(FRAME.replace("ADDRESS", address).replace("WIDTH", str(width)))
    document, console = browse(frame.as_uri(), tmp_path, *options)
    assert not console
    return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', document).group(1)))


@pytest.fixture(scope="module")
def on_a_phone(page: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probe(page, PHONE, tmp_path_factory.mktemp("phone"))


def test_the_page_as_it_is_shows_the_slice_of_its_address(
    page: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # Unchanged, with its own policy: the script runs, and nothing is complained about.
    document, console = browse(page.as_uri() + "#case=2&slice=6", tmp_path)
    assert not console
    shown = re.search(r'<section class="viewer scripted"[^>]*>', document).group()
    assert 'data-case="2"' in shown
    assert 'data-slice="6"' in shown
    assert 'data-drawn="6"' in shown
    assert "hidden" not in shown


def test_every_way_of_scrolling(on_a_phone: dict[str, Any]) -> None:
    slices = {each["what"]: each["slice"] for each in on_a_phone["told"]}
    assert slices == {
        "opened": 5,
        "ArrowUp": 6,
        "ArrowLeft twice": 4,
        "Home": 1,
        "End": 9,
        "minus": 8,
        "slider": 3,  # the third place
        "wheel": 5,
        "probability": 5,
        "without WT": 5,
        "plain": 5,
        "address": 4,
    }
    assert [each["case"] for each in on_a_phone["told"]] == [1] * 11 + [2]
    assert on_a_phone["told"][1]["hash"] == "#case=1&slice=6"
    assert on_a_phone["told"][1]["says"] == "6 of 9"


def test_the_picture_is_that_of_the_slice(on_a_phone: dict[str, Any]) -> None:
    for each in on_a_phone["told"]:
        assert each["drawn"] == each["slice"]
        # The brightest slice of case 1 is 9 * 20 = white, of case 2 10 * 20; black is 1.
        grey = 20 * (each["slice"] + each["case"] - 1)
        white = 20 * (8 + each["case"])
        assert each["middle"] == pytest.approx(255 * (grey - 1) / (white - 1), abs=8)
        assert each["corner"] < 25  # the patient's right, anterior


def test_outlines_can_be_chosen(on_a_phone: dict[str, Any]) -> None:
    told = {each["what"]: each["paths"] for each in on_a_phone["told"]}
    layers = case(1).slices["layers"]

    def of(sources: set[str], place: int, regions: tuple[str, ...] = ("WT", "TC", "ET")) -> list:
        return [
            [f"line {each['source']} level-{str(each['level']).replace('.', '-')}", path]
            for each in layers
            if each["source"] in sources
            and each["region"] in regions
            and (path := each["paths"][place])
        ]

    both = {"reference", "prediction"}
    assert told["opened"] == of(both, 4)
    assert len(told["opened"]) == 6
    assert told["Home"] == []
    assert told["slider"] == []  # no tumour in slice 3, and its probability is not asked for
    assert told["probability"] == of({*both, "probability"}, 4)
    assert len(told["probability"]) == 6 + 2 * 3  # 0.9 is nowhere reached
    assert told["without WT"] == of({*both, "probability"}, 4, ("TC", "ET"))
    assert told["plain"] == []


def test_it_fits_a_phone(on_a_phone: dict[str, Any]) -> None:
    assert on_a_phone["wide"] == []
    assert on_a_phone["scroll"] == on_a_phone["width"] == PHONE
    assert on_a_phone["paper"] == "rgb(255, 255, 255)"


def test_it_fits_a_desk_in_the_dark(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    told = probe(page, DESK, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert told["scroll"] == told["width"] == DESK
    assert told["wide"] == []
    assert told["paper"] == "rgb(20, 23, 26)"
    assert told["told"][-1]["slice"] == 4
