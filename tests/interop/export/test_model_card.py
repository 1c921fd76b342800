"""The card says what was measured, in how many cases, and lets no name speak for itself."""

import re
from typing import Any

import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.interop.export import model_card, scores
from kdnet_jax.metrics import cases
from kdnet_jax.models import networks, unet
from kdnet_jax.runs import model as model_lib
from tests.helpers import made_up_tasks

MODEL = model_lib.Model(
    task_lib.GLIOMA, "student", unet.UNetConfig(widths=(2, 4)), ("t2",), 1.0, (8, 8, 8)
)


def _score(case: str, region: str, dice: float, **changes: Any) -> cases.RegionScore:
    numbers = {"dice": dice, "nsd": dice, "hd95_mm": 10 * dice, "nsd_2mm": dice}
    numbers |= {"lesion_dice": dice, "lesion_hd95_mm": 1.0, "sensitivity": 1.0, "specificity": 1.0}
    counts = dict.fromkeys(("lesions_ref", "lesions_pred", "lesions_missed", "lesions_false"), 0)
    empty = {"ref_empty": False, "pred_empty": False} | changes
    volumes = {"volume_ref_mm3": 1.0, "volume_pred_mm3": 1.0}
    return cases.RegionScore(case=case, region=region, **numbers, **counts, **empty, **volumes)


def _document(**changes: Any) -> dict[str, Any]:
    training = {
        "cases": 4,
        "validation_cases": 2,
        "steps": 9,
        "synthetic": False,
        "source": "BraTS",
    }
    return {
        "network": networks.to_json(MODEL.network),
        "parameters": 1234,
        "parameters_sha256": "f" * 64,
        "step": 6,
        "input": {"intensities": "z-scores", "axes": "b d h w m"},
        "training": training,
        "licence": "CC0-1.0",
    } | changes


def _card(document: dict[str, Any], name: str = "it") -> str:
    return model_card.render(name, MODEL, document, {"params": "parameters"})


def _tested(
    *rows: cases.RegionScore, teacher: Any = None, calibration: Any = None
) -> dict[str, Any]:
    summary = cases.summarise(rows, task=task_lib.GLIOMA) | {"hd95": "of the surfaces"}
    return _document(test=scores.collect(rows, summary, teacher, calibration))


def test_the_numbers_are_those_of_the_cases() -> None:
    rows = [
        *(_score("a", region, 0.5) for region in ("ET", "TC", "WT")),
        _score("b", "ET", 0.9, pred_empty=True),
        _score("b", "TC", 0.9),
        _score("b", "WT", 0.9, ref_empty=True),
    ]
    card = _card(_tested(*rows))
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
    rows = [_score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    card = _card(_tested(*rows))
    assert "| ET | 0.500 | 0.500 | 5.0 | 1 | 0 |" in card


def test_a_teacher_on_the_same_cases_is_named() -> None:
    rows = [_score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    means = {"ET": 0.7, "TC": 0.8, "WT": 0.9}
    regions = {name: {"dice": {"mean": mean}} for name, mean in means.items()}
    teacher = {"modalities": ["t1", "t2"], "cases": 1, "regions": regions}
    card = _card(_tested(*rows, teacher=teacher))
    wanted = "Its teacher, on t1, t2, has a mean Dice of ET 0.700, TC 0.800, WT 0.900 on the same 1"
    assert wanted in card


def test_the_calibration_is_as_it_was_measured() -> None:
    rows = [_score("a", region, 0.5) for region in ("ET", "TC", "WT")]
    measured = {"ece_before": 0.1614, "ece_after": 0.0496, "covered": 3, "ranged": 4}
    regions = {
        "ET": measured | {"dice_rank": 0.5},
        "TC": measured | {"ranged": 0, "covered": 0},
        "WT": measured | {"ece_before": None, "ece_after": None},
    }
    card = _card(_tested(*rows, calibration={"regions": regions}))
    assert "| ET | 0.161 | 0.050 | 3 of 4 cases |" in card
    assert "| TC | 0.161 | 0.050 | - |" in card
    assert "| WT | - | - | 3 of 4 cases |" in card
    assert "calibration error" not in _card(_tested(*rows)).lower()


def test_without_scores_nothing_is_claimed() -> None:
    card = _card(_document())
    assert "No test scores come with it" in card
    assert "Dice" not in card.partition("## Test")[2].partition("## Intended")[0]


def test_it_is_no_medical_device_and_what_it_learned_from() -> None:
    card = _card(_document(teacher={"hash": "ab" * 32}))
    assert card.index("no medical device") < card.index("## What it is")
    assert "4 training and 2 validation cases, of BraTS" in card
    assert "`abababababababab...`" in card
    assert "Licence of the parameters: CC0-1.0." in card
    assert "synthetic" not in card
    made_up = _card(_document(training=_document()["training"] | {"synthetic": True}))
    assert "it has never seen a patient" in made_up
    assert "of no use on patients" in made_up


def test_another_tool_s_model_says_who_made_it() -> None:
    document = _document(made_by="nnU-Net <v2>")
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
    assert _card(_document(), name=name).splitlines()[0] == shown


def test_a_card_speaks_of_its_own_task() -> None:
    task = made_up_tasks.HEART
    model = model_lib.Model(
        task, "teacher", unet.UNetConfig(widths=(2, 4)), ("ct",), (3.0, 1.0, 1.0), (8, 8, 8)
    )
    rows = [_score("a", region, 0.5) for region in task.region_names]
    summary = cases.summarise(rows, task=task) | {"hd95": "of the surfaces"}
    document = _document(test=scores.collect(rows, summary, None, None))
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
