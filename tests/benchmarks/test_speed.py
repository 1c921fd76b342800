"""The table of `benchmarks.speed`: its rows, its JSON, its workers, and mistakes in its flags."""

import json
import subprocess
import sys

import pytest

from benchmarks import measuring, records, speed_cases
from kdnet_jax import errors
from kdnet_jax.models.kernels import build
from tests.helpers import commands

pytestmark = pytest.mark.once


def test_row_of_a_comparison() -> None:
    row = records.make_row("step", "s", 0.8, [3.0, 1.0, 2.0], [4.0, 4.0, 100.0])
    assert (row.ours, row.peer, row.ratio, row.met) == (2.0, 4.0, 0.5, True)
    assert row.ours_all == (3.0, 1.0, 2.0)
    assert "goal ratio at most 0.8: met" in records.text(row)


def test_row_whose_goal_is_ours_alone() -> None:
    slow = records.make_row("compile", "s", 5.0, [6.0], goal_of="ours")
    assert (slow.peer, slow.ratio, slow.met) == (None, None, False)
    rate = records.make_row("rate", "1/s", 71, [80.0], [160.0], goal_of="ours", at_least=True)
    assert rate.met
    assert rate.ratio == 0.5


def test_a_disturbed_row_says_so() -> None:
    quiet = records.make_row("a", "s", 1, [1.0], [1.0], others=[0.0, 0.02])
    loud = records.make_row("a", "s", 1, [1.0], [1.0], others=[0.0, 1.5])
    assert "WARNING" not in records.text(quiet)
    assert "0.8 cores" in records.text(loud)


def test_every_row_has_a_goal_of_the_table() -> None:
    names = list(speed_cases.cases(speed_cases.Sizes()))
    assert names == [
        *("training_step_narrow", "training_step_wide"),
        *("distillation_step_narrow", "distillation_step_wide"),
        *("cached_teacher_narrow", "cached_teacher_wide"),
        *("four_students_narrow", "four_students_wide"),
        *("prediction", *(["prediction_bfloat16"] if build.has_bfloat16() else [])),
        "quarter_width",
        *("training_memory_narrow", "training_memory_wide"),
        *("compilation_cold", "compilation_cached"),
    ]
    assert speed_cases.needed_modules(["distillation_step_wide", "compilation_cold"]) == ()
    assert speed_cases.needed_modules(["training_memory_wide"]) == ("torch",)
    assert speed_cases.needed_modules(names) == ("torch", "monai")


def test_worker_that_fails_tells_why() -> None:
    with pytest.raises(RuntimeError, match=r"made_data:absent failed:(.|\n)*AttributeError"):
        measuring.Worker("made_data:absent", 1)


def test_table_by_the_command(tmp_path) -> None:
    pytest.importorskip("torch", reason="the peer of the benchmarks needs torch")
    target = tmp_path / "rows.json"
    names = ["training_step_narrow", "training_memory_narrow"]
    # Twice the first: the order and number of the rows are the table's.
    words = ["--quick", f"--json={target}", f"--only={names[1]},{names[0]},{names[0]}"]
    # Not forked: it measures, and starts workers of its own.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *words],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert {"commit", "command", "machine", "jax", "torch"} <= row["about"].keys()
        assert f"{row['name']}: ours" in done.stdout
    step, memory = rows
    assert (step["unit"], step["goal"], memory["unit"], memory["goal"]) == ("s", 0.5, "GiB", 0.85)
    assert len(step["ours_all"]) == len(step["peer_all"]) == 2
    assert step["peer"] == min(
        step["notes"][f"peer_{layout}_seconds"] for layout in speed_cases.LAYOUTS
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only=training_stp_wide"], "did you mean 'training_step_wide'?"),
        (["--json=/nowhere/rows.json"], "--json is /nowhere/rows.json"),
        (["--cores=0"], "--cores is 0"),
        (["--repetitions=0"], "repetitions"),
        (["only=prediction"], "'only=prediction' belongs to no flag"),
    ],
)
def test_mistakes_are_told_at_the_start(words, told) -> None:
    done = commands.python("-m", "benchmarks.speed", *words, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_peer_a_row_says_what_to_install() -> None:
    measuring.check_peers("json")
    with pytest.raises(errors.UserError, match=r"^absent_a and absent_b: not installed.*pip"):
        measuring.check_peers("absent_a", "json", "absent_b")
