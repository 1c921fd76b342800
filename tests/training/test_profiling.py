"""A profile holds a trace and its figures, and leaves the training as it was."""

import json
import pathlib
from typing import Any

import jax
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.core import checksums
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import runner
from kdnet_jax.models import networks
from kdnet_jax.training import profiling, saved_checkpoints

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def config(tiny_cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.train.steps, config.train.validate_every = 12, 12
    return config


def run(config: config_dict.ConfigDict, folder: pathlib.Path, profile: int) -> str:
    config.profile = profile
    runner.run(reading.read(config), folder)
    return checksums.content_hash(_params(folder))


def _params(folder: pathlib.Path) -> Any:
    values = reading.read_run(folder)
    like = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    return saved_checkpoints.load_params(folder, like, "latest")[0]


@pytest.mark.once
def test_a_profiled_run_is_the_same_run_with_a_trace_and_figures(
    config: config_dict.ConfigDict,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    plain = run(config, tmp_path / "plain", 0)
    assert not (tmp_path / "plain" / "profile").exists()
    profiled = run(config, tmp_path / "profiled", 4)
    assert profiled == plain
    folder = tmp_path / "profiled" / "profile"
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 4
    assert summary["step_seconds"] > 0
    assert 0 <= summary["waiting_share"] <= 1
    assert summary["flops_per_second"] == pytest.approx(summary["flops"] / summary["step_seconds"])
    assert summary["flops"] > 0
    assert list(folder.rglob("*.xplane.pb"))
    said = capsys.readouterr().err
    assert "A step takes" in said
    assert f"xprof --logdir={folder}" in said


@pytest.mark.once
def test_a_training_too_short_says_so_and_leaves_nothing(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(config, tmp_path, 50)
    assert "5 + 50 steps were requested, and this training took 12" in caplog.text
    assert not (tmp_path / "profile").exists()
    assert not (tmp_path / ".profile").exists()


@pytest.mark.parametrize(("taken", "kept"), [(7, "former"), (9, "new")])
def test_a_profile_stays_until_another_one_is_whole(
    tmp_path: pathlib.Path, taken: int, kept: str
) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "former").touch()
    profiler = profiling.Profiler(tmp_path, steps=4, flops=1)
    said = "".join(profiler.after_step(jax.numpy.zeros(1), 0.0) for _ in range(taken))
    assert ("A step takes" in said) == (kept == "new")
    profiler.close()
    assert (tmp_path / "profile" / "former").exists() == (kept == "former")
    assert (tmp_path / "profile" / "summary.json").exists() == (kept == "new")
    assert not (tmp_path / ".profile").exists()


def test_a_negative_count_is_refused(config: config_dict.ConfigDict) -> None:
    config.profile = -1
    with pytest.raises(UserError, match="profile is -1"):
        reading.read(config)
