"""bfloat16 in the network: what stays float32, and training that follows float32's."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from configs import common
from kdnet_jax.augment import augment
from kdnet_jax.config import reading
from kdnet_jax.errors import UserError
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import layers, networks, unet
from kdnet_jax.models.kernels import build
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import glioma, jaxprs, kernels

FLOAT32 = unet.UNetConfig(
    widths=(4, 8), blocks=1, last_blocks=1, convolutions="planes", bfloat16=False
)
BFLOAT16 = dataclasses.replace(FLOAT32, bfloat16=True)
EDGE, STEPS = 16, 30
# Where numbers of little precision would do harm: sums, and functions that are steep somewhere.
DELICATE = ("reduce_sum", "rsqrt", "sqrt", "log", "log1p", "exp", "div", "logistic")


def student_step(config: unet.UNetConfig) -> Any:
    network = steps.Network(unet.UNet(config).apply, glioma.SOFTMAX, (1,))
    return steps.jit_step(
        sharding.make_mesh(),
        student=network,
        teacher=network._replace(channels=(0, 1)),
        loss=objective.of_options(network.head, kd=distillation.DistillationOptions()),
        optimizer=optimizer(),
        plan=steps.Plan(augment.choose("none")),
    )


def optimizer() -> Any:
    chosen = optimizers.OptimizerOptions(learning_rate=1e-2, schedule="constant")
    return optimizers.make_optimizer(chosen, STEPS, 10)


def fresh_state(config: unet.UNetConfig = FLOAT32) -> steps.TrainState:
    return steps.init_state(networks.init_params(config, 1, jax.random.key(0)), optimizer())


def fresh_teacher(config: unet.UNetConfig = FLOAT32) -> Any:
    return networks.init_params(config, 2, jax.random.key(1))


def phantom_batch(seed: int) -> dict[str, np.ndarray]:
    """Two patches with a tumour of three shells, each class of its own intensity, and noise."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij")
    label = np.zeros((2, EDGE, EDGE, EDGE), np.uint8)
    for sample in label:
        centre = rng.uniform(5, EDGE - 5, 3)
        distance = np.linalg.norm(np.stack(axes, -1) - centre, axis=-1)
        for value, reach in ((2, 6), (3, 4), (1, 2)):
            sample[distance < reach] = value
    intensities = np.array([[0, 0], [-2, 1], [0.5, 2], [2.5, 1]], np.float32)
    image = intensities[label] + rng.normal(0, 0.5, (*label.shape, 2)).astype(np.float32)
    return {"image": image.astype(np.float32), "label": label}


# --- Types ---------------------------------------------------------------------------------------


@functools.cache
def traced(config: unet.UNetConfig) -> Any:
    """The student's step as JAX's operations."""
    return jax.make_jaxpr(student_step(config))(*shapes(config))


def shapes(config: unet.UNetConfig) -> tuple[Any, ...]:
    state, teacher, root = jax.eval_shape(
        lambda: (fresh_state(config), fresh_teacher(config), jax.random.key(0))
    )
    return state, teacher, steps.batch_shapes(2, (EDGE,) * 3, 2), root


def types(operations: list[Any]) -> set[str]:
    return {
        str(value.aval.dtype)
        for operation in operations
        for value in operation.invars
        if not isinstance(value, core.Literal) and jnp.issubdtype(value.aval.dtype, jnp.floating)
    }


def test_the_convolutions_of_student_and_teacher_compute_in_bfloat16() -> None:
    assert types(jaxprs.named(traced(BFLOAT16), "conv_general_dilated")) == {"bfloat16"}
    assert types(jaxprs.named(traced(FLOAT32), "conv_general_dilated")) == {"float32"}


def test_statistics_losses_and_the_update_compute_in_float32() -> None:
    # The gradient of the head's bias too: a sum over 262 144 voxels was 96 % off in bfloat16.
    # Max-pooling aside, whose gradient counts equal voxels, 8 at most.
    trace = traced(dataclasses.replace(BFLOAT16, down="strided", up="learned"))
    found = {name: types(jaxprs.named(trace, name)) for name in DELICATE}
    assert found["rsqrt"] == {"float32"}  # of the norms
    assert not {name for name, kinds in found.items() if "bfloat16" in kinds}, found


