"""docs/reference.md says what the code says."""

import pathlib
import re

import pytest

from tests.helpers import commands

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as the code makes it, in a process of its own: commands share names of flags."""
    page = tmp_path_factory.mktemp("reference") / "reference.md"
    done = commands.python("-m", "docs.make_reference", page, timeout=120)
    assert done.returncode == 0, done.stderr
    return page.read_text("utf-8")


def test_the_page_is_up_to_date(made: str) -> None:
    kept = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert kept == made, "run python -m docs.make_reference"


def test_every_key_and_flag_says_what_it_is_for(made: str) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", made, re.MULTILINE)
    assert len(rows) > 150
    assert not [name for name, row in rows if not row.split(" | ")[-1].strip()]


@pytest.mark.parametrize(
    "row",
    [
        "| `train.steps` | a whole number from 1 to 1000000000 | "
        "`800` (phantom, fewlabels), `95000` (brats), `6` (smoke); "
        "teacher: `1200` (phantom, fewlabels), `95000` (brats), `6` (smoke) |",
        "| `loss.form` | dice_ce, dice_bce, reconstruction | `dice_ce` |",
        "| `augment.rotation_probability` | a number from 0 to 1 | "
        "`0` (none, plain), `0.2` (nnunet) |",
        "| `study.seeds` | a whole number from 1 to 100 | `3` (phantom, brats), `2` (smoke), "
        "`5` (fewlabels) |",
        "| `--workers` | an integer in the range [1, 1024] | `2` | Cases prepared at once. |",
        "| `--references` | a text | must be given |",
        "| `--distributed` | `auto`, `off` | `auto` |",
        "| `task` | a text | `glioma` | What is segmented: glioma, or a dataset.json of nnU-Net",
        '| `model.modalities` | channels of the task with commas, or nothing | `""` |',
        "| `data.spacing` | a number from 0 to 100, or 3 values with commas, each a number from 0 "
        "to 100 | `3` (phantom, fewlabels), `1` (brats), `6` (smoke) |",
    ],
)
def test_rows(made: str, row: str) -> None:
    assert row in made
