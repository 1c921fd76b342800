"""A dataset that is damaged under a run, by the real command: named, skipped, built anew."""

import json
import pathlib
import shutil
import subprocess

import pytest

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.data.records import skipping
from kdnet_jax.experiment import run_data
from tests.helpers import commands, damage

CASES = 8


@pytest.mark.once
def test_a_damaged_dataset_stops_a_run_and_loses_nothing(
    tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    cases = damage.build(tmp_path, CASES)
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tmp_path / "scans"), str(tmp_path / "datasets")
    config.data.spacing = 4.0
    split = run_data.open_data(reading.read(config)).split
    workdir = tmp_path / "run"
    trained, tested = sorted(split.train)[0], sorted(split.test)[0]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = ["--config=configs/baseline.py:smoke", f"--workdir={workdir}", *more]
        words += [f"--config.data.{key}={config.data[key]}" for key in ("data_dir", "root")]
        done = commands.run("main", *words, "--config.data.spacing=4.0", env=command_env)
        assert "Traceback" not in done.stderr
        return done

    # -- A training case: by default the run stops ---------------------------------------------
    order = [summary.case_id for summary in cases.summaries]
    damage.flip(damage.file_of(cases, order.index(trained)))
    done = run()
    assert done.returncode == 2, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"the training case {trained} cannot be read: reading it fails" in message
    assert "--config.data.on_read_error=skip" in message

    # -- Skipped, with a test case that is damaged too: trained, but not scored -----------------
    damage.flip(damage.file_of(cases, order.index(tested)))
    done = run("--config.data.on_read_error=skip")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"warning: {damage.file_of(cases, order.index(trained))}") == 1
    (row,) = (workdir / skipping.FILE).read_text().splitlines()
    assert json.loads(row)["case_id"] == trained
    assert f"error: {damage.file_of(cases, order.index(tested))}: the case {tested} cannot" in (
        done.stderr
    )
    assert "a score over fewer cases would be another score" in done.stderr
    log = (workdir / "metrics.jsonl").read_text()
    assert not (workdir / "evaluation").exists()

    # -- As the message says: deleted, built anew, and the run is finished -----------------------
    shutil.rmtree(cases.folder)
    done = run()
    assert done.returncode == 0, done.stderr
    assert (workdir / "evaluation" / "summary.json").exists()
    assert (workdir / "metrics.jsonl").read_text() == log
    assert skipping.left_out(workdir) == [trained]
    assert "Training cases skipped as unreadable" in (workdir / "report.html").read_text()
