"""The card says what was measured, in how many cases, and lets no name speak for itself."""

import re
from typing import Any

import pytest

from kdnet_jax.interop.export import model_card, scores
from kdnet_jax.metrics import cases
from kdnet_jax.models import unet
from kdnet_jax.runs import model as model_lib
from tests.helpers import card_documents as documents
from tests.helpers import made_up_tasks


def _card(document: dict[str, Any], name: str = "it") -> str:
    return model_card.render(name, documents.MODEL, document, {"params": "parameters"})


def test_the_numbers_are_those_of_the_cases() -> None:
    rows = [
        *(documents.score("a", region, 0.5) for region in ("ET", "TC", "WT")),
        documents.score("b", "ET", 0.9, pred_empty=True),
        documents.score("b", "TC", 0.9),
        documents.score("b", "WT", 0.9, ref_empty=True),
    ]
    card = _card(documents.with_scores(*rows))
    # Two cases of 0.5 and 0.9: mean 0.7, se 0.2, t(1) at 97.5 % = 12.706, cut at what can be.
    reach = 12.7062 * 0.2
    low, high = max(0.7 - reach, 0), 10 * (0.7 + reach)
    row = (
        f"| WT | 0.700 ({low:.3f} to 1.000) | 0.700 ({low:.3f} to 1.000) | 7.0 (0.0 to {high:.1f})"
    )
    assert f"{row} | 2 | 1 |" in card
    assert "Means over 2 held-out cases" in card
    assert "1 of 6 region masks are empty where the reference is not" in card


def test_one_case_has_no_interval() -> None:
    rows = [documents.score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    card = _card(documents.with_scores(*rows))
    assert "| ET | 0.500 | 0.500 | 5.0 | 1 | 0 |" in card


def test_a_teacher_on_the_same_cases_is_named() -> None:
    rows = [documents.score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    means = {"ET": 0.7, "TC": 0.8, "WT": 0.9}
    regions = {name: {"dice": {"mean": mean}} for name, mean in means.items()}
    teacher = {"modalities": ["t1", "t2"], "cases": 1, "regions": regions}
    card = _card(documents.with_scores(*rows, teacher=teacher))
    wanted = "Its teacher, on t1, t2, has a mean Dice of ET 0.700, TC 0.800, WT 0.900 on the same 1"
    assert wanted in card


def test_the_calibration_is_as_it_was_measured() -> None:
    rows = [documents.score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    measured = {"ece_before": 0.1614, "ece_after": 0.0496, "covered": 3, "ranged": 4}
    regions = {
        "ET": measured | {"dice_rank": 0.5},
        "TC": measured | {"ranged": 0, "covered": 0},
        "WT": measured | {"ece_before": None, "ece_after": None},
    }
    card = _card(documents.with_scores(*rows, calibration={"regions": regions}))
    assert "| ET | 0.161 | 0.050 | 3 of 4 cases |" in card
    assert "| TC | 0.161 | 0.050 | - |" in card
    assert "| WT | - | - | 3 of 4 cases |" in card
    assert "calibration error" not in _card(documents.with_scores(*rows)).lower()


def test_without_scores_nothing_is_claimed() -> None:
    card = _card(documents.document())
    assert "No test scores come with it" in card
    assert "Dice" not in card.partition("## Test")[2].partition("## Intended")[0]


def test_it_is_no_medical_device_and_what_it_learned_from() -> None:
    card = _card(documents.document(teacher={"hash": "ab" * 32}))
    assert card.index("no medical device") < card.index("## What it is")
    assert "4 training and 2 validation cases, of BraTS" in card
    assert "`abababababababab...`" in card
    assert "Licence of the parameters: CC0-1.0." in card
    assert "synthetic" not in card
    training = documents.document()["training"] | {"synthetic": True}
    made_up = _card(documents.document(training=training))
    assert "it has never seen a patient" in made_up
    assert "of no use on patients" in made_up


def test_another_tool_s_model_says_who_made_it() -> None:
    document = documents.document(made_by="nnU-Net <v2>")
    del document["training"]
    card = _card(document)
    assert "Trained by nnU-Net &lt;v2&gt;" in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)</script>", "# &lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a | b", "# a \\| b"),
        ("[x](http://y)", "# \\[x\\](http://y)"),
        ("two\nlines", "# two lines"),
        ("*_`~", "# \\*\\_\\`\\~"),
    ],
)
def test_names_are_shown_as_they_are(name: str, shown: str) -> None:
    assert _card(documents.document(), name=name).splitlines()[0] == shown


def test_a_card_speaks_of_its_own_task() -> None:
    task = made_up_tasks.HEART
    model = model_lib.Model(
        task, "teacher", unet.UNetConfig(widths=(2, 4)), ("ct",), (3.0, 1.0, 1.0), (8, 8, 8)
    )
    rows = [documents.score("a", region, 0.5) for region in task.region_names]
    summary = cases.summarise(rows, task=task) | {"hd95": "of the surfaces"}
    document = documents.document(test=scores.collect(rows, summary, None, None))
    card = model_card.render("it", model, document, {})
    assert "It segments heart in one channel (ct) into wall, scar and clot." in card
    assert "| Working voxel size | 3 x 1 x 1 mm |" in card
    assert "| Labels of its masks | 0 background, 1 class 1, 2 class 2, 3 clot |" in card
    assert [name for name in task.region_names if f"| {name} | 0.500" in card] == [
        "wall",
        "scar",
        "clot",
    ]
    for word in ("glioma", "tumour", "skull", "ET", "MRI", "BraTS 2021", "sequence"):
        assert not re.search(rf"\b{word}", card), word
