"""What the documents refer to is there: files, headings, and the version in all its places."""

import pathlib
import re

import pytest
import yaml

import kdnet_jax

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _anchors(document: pathlib.Path) -> set[str]:
    """Returns the names that GitHub gives to the headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: pathlib.Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == kdnet_jax.__version__
    assert [paper["doi"] for paper in citation["references"]] == ["10.1007/978-3-030-59710-8_75"]
    assert f"## [{kdnet_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
