"""A profile adds up, names the parts of the step, and leaves the training as it was."""

import json
import pathlib
import re
from typing import Any

import jax
import optax
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax import (
    checksums,
    experiment,
    model,
    runs,
    saved_checkpoints,
    sharding,
    steps,
    trace,
)
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.losses import objective
from kdnet_jax.models import networks


@pytest.fixture
def config(tiny_cohort: pathlib.Path, built: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    config.train.steps, config.train.validate_every = 12, 12
    return config


def run(config: config_dict.ConfigDict, folder: pathlib.Path, profile: int) -> str:
    config.profile = profile
    experiment.run(reading.read(config), folder)
    return checksums.content_hash(_params(folder))


def _params(folder: pathlib.Path) -> Any:
    values = reading.read_run(folder)
    like = networks.init_params(values.network, len(values.modalities), jax.random.key(0))
    return saved_checkpoints.load_params(folder, like, "latest")[0]


def test_a_profiled_run_is_the_same_run_with_a_page_that_adds_up(
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
    groups = summary["operation_seconds"]
    total = sum(groups["phase"].values())
    for group in groups.values():
        assert sum(group.values()) == pytest.approx(total, rel=1e-6)
    # Two threads at most work on it, and there is work in each part of a step.
    assert 0 < total < 4 * summary["step_seconds"]
    assert {"network, forward", "network, backward", "update"} <= set(groups["phase"])
    assert "convolution" in groups["kind"]
    assert summary["flops_per_second"] == pytest.approx(summary["flops"] / summary["step_seconds"])
    assert 0 < summary["share_of_peak"] < 1
    assert 0 <= summary["device_idle_share"] <= 1
    assert "Where the time of a training step goes" in (folder / "summary.html").read_text("utf-8")
    assert "A step takes" in capsys.readouterr().err


def test_a_training_too_short_says_so_and_leaves_nothing(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(config, tmp_path, 50)
    assert "5 + 50 steps were asked for, and this training had 12" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_a_negative_count_is_refused(config: config_dict.ConfigDict) -> None:
    config.profile = -1
    with pytest.raises(UserError, match="profile is -1"):
        reading.read(config)


@pytest.mark.parametrize(
    ("scope", "phase", "kind", "level"),
    [
        ("jit(s)/teacher/UNet/UNet._blocks/encoder_1_0/Conv_0/ffi_call",
         "teacher, forward", "convolution", "encoder 1"),
        ("jit(s)/jvp(network)/UNet/UNet._blocks/decoder_0_1/InstanceNorm_0/sub",
         "network, forward", "normalisation", "decoder 0"),
        ("jit(s)/transpose(jvp(network))/UNet/UNet._up/add",
         "network, backward", "upsampling", "up"),
        ("jit(s)/transpose(jvp(network))/AdaptedNetwork/member_0/member_0._encode/encoder_2_1"
         "/conv1/norm/ffi_call", "network, backward", "normalisation", "encoder 2"),
        ("jit(s)/jvp(network)/AdaptedNetwork/member_0/member_0._up/upsamples_1_conv_block/conv2/dot",
         "network, forward", "convolution", "upsamples 1"),
        ("jit(s)/jvp()/reduce_sum", "loss, forward", "other", ""),
        ("jit(s)/transpose(jvp())/mul", "loss, backward", "other", ""),
        ("jit(s)/augment/vmap(f)/select_n", "augmentation", "other", ""),
        ("jit(s)/update/mul", "update", "other", ""),
    ],
)  # fmt: skip
def test_scopes_are_sorted(scope: str, phase: str, kind: str, level: str) -> None:
    assert (trace.phase(scope), trace.kind(scope), trace.level(scope)) == (phase, kind, level)


@pytest.mark.parametrize("family", [networks.UNET, *networks.FAMILIES])
def test_the_parts_of_every_network_are_known(family: str) -> None:
    config = common.base_config("baseline", "smoke")
    config.model.family, config.model.widths = family, (8, 16, 32)
    config.model.blocks = config.model.last_blocks = 2
    values = reading.read(config)
    optimizer = optax.sgd(1e-3)
    step = steps.jit_step(
        sharding.make_mesh(),
        student=runs.as_network(model.of_experiment(values), values.data.modalities),
        loss=objective.of_options(values.head, values.loss),
        optimizer=optimizer,
        plan=steps.Plan(values.augment, values.loader.patch),
    )
    params = runs.expected_params(model.of_experiment(values))
    state = jax.eval_shape(lambda: steps.init_state(params, optimizer))
    batch = steps.batch_shapes(1, values.loader.patch, len(values.data.modalities))
    lowered = step.lower(state, (), batch, jax.eval_shape(lambda: jax.random.key(0)))
    scopes = set(re.findall(r'loc\("([^"]+)"', lowered.as_text(debug_info=True)))
    for way in ("forward", "backward"):
        own = [scope for scope in scopes if trace.phase(scope) == f"network, {way}"]
        layers = {"convolution", "normalisation", "upsampling", "head"}
        assert layers <= {trace.kind(scope) for scope in own}
        assert all(trace.level(scope) for scope in own if trace.kind(scope) in layers)
    # Others name places within a function of its own, which the compiled program has in full.
    whole = [scope for scope in scopes if scope.startswith("jit(")]
    elsewhere = [scope for scope in whole if trace.phase(scope).startswith("loss")]
    assert elsewhere
    assert not [scope for scope in elsewhere if "UNet" in scope or "AdaptedNetwork" in scope]


def test_busy_time_is_the_union() -> None:
    # 0-2, 1-3 and 5-6 seconds; one within another counts once.
    starts = [(1.0, 2.0), (0.0, 2.0), (5.0, 1.0), (5.2, 0.1)]
    operations = [trace.Operation("f", "", start, seconds) for start, seconds in starts]
    assert trace.busy_seconds(operations) == pytest.approx(4)