def test_what_a_step_gives_back_is_float32() -> None:
    state, metrics = jax.eval_shape(student_step(BFLOAT16), *shapes(BFLOAT16))
    floats = [leaf for leaf in jax.tree.leaves((state, metrics)) if leaf.dtype != jnp.int32]
    assert len(floats) > len(metrics)
    assert {str(leaf.dtype) for leaf in floats} == {"float32"}


@pytest.mark.parametrize("remat", [False, True])
def test_logits_are_float32_and_features_are_not(remat: bool) -> None:
    net = unet.UNet(dataclasses.replace(BFLOAT16, widths=(2, 2, 2, 2), deep_supervision=True))
    x = jnp.zeros((1, 8, 8, 8, 1))
    logits, features = jax.eval_shape(lambda: net.apply(net.init(jax.random.key(0), x), x))
    assert logits.dtype == jnp.float32
    kinds = {name: feature.dtype for name, feature in features.items()}
    assert kinds.pop("logits_1") == jnp.float32
    assert set(kinds.values()) == {jnp.dtype("bfloat16")}


# --- Training ------------------------------------------------------------------------------------


def losses(config: unet.UNetConfig) -> np.ndarray:
    step, state, teacher = student_step(config), fresh_state(), fresh_teacher()
    root, found = jax.random.key(2), []
    for seed in range(STEPS):
        state, metrics = step(state, teacher, phantom_batch(seed), root)
        found.append(float(metrics["loss"]))
    return np.array(found)


@pytest.mark.once
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", ["planes", pytest.param("onednn", marks=kernels.needs_bfloat16)])
def test_training_in_bfloat16_follows_float32(form: unet.Convolutions) -> None:
    half, whole = (
        losses(dataclasses.replace(config, convolutions=form)) for config in (BFLOAT16, FLOAT32)
    )
    # It learned, or following would say nothing.
    assert whole[-5:].mean() < 0.8 * whole[0]
    # 0.2 % of the first loss was measured, without drift.
    assert np.abs(half - whole).max() < 0.02 * whole[0]
    assert abs((half - whole)[-10:].mean()) < 0.01 * whole[0]
    assert (half != whole).any()


# --- The choice ----------------------------------------------------------------------------------


@kernels.needs_onednn
@pytest.mark.parametrize(
    ("given", "has", "said"),
    [
        ("auto", True, "float32, convolutions onednn"),
        ("true", True, "float32, with products in bfloat16, convolutions onednn"),
        ("true", False, "bfloat16, convolutions planes"),
        ("false", True, "float32, convolutions onednn"),
    ],
)
def test_auto_is_float32_on_a_cpu(
    given: str, has: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "has_bfloat16", lambda: has)
    config = common.base_config("baseline", "smoke")
    assert config.model.bfloat16 == "auto"
    config.model.bfloat16 = given
    network = reading.read(config).network
    assert f"computes in {said}." in unet.describe(network)
    # Activations are in the type that is told first.
    assert jnp.dtype(unet.block_options(network)["dtype"]).name == said.split(",")[0]


def test_the_form_that_is_told_is_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN's kernels take float32's alone.
    monkeypatch.setattr(build, "has_bfloat16", lambda: False)
    half = dataclasses.replace(BFLOAT16, convolutions="auto")
    told = unet.describe(half).split("convolutions ")[1].rstrip(".")
    assert told == ("planes" if jax.default_backend() == "cpu" else layers.choose_form("auto"))
    assert not jaxprs.named(traced(half), "ffi_call")
    whole = dataclasses.replace(half, bfloat16=False)
    taken = bool(jaxprs.named(traced(whole), "ffi_call"))
    assert taken == unet.describe(whole).endswith("convolutions onednn.")


def test_another_choice_is_refused() -> None:
    config = common.base_config("baseline", "smoke")
    config.model.bfloat16 = "half"
    with pytest.raises(UserError, match=r"model\.bfloat16 is 'half'"):
        reading.read(config)
