"""nnU-Net's and MONAI's networks as students: they train, spread, export, and say what they cannot.

That they are those of PyTorch is for `tests/benchmarks/test_parity.py`.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.errors import UserError
from kdnet_jax.losses import objective
from kdnet_jax.models import heads, monai, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import commands

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _like(**changes: Any) -> unet.UNetConfig:
    values = {"widths": (8, 16, 32), "bfloat16": False, "convolutions": "native"}
    return unet.UNetConfig(**values | changes)


FAMILIES = {
    name: kind.of_unet(_like(blocks=2 if name == "dynunet" else 1))
    for name, kind in networks.FAMILIES.items()
}
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 16, 2), np.float32))
EACH = pytest.mark.parametrize("name", list(FAMILIES))
# Between them: every layer.
_TWO = ("residual_encoder_unet", "segresnet")
TWO = pytest.mark.parametrize("name", _TWO)


def _init(config: Any, x: Any = X) -> Any:
    return jax.jit(config.module().init)(jax.random.key(0), x)


@EACH
def test_outputs_have_the_sizes_of_their_levels(name: str) -> None:
    config = FAMILIES[name]
    (logits, features), _ = jax.eval_shape(config.module().init_with_output, jax.random.key(0), X)
    assert logits.shape == (2, 8, 8, 16, 4)
    assert features["bottleneck"].shape == (2, 2, 2, 4, 32)
    assert features["decoder_1"].shape == (2, 4, 4, 8, 16)
    assert not any("logits" in name for name in features)
    assert config.divisor == (4, 4, 4)


@pytest.mark.parametrize("name", ["plain_conv_unet", "residual_encoder_unet", "dynunet"])
def test_deep_supervision_gives_logits_of_coarser_levels(name: str) -> None:
    like = _like(widths=(2, 3, 4, 5, 6), head="regions", out_channels=3, deep_supervision=True)
    config = networks.FAMILIES[name].of_unet(like)
    x = jax.ShapeDtypeStruct((1, 16, 16, 32, 1), jnp.float32)
    (_, features), _ = jax.eval_shape(config.module().init_with_output, jax.random.key(0), x)
    found = {name: each.shape for name, each in features.items() if "logits" in name}
    assert found == {"logits_1": (1, 8, 8, 16, 3), "logits_2": (1, 4, 4, 8, 3)}


@pytest.mark.once
@EACH
def test_training_steps_lower_the_loss(name: str) -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 4, (2, 8, 8, 8)).astype(np.uint8)
    image = rng.normal(size=(2, 8, 8, 8, 2)).astype(np.float32) + label[..., None]
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    config = FAMILIES[name]
    chosen = optimizers.OptimizerOptions(learning_rate=0.01, schedule="constant")
    optimizer = optimizers.make_optimizer(chosen, 100, 10)
    params = _init(config, batch["image"])
    before = jax.tree.map(np.asarray, params)
    head = heads.Head(task_lib.GLIOMA)
    step = steps.jit_step(
        sharding.make_mesh(),
        student=steps.Network(config.module().apply, head, (0, 1)),
        loss=objective.of_options(head),
        optimizer=optimizer,
        plan=steps.Plan(augment.AugmentOptions(flip_axes="", scale=0.0, shift=0.0)),
    )
    state, losses = steps.init_state(params, optimizer), []
    for _ in range(8):
        state, metrics = step(state, (), batch, jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), before, state.params)
    # All kernels but those of the coarser heads, which have no part without deep supervision.
    still = [
        jax.tree_util.keystr(path)
        for path, each in jax.tree_util.tree_leaves_with_path(moved)
        if not each
    ]
    assert all("head_0" in path for path in still if "kernel" in path)


@TWO
def test_bfloat16_follows_float32(name: str) -> None:
    config = FAMILIES[name]
    params = _init(config)
    half = dataclasses.replace(config, bfloat16=True)
    logits, _ = jax.jit(half.module().apply)(params, X)
    expected, _ = jax.jit(config.module().apply)(params, X)
    assert logits.dtype == jnp.float32
    assert 0 < float(jnp.abs(logits - expected).max()) < 0.15 * float(jnp.abs(expected).max())


@TWO
def test_one_program_serves_every_size(name: str) -> None:
    network = networks.of_family(name, _like(blocks=1))
    config = networks.portable(network)
    params = _init(config)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4*d, 4*h, 4*w, 2"), jnp.float32)
    program = export.export(jax.jit(config.module().apply))(
        jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), params), shape
    )
    x = jnp.concatenate([X, X[::-1]], axis=2)[:1, :4]
    found, _ = program.call(params, x)
    expected, _ = jax.jit(config.module().apply)(params, x)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_residual_encoder_begins_with_its_skips_alone() -> None:
    params = _init(FAMILIES["residual_encoder_unet"])["params"]
    blocks = [block for name, block in params.items() if name.startswith("encoder")]
    assert blocks
    for block in blocks:
        assert not block["conv2"]["norm"]["scale"].any()
        assert block["conv1"]["norm"]["scale"].all()


def test_networks_that_the_peers_cannot_have_are_refused() -> None:
    dynunet = FAMILIES["dynunet"]
    segresnet = FAMILIES["segresnet"]
    plain = FAMILIES["plain_conv_unet"]
    refused = [
        (plain, {"features": (2, 3)}, "features for 2"),
        (plain, {"decoder_blocks": (1,)}, "decoder_blocks for 2"),
        (plain, {"features": (2, 0, 3)}, r"features are \(2, 0, 3\); give at least 1"),
        (plain, {"strides": ((1, 1, 1), (2, 0, 2), (2, 2, 2))}, "strides are .*at least 1"),
        (segresnet, {"init_filters": 0}, "init_filters 0"),
        (dynunet, {"upsample_kernels": ((2, 2, 2), (1, 2, 2))}, "upsample_kernels"),
        (dynunet, {"heads": 2}, "up to 1"),
        (dynunet, {"groups": 5}, "5 groups"),
        (segresnet, {"blocks_up": (1,)}, "up one fewer"),
        (segresnet, {"groups": 16}, "16 groups"),
        (segresnet, {"upsample_mode": "pixelshuffle"}, "pixelshuffle"),
    ]
    for config, changes, message in refused:
        with pytest.raises(UserError, match=message):
            dataclasses.replace(config, **changes)
    with pytest.raises(UserError, match="one head only"):
        monai.SegResNetConfig.of_unet(_like(widths=(8, 16), deep_supervision=True))
    with pytest.raises(UserError, match="multiple of 8"):
        monai.SegResNetConfig.of_unet(_like(widths=(8, 24)))
    with pytest.raises(UserError, match="2 stages"):
        monai.DynUNetConfig.of_unet(_like(widths=(8, 16)))
    with pytest.raises(UserError, match="blocks is 3, but the blocks of a dynunet have two"):
        monai.DynUNetConfig.of_unet(_like(blocks=3))


@EACH
@pytest.mark.parametrize("changes", [{"down": "strided"}, {"up": "learned"}, {"remat": True}])
def test_choices_that_only_the_unet_has_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"a {name} has its own way\. Set --config.model"):
        networks.of_family(name, _like(**changes))


@EACH
def test_the_form_of_the_convolutions_is_kept(name: str) -> None:
    assert networks.of_family(name, _like(convolutions="planes")).convolutions == "planes"


@pytest.mark.once
def test_two_devices_have_the_gradient_of_one(tmp_path: pathlib.Path) -> None:
    # The number of devices is fixed when JAX starts.
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    done = commands.python(__file__, env=env, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr


def _compare_devices() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    mesh = sharding.make_mesh()
    assert mesh.size == 2
    for name in _TWO:
        config = FAMILIES[name]
        params = _init(config)

        def loss(params: Any, x: Any, apply: Any) -> Any:
            logits, features = apply(params, x)
            return jnp.sin(logits).sum() + features["bottleneck"].sum()

        grads = [
            jax.jit(jax.grad(functools.partial(loss, apply=apply)))(params, X)
            for apply in (config.module().apply, sharding.spread(config.module().apply, mesh))
        ]
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[0]))
        for one, two in zip(*map(jax.tree.leaves, grads), strict=True):
            np.testing.assert_allclose(two, one, atol=1e-4 * scale, err_msg=name)


if __name__ == "__main__":
    _compare_devices()
