"""The command `python -m kdnet_jax.compare`."""

import csv
import json
import pathlib

from tests.helpers import commands, compared_runs


def test_the_command_writes_everything_and_says_the_verdict(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    compared_runs.write_sides(tmp_path)
    out = tmp_path / "out"
    sides = [f"--{side}={tmp_path}/seed-*/{side}" for side in ("baseline", "student")]
    words = [*sides, f"--teacher={tmp_path}/teacher", f"--output={out}", "--resamples=1000"]
    done = commands.run("compare", *words, env=command_env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The data support that the student beats the baseline in Dice." in done.stdout
    figures = {f"{kind}_{m}.png" for kind in ("slope", "by_volume") for m in ("dice", "hd95_mm")}
    texts = {"comparison.md", "comparison.tex", "comparison.csv", "cases.csv", "comparison.json"}
    assert {path.name for path in out.iterdir()} == figures | texts | {"cumulative.png"}
    everything = json.loads((out / "comparison.json").read_text("utf-8"))
    assert len(everything["inputs"]["baseline"]) == 3
    assert "--output=" in everything["provenance"]["command"]
    with (out / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 * 4 * 6


def test_runs_that_differ_end_with_one_message(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    base = compared_runs.write_run(tmp_path / "b", "baseline", [0.5, 0.6])
    other = compared_runs.write_run(
        tmp_path / "s", "student", [0.6, 0.8], config={"train.steps": 99}
    )
    words = [f"--baseline={base}", f"--student={other}", f"--output={tmp_path / 'out'}"]
    done = commands.run("compare", *words, env=command_env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the runs are not comparable:\n  - train.steps: ")
    assert not (tmp_path / "out").exists()
    done = commands.run("compare", *words[:2], f"--output={other}", env=command_env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --output={other}: is a run's folder")
