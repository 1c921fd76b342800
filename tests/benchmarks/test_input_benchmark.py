"""The measurement of the input runs on real files and says what it should."""

import json
import pathlib

import pytest

from tests.helpers import commands


@pytest.mark.once
def test_every_place_is_measured(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    words = [f"--data_dir={tiny_cohort}", f"--root={tmp_path}", "--patch=16", "--steps=2"]
    words += [
        "--unlabelled=3",
        "--noreal",
        "--step_seconds=0.01",
        f"--json={tmp_path / 'rows.json'}",
    ]
    done = commands.python("-m", "benchmarks.input", *words, env=command_env)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert all(set(row) == {"name", "ours", "peer", "ratio", "goal"} for row in rows)
    values = {row["name"]: row["ours"] for row in rows}
    for place in ("device", "host", "stream"):
        assert values[f"{place}: patches per second"] > 0
        assert values[f"{place}: share of time lost, steps of 0.01 s"] < 1
