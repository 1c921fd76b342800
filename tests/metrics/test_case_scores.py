"""Rows of cases.csv, the file itself, and the summary."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases

ISO = (1.0, 1.0, 1.0)
GLIOMA = task_lib.GLIOMA
REGIONS = GLIOMA.region_names
HEADER = (
    "case,region,dice,hd95_mm,nsd,sensitivity,specificity,"
    "volume_ref_mm3,volume_pred_mm3,ref_empty,pred_empty,"
    "nsd_2mm,lesion_dice,lesion_hd95_mm,lesions_ref,lesions_pred,lesions_missed,lesions_false"
)

OLD = HEADER[: HEADER.index(",nsd_2mm")]
TAIL = ",1,1,1,1,1,1,1"


def score(
    case: str = "a", region: str = "ET", dice: float = 0.5, **changes: Any
) -> cases.RegionScore:
    first = (3.25, 0.7, 0.6, 0.99, 120.0, 80.0, False, False)
    row = cases.RegionScore(case, region, dice, *first, 0.8, 0.4, 9.5, 2, 3, 1, 1)
    return dataclasses.replace(row, **changes)


def test_regions_are_nested_and_a_cavity_is_no_tumour() -> None:
    # Voxels of a rod: NCR, ED, ET, cavity, background; the prediction calls the cavity NCR.
    reference = np.array([1, 2, 3, 4, 0, 0], np.uint8).reshape(6, 1, 1)
    prediction = np.array([1, 2, 0, 1, 0, 0], np.uint8).reshape(6, 1, 1)
    et, tc, wt = cases.score_case("rod", reference, prediction, (2.0, 0.5, 3.0), task=GLIOMA)
    assert [row.region for row in (et, tc, wt)] == ["ET", "TC", "WT"]
    assert (et.dice, et.hd95_mm, et.nsd) == (0.0, pytest.approx(373.12866), 0.0)
    assert (et.ref_empty, et.pred_empty, et.sensitivity) == (False, True, 0.0)
    assert tc.dice == pytest.approx(2 * 1 / (2 + 2))  # {0, 2} and {0, 3}
    assert tc.hd95_mm == pytest.approx(0.95 * 2.0)  # directed distances 0 and 2 mm, both ways
    assert tc.nsd == pytest.approx(2 / 4)
    assert wt.dice == pytest.approx(2 * 2 / (3 + 3))
    assert wt.specificity == pytest.approx(2 / 3)
    assert (wt.volume_ref_mm3, wt.volume_pred_mm3) == (pytest.approx(9.0), pytest.approx(9.0))


def test_cases_without_tumour() -> None:
    nothing, tumour = np.zeros((2, 3, 3, 3), np.uint8)
    tumour[1, 1, 1] = 3
    for row in cases.score_case("none", nothing, nothing, ISO, task=GLIOMA):
        assert (row.dice, row.hd95_mm, row.nsd, row.nsd_2mm) == (1.0, 0.0, 1.0, 1.0)
        assert (row.lesion_dice, row.lesion_hd95_mm, row.specificity) == (1.0, 0.0, 1.0)
        assert row.ref_empty
        assert row.pred_empty
        assert math.isnan(row.sensitivity)
    for row in cases.score_case("false alarm", nothing, tumour, ISO, task=GLIOMA):
        assert (row.dice, row.nsd, row.ref_empty, row.pred_empty) == (0.0, 0.0, True, False)
        assert (row.lesion_dice, row.lesion_hd95_mm, row.lesions_false) == (0.0, 374.0, 1)
        assert row.specificity == pytest.approx(26 / 27)


def test_the_tolerances_are_1_and_2_mm() -> None:
    reference, prediction = np.zeros((2, 3, 3, 9), np.uint8)
    reference[1, 1, 1], prediction[1, 1, 3] = 3, 3
    for step, expected in (
        (0.4, (1, 1)),
        (0.5, (1, 1)),
        (0.6, (0, 1)),
        (1.0, (0, 1)),
        (1.1, (0, 0)),
    ):
        row = cases.score_case("a", reference, prediction, (1.0, 1.0, step), task=GLIOMA)[0]
        assert (row.nsd, row.nsd_2mm) == expected


def test_other_grids_and_values_are_refused() -> None:
    good = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(UserError, match=r"x1: the prediction's grid \(3, 3, 2\).*\(3, 3, 3\)"):
        cases.score_case("x1", good, good[..., :2], ISO, task=GLIOMA)
    with pytest.raises(UserError, match="x1: the prediction holds values from 5 to 5"):
        cases.score_case("x1", good, good + 5, ISO, task=GLIOMA)


def test_a_real_case_scores_as_counted_by_hand(sample_dir: pathlib.Path) -> None:
    path = sorted(sample_dir.glob("*/*_seg.nii.gz"))[0]
    values = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)
    reference = np.where(values == 4, 3, values).astype(np.uint8)
    prediction = np.roll(reference, 2, axis=2)
    et, _, wt = cases.score_case("real", reference, prediction, ISO, task=GLIOMA)
    overlap = ((values == 4) & (np.roll(values, 2, axis=2) == 4)).sum()
    assert et.dice == pytest.approx(overlap / (values == 4).sum())
    assert et.volume_ref_mm3 == (values == 4).sum()
    assert 0 < wt.hd95_mm <= 2.0
    assert 0 < wt.nsd < 1


def test_csv_round_trip(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cases.csv"
    rows = [
        score('Müller, "B"', dice=1 / 3),
        score(region="WT", sensitivity=math.nan, ref_empty=True, hd95_mm=373.12866),
    ]
    cases.write_cases_csv(path, rows)
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == HEADER
    assert (
        text.splitlines()[2]
        == "a,WT,0.5,373.12866,0.7,,0.99,120.0,80.0,true,false,0.8,0.4,9.5,2,3,1,1"
    )
    back = cases.read_cases_csv(path, regions=REGIONS)
    assert back[0] == rows[0]
    assert math.isnan(back[1].sensitivity)
    assert dataclasses.replace(back[1], sensitivity=0.0) == dataclasses.replace(
        rows[1], sensitivity=0.0
    )
    assert [item.name for item in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,dice\na,1\n", "region, hd95_mm"),
        (f"{HEADER}\na,ET,good,1,1,1,1,1,1,true,true{TAIL}\n", "line 2: .*good"),
        (f"{HEADER}\na,ET,1,1,1,1,1,1,1,maybe,true{TAIL}\n", "line 2: .*maybe"),
        (f"{HEADER}\na,XX,1,1,1,1,1,1,1,true,true{TAIL}\n", "line 2: .*XX"),
        (f"{HEADER}\na,ET,1,1,1,1,1,1,1,true,true,1,1,1,1.5,1,1,1\n", "line 2: .*1.5"),
        (f"{HEADER}\na,ET,1,1\n", "line 2"),
        (f"{OLD}\na,ET,1,1,1,1,1,1,1,true,true\n", "nsd_2mm, .*lesions_false missing.*again"),
        (f"{HEADER}\n" + f"a,ET,1,1,1,1,1,1,1,true,true{TAIL}\n" * 2, "case a, region ET"),
    ],
)
def test_bad_csv_is_named(tmp_path: pathlib.Path, text: str, message: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        cases.read_cases_csv(path, regions=REGIONS)


def test_missing_csv_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        cases.read_cases_csv(tmp_path / "cases.csv", regions=REGIONS)


def test_summary_counts_what_is_defined() -> None:
    rows = [
        score("a", "ET", 0.2),
        score("b", "ET", 0.6, sensitivity=math.nan, ref_empty=True),
        score("c", "ET", 1.0),
        score("a", "WT", 0.9),
    ]
    summary = cases.summarise(rows, task=GLIOMA)
    et, tc = summary["regions"]["ET"], summary["regions"]["TC"]
    assert summary["cases"] == 3
    assert et["dice"] == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.4),
        "median": 0.6,
        "count": 3,
    }
    assert (et["sensitivity"]["count"], et["cases"], et["ref_empty"], et["pred_empty"]) == (
        2,
        3,
        1,
        0,
    )
    assert tc["dice"] == {"mean": None, "sd": None, "median": None, "count": 0}
    assert summary["regions"]["WT"]["dice"]["sd"] is None
    assert summary["mean_dice"] == pytest.approx((0.6 + 0.9) / 2)
    assert (et["lesions_ref"], et["lesions_false"], tc["lesions_pred"]) == (6, 3, 0)
    assert et["lesion_dice"]["count"] == 3
    json.dumps(summary, allow_nan=False)
    assert cases.summarise([], task=GLIOMA)["mean_dice"] is None
