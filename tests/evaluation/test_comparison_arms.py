"""The differences of the arms of a study of few labels, from made-up scores."""

import json
import math
import pathlib

import numpy as np
import pytest

from kdnet_jax.config import study
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import comparison_arms
from kdnet_jax.metrics import statistics
from kdnet_jax.reports import arms_text
from tests.helpers import compared_runs

PRIMARY = study.Endpoint("C-A", "dice", "mean")
A = compared_runs.ARMS["A"]


def write(folder: pathlib.Path, **others: np.ndarray) -> dict[str, list[pathlib.Path]]:
    return compared_runs.write_arms(folder, compared_runs.ARMS | others)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> comparison_arms.Arms:
    return comparison_arms.compare(write(tmp_path_factory.mktemp("arms")), PRIMARY)


def test_differences_by_hand(found: comparison_arms.Arms) -> None:
    means = {
        name: found.result(name, "dice", "mean").difference.estimate for name in study.CONTRASTS
    }
    assert means == pytest.approx({"C-A": 0.08, "C-B": 0.08, "B-A": 0, "D-A": 0.16}, abs=1e-12)
    # Run means 0.07 and 0.09, case means 0.06, 0.07 and 0.11: variances 0.0002 and 0.0007.
    parts = 0.0002 / 2, 0.0007 / 3
    benefit = found.result("C-A", "dice", "ET").difference
    assert benefit.se == pytest.approx(math.sqrt(sum(parts)))
    assert benefit.df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2))
    assert found.level("E", "dice", "mean").interval.estimate == pytest.approx(A.mean() + 0.31)


def test_the_share_of_the_room_is_taken_seed_by_seed(found: comparison_arms.Arms) -> None:
    share = found.share("dice", "mean")
    # With the D of seed 0 for both seeds D - A would be 0.14.
    assert share.lead.estimate == pytest.approx(0.16)
    assert share.estimate == pytest.approx(0.08 / 0.16)
    assert share.low < 0.5 < share.high


def test_holm_is_over_all_but_the_primary_endpoint(found: comparison_arms.Arms) -> None:
    assert len(found.p_holm) == 4 * 4 - 1
    assert tuple(PRIMARY) not in found.p_holm
    p = {key: found.result(*key).difference.p for key in found.p_holm}
    assert list(found.p_holm.values()) == statistics.holm(list(p.values()))


def test_what_is_said(found: comparison_arms.Arms) -> None:
    primary, room, near, other, alone, share, teacher = arms_text.verdict(found, 0.05)
    assert primary.startswith("Primary endpoint, named before the first run (2 runs an arm, 3 test")
    assert "C - A, the benefit of distillation, is +0.080 (95 % interval +0.0" in primary
    assert "p 0.022. The data support that the student profits" in primary
    assert "D - A, the room: what the missing labels are worth, is +0.160" in room
    assert "above 0.05, but its interval reaches below" in near
    # Its interval excludes 0, but there are 15 tests.
    assert found.result("C-B", "dice", "mean").difference.p < 0.2
    assert "The data do not show that the teacher's other sequences matter" in other
    assert "p 1.000 after Holm. The data show neither that self-training helps" in alone
    assert "recovers 50 % (95 % interval" in share
    assert "The teacher E has Dice 0.720" in teacher


def test_little_room_is_said_plainly(tmp_path: pathlib.Path) -> None:
    runs = write(tmp_path, D=np.add(A, [[0.01], [0.03]]))
    found = comparison_arms.compare(runs, PRIMARY)
    # D - A is 0.02: with another study.least_room that may be enough, and -1 does not judge it.
    for least, says in {
        0.05: "D - A is below 0.05",
        -1: "D - A is below 0.05",
        0.03: "D - A is below 0.03",
        0.01: "D - A is above 0.01, but its interval reaches below",
    }.items():
        said = " ".join(arms_text.verdict(found, least))
        assert f"Room: {says}" in said
        assert "(C - A) / (D - A), is undefined" in said


def test_other_arms_and_another_endpoint(tmp_path: pathlib.Path) -> None:
    runs = write(tmp_path)
    room = {arm: runs[arm] for arm in "EAD"}
    found = comparison_arms.compare(room, PRIMARY)
    assert list(found.contrasts) == ["D-A"]
    assert "needs arms that have not been run" in arms_text.verdict(found, 0.05)[0]
    assert found.share("dice", "mean") is None
    distance = study.Endpoint("D-A", "hd95_mm", "ET")
    found = comparison_arms.compare(room, distance)
    # 20 mm for each unit of Dice, and smaller is better.
    assert found.result(*distance).difference.estimate == pytest.approx(-20 * 0.16)
    assert "that the missing labels are worth something" in arms_text.verdict(found, 0.05)[0]


def test_runs_of_other_data_are_refused(tmp_path: pathlib.Path) -> None:
    runs = write(tmp_path)
    path = runs["C"][1] / "evaluation" / "summary.json"
    summary = json.loads(path.read_text("utf-8")) | {"data_fingerprint": "other"}
    path.write_text(json.dumps(summary), "utf-8")
    with pytest.raises(UserError, match=r"arms C and A differ .*\n  - data_fingerprint: "):
        comparison_arms.compare(runs, PRIMARY)
