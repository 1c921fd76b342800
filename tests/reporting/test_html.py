"""The report: self-contained, escaped, complete."""

import dataclasses
import html.parser
import pathlib
import re

import pytest
from matplotlib import figure as mpl_figure

from kdnet_jax.metrics import cases
from kdnet_jax.reporting import html as report_html

EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report() -> report_html.Report:
    row = cases.RegionScore(EVIL, "ET", 0.5, 4.0, 0.8, 1.0, 1.0, 1.0, 1.0, False, False)
    scores = [row, dataclasses.replace(row, case="b", dice=0.75, hd95_mm=6.0, ref_empty=True)]
    return report_html.Report(
        title=f"Student {EVIL}",
        summary=["The student reaches 0.625."],
        facts=[("Role", "student"), ("Data", EVIL)],
        runs={"student": cases.summarise(scores), EVIL: cases.summarise(scores[:1])},
        pictures=[report_html.Picture(mpl_figure.Figure((2, 1)), f'curves "{EVIL}', "A caption.")],
        cases=[
            report_html.CaseView(
                rank,
                EVIL,
                report_html.Picture(mpl_figure.Figure((1, 1)), f"{rank} case"),
                [("Dice ET", "0.500")],
            )
            for rank in ("best", "median", "worst")
        ],
        commands=[("Predict", "python -m kdnet_jax.predict --input='a b.nii.gz' && echo <done>")],
        notes=["One case of the teacher is missing."],
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html.render(report()))


def test_nothing_is_fetched(page: Page) -> None:
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert len(addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", report_html.render(report()))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_names_are_escaped_and_stay_readable(page: Page) -> None:
    assert page.text.count(EVIL) >= 5  # as text: title, heading, run, fact, cases
    assert "echo <done>" in page.text
    assert "--input='a b.nii.gz' && echo" in page.text


def test_figures_have_alternative_texts(page: Page) -> None:
    texts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert texts == [f'curves "{EVIL}', "best case", "median case", "worst case"]
    assert "A caption." in page.text


def test_table_holds_the_summaries(page: Page) -> None:
    words = " ".join(page.text.split())
    # ET of both runs: mean ± SD, median, HD95 mean and median, NSD, cases, empty references.
    assert "student 0.625 ± 0.177 0.625 5.0 5.0 0.800 2 1" in words
    assert f"{EVIL} 0.500 ± – 0.500 4.0 4.0 0.800 1 0" in words
    assert "student – ± – – – – – 0 0" in words  # TC has no row


def test_warnings(page: Page) -> None:
    assert "not a medical device" in page.text
    assert "Synthetic data" not in page.text
    synthetic = Page(report_html.render(dataclasses.replace(report(), synthetic=True)))
    assert "they prove nothing clinical" in " ".join(synthetic.text.split())


def test_a_report_without_pictures_and_cases_is_whole(tmp_path: pathlib.Path) -> None:
    bare = dataclasses.replace(report(), pictures=(), cases=(), commands=(), notes=())
    path = tmp_path / "report.html"
    path.write_text("old")
    report_html.write_report(path, bare)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "<h2>Cases" not in text
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
