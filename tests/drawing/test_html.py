"""The report: self-contained, escaped, complete."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from matplotlib import figure as mpl_figure

from kdnet_jax import task as task_lib
from kdnet_jax.drawing import html as report_html
from kdnet_jax.reports import viewer

EVIL = "</script><script>alert(1)</script>\"'é–肿瘤"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the text outside of scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [values[name] for _, values in self.tags if name in values]


def picture(alt: str, caption: str = "") -> report_html.Picture:
    return report_html.Picture(mpl_figure.Figure((1, 1)), alt, caption)


def slices() -> dict:
    image = np.full((3, 8, 8), 5, np.float32)
    classes = np.zeros((3, 8, 8), np.uint8)
    classes[1, 2:5, 2:5] = 3
    return viewer.build(
        image, classes, classes, None, spacing=(1.0, 1.0, 1.0), task=task_lib.GLIOMA
    )


def report() -> report_html.Report:
    table = report_html.Table(
        "Scores", ["Run", "Dice"], [["ET"], [EVIL, "0.5\n0.4 to 0.6"]], "Why."
    )
    case = report_html.CaseView("worst", EVIL, picture("three planes"), table, slices())
    return report_html.Report(
        title=f"Student {EVIL}",
        summary=["The student reaches 0.625."],
        tables=[table],
        pictures=[picture(f'curves "{EVIL}', "A caption.")],
        sections=[
            report_html.Section(
                "Its parts",
                sentences=[f"Nine runs of {EVIL}."],
                tables=[dataclasses.replace(table, caption="Parts")],
                links=[
                    report_html.Link("seed-0/student #1/report.html", "Seed 0"),
                    report_html.Link("javascript:alert(1)", EVIL),
                ],
            )
        ],
        cases=[case, dataclasses.replace(case, rank="best", slices=None)],
        cases_note="The worst first.",
        regions=task_lib.GLIOMA.region_names,
        facts=[("Role", "student"), ("Data", EVIL)],
        commands=[("Predict", "python -m kdnet_jax.predict --input='a b.nii.gz' && echo <done>")],
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html.render(report()))


def test_nothing_is_fetched(page: Page) -> None:
    addresses = [
        address
        for name in ("src", "srcset", "action", "data", "poster")
        for address in page.attributes(name)
    ]
    assert len(addresses) == 3
    assert all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert all(address.startswith(("#", "./")) for address in page.attributes("href"))
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", report_html.render(report()))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_the_browser_is_told_to_fetch_nothing_and_to_run_this_script_alone(page: Page) -> None:
    policy = next(v["content"] for _, v in page.tags if "http-equiv" in v)
    script = page.scripts[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 1
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_names_are_escaped_and_stay_readable(page: Page) -> None:
    # Title, heading, three tables' rows, sentence, link, options, headings of cases, facts.
    assert page.text.count(EVIL) >= 9
    assert [values.get("type") for tag, values in page.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    assert "echo <done>" in page.text
    assert "--input='a b.nii.gz' && echo" in page.text


def test_links_stay_beside_the_page(page: Page) -> None:
    assert "./seed-0/student%20%231/report.html" in page.attributes("href")
    assert "./javascript%3Aalert%281%29" in page.attributes("href")


def test_figures_have_alternative_texts_and_sizes(page: Page) -> None:
    images = [values for tag, values in page.tags if tag == "img"]
    texts = [values["alt"] for values in images]
    assert texts == [f'curves "{EVIL}', "three planes", "three planes"]
    assert {(values["width"], values["height"]) for values in images} == {("110", "110")}
    assert "A caption." in page.text


def test_tables_have_captions_heads_and_second_lines(page: Page) -> None:
    source = report_html.render(report())
    assert source.count("<caption>Scores</caption>") == 3
    assert re.search(r'<th colspan="2" scope="rowgroup"><span>ET</span></th>', source)
    assert re.search(r"<td>\s*0\.5<br><small>0\.4 to 0\.6</small>\s*</td>", source)
    assert "Why." in page.text


def test_parts_stand_in_order_and_are_linked_from_the_top(page: Page) -> None:
    words = ("The student reaches", "Commands", "Scores", "Nine runs", "The worst first.", "Role")
    places = [page.text.index(word) for word in (*words, "echo <done>")]
    assert places == sorted(places)
    targets = {address[1:] for address in page.attributes("href") if address.startswith("#")}
    assert targets - {"case=1"} <= set(page.attributes("id"))
    assert {"results", "section-1", "cases", "run", "commands"} <= targets


def test_slices_lie_in_the_page_as_data(page: Page) -> None:
    assert json.loads(page.scripts[0]) == slices()
    assert page.attributes("id").count("slices-1") == 1
    assert "slices-2" not in page.attributes("id")
    assert "With JavaScript" in page.text  # what a reader without it is told
    hidden = [values.get("id") or tag for tag, values in page.tags if "hidden" in values]
    assert hidden == ["viewer", "p"]


def test_every_control_has_a_name(page: Page) -> None:
    source = report_html.render(report())
    labels = set(re.findall(r'<label for="([^"]+)"', source))
    for tag, values in page.tags:
        if tag == "button":
            assert "aria-label" in values or values["id"] == "viewer-plain"
        if tag == "input" and values["type"] == "range":
            assert values["id"] in labels
    boxes = re.findall(r"<label[^>]*>\s*<input type=\"checkbox\"", source)
    assert len(boxes) == 6
    assert re.search(r"<label>Case <select", source)


def test_warnings(page: Page) -> None:
    assert "not a medical device" in page.text
    assert "Synthetic data" not in page.text
    synthetic = Page(report_html.render(dataclasses.replace(report(), synthetic=True)))
    assert "they prove nothing clinical" in synthetic.text


def test_a_report_of_words_alone_is_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report_html.write_report(path, report_html.Report("Study", ["It is not decided."]))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "It is not decided." in text
    assert "<h2" not in text
    assert "<script" not in text
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
