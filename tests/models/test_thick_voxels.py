"""Networks for voxels that are longer along one axis: the plan, each layer, and the whole."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from kdnet_jax.errors import UserError
from kdnet_jax.models import layers, networks, unet
from kdnet_jax.parallel import sharding
from tests.helpers import kernels
from tests.helpers.arrays import close, normal

DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")
# Every way in which an axis can be halved, or not, and a kernel be flat.
THICK = unet.UNetConfig(
    widths=(3, 4, 5),
    blocks=1,
    last_blocks=2,
    strides=((1, 2, 2), (2, 2, 1)),
    kernels=((1, 3, 3), (3, 3, 1), (3, 3, 3)),
    bfloat16=False,
    convolutions="native",
)
LEARNED = dataclasses.replace(THICK, down="strided", up="learned")
BOTH = pytest.mark.parametrize("config", [THICK, LEARNED], ids=["pooled", "learned"])


def random_params(config: Any, modalities: int) -> Any:
    x = jax.ShapeDtypeStruct((1, *config.divisor, modalities), jnp.float32)
    like = jax.eval_shape(config.module().init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), "f4"), like)


# -- The plan ----------------------------------------------------------------------------------


def test_thick_slices_are_halved_once_their_neighbours_are_as_long() -> None:
    # Planes of 1 mm, 6 mm apart: 1, 2, 4 mm are less than half of 6, 8 mm are not.
    strides, kernels = unet.plan((6.0, 1.0, 1.0), (16, 128, 128), 5)
    assert strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_twice_as_long_is_not_yet_as_long() -> None:
    strides, kernels = unet.plan((1.0, 2.0, 1.0), (32, 32, 32), 3)
    assert strides == ((2, 1, 2), (2, 2, 2))
    assert kernels == ((3, 1, 3), (3, 3, 3), (3, 3, 3))


def test_an_axis_of_few_voxels_is_not_halved_any_further() -> None:
    # 12 to 6 voxels; half of 6 would be fewer than 4.
    strides, kernels = unet.plan((1.0, 1.0, 1.0), (12, 32, 32), 4)
    assert strides == ((2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert kernels == ((3, 3, 3),) * 4


def test_a_patch_too_small_for_four_voxels_keeps_two() -> None:
    # Of 4 voxels: 16 to 8 to 4 is all, and there are three halvings to make.
    strides, _ = unet.plan((3.0, 1.0, 1.0), (4, 16, 16), 4)
    assert strides == ((1, 2, 2), (2, 2, 2), (1, 2, 2))


def test_a_patch_that_cannot_be_halved_so_often_is_refused() -> None:
    with pytest.raises(UserError, match=r"3 levels, but a patch of \(2, 2, 2\).*Give 2 widths"):
        unet.plan((1.0, 1.0, 1.5), (2, 2, 2), 3)


def test_equal_spacings_and_what_is_given_change_nothing() -> None:
    plain = unet.UNetConfig()
    assert networks.planned(plain, (1.5, 1.5, 1.5), (16, 16, 16)) is plain
    assert networks.planned(plain, None, (16, 16, 16)) is plain
    assert networks.planned(plain, (1.2, 1.0, 1.0), (64, 64, 64)) == plain
    assert networks.planned(THICK, (1.0, 9.0, 1.0), (64, 64, 64)) is THICK
    found = networks.planned(plain, (6.0, 1.0, 1.0), (16, 128, 128))
    assert (found.strides, found.kernels) == unet.plan((6.0, 1.0, 1.0), (16, 128, 128), 5)
    assert dataclasses.replace(found, strides=(), kernels=()) == plain


def test_edges_are_asked_for_axis_by_axis() -> None:
    assert THICK.divisor == (2, 4, 2)
    networks.check_patch((2, 4, 6), THICK, "loader.patch")
    with pytest.raises(UserError, match=r"its edges must be divisible by 2, 4, 2\. Set") as error:
        networks.check_patch((3, 6, 2), THICK, "loader.patch")
    assert "--config.loader.patch=4,8,2" in str(error.value)


def test_what_was_planned_is_said() -> None:
    said = unet.describe(THICK)
    assert "Strides of its levels 1x2x2 2x2x1, kernels 1x3x3 3x3x1 3x3x3." in said
    blocks = unet.describe(dataclasses.replace(THICK, convolutions="blocks"))
    assert "convolutions blocks." in blocks
    assert "other kernels than 3x3x3 are native" in blocks
    assert "trides" not in unet.describe(unet.UNetConfig())
    family = networks.of_family("plain_conv_unet", dataclasses.replace(THICK, widths=(8, 16, 32)))
    assert "levels 1x1x1 1x2x2 2x2x1" in unet.describe(family)


# -- Layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", kernels.FORMS)
@pytest.mark.parametrize("edges", [(1, 3, 3), (3, 3, 1), (3, 1, 3)])
@pytest.mark.parametrize("channels", [2, 9])
def test_flat_kernels_equal_lax_convolution_with_their_gradients(
    form: layers.Form, edges: layers.Triple, channels: int
) -> None:
    x, bias, cotangent = normal(2, 4, 2, 6, channels), normal(3, seed=3), normal(2, 4, 2, 6, 3)
    kernel = normal(*edges, channels, 3, seed=1) / (9 * channels) ** 0.5
    margins = [(edge // 2, edge // 2) for edge in edges]

    def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        one = (1, 1, 1)
        return lax.conv_general_dilated(x, kernel, one, margins, None, None, DIMENSIONS) + bias

    expected, plain_vjp = jax.vjp(plain, x, kernel, bias)
    actual, vjp = jax.vjp(lambda *values: layers.convolve(*values, form), x, kernel, bias)
    close(actual, expected)
    for ours, theirs in zip(vjp(cotangent), plain_vjp(cotangent), strict=True):
        close(ours, theirs, 1e-4)


STRIDES = pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 1, 2)])


@STRIDES
def test_pooling_and_rearranging_by_other_strides(stride: layers.Triple) -> None:
    x = normal(2, 4, 2, 6, 3)
    np.testing.assert_array_equal(layers.max_pool(x, stride), nn.max_pool(x, stride, stride))
    kernel = normal(*stride, 3, 5, seed=1)
    expected = lax.conv_general_dilated(x, kernel, stride, "VALID", dimension_numbers=DIMENSIONS)
    blocks = layers.space_to_depth(x, stride)
    close(blocks @ kernel.reshape(-1, 5), expected)
    np.testing.assert_array_equal(layers.depth_to_space(blocks, stride), x)


@STRIDES
def test_upsampling_by_other_strides_equals_jax_resize(stride: layers.Triple) -> None:
    x = normal(1, 3, 4, 2, 2)
    edges = [size * times for size, times in zip(x.shape[1:4], stride, strict=True)]
    resize = functools.partial(jax.image.resize, shape=(1, *edges, 2), method="linear")
    expected, plain_vjp = jax.vjp(resize, x)
    actual, vjp = jax.vjp(lambda x: layers.upsample_trilinear(x, stride), x)
    close(actual, expected)
    close(vjp(jnp.sin(expected))[0], plain_vjp(jnp.sin(expected))[0])


# -- The network -------------------------------------------------------------------------------


def slow(config: unet.UNetConfig, params: Any, x: jax.Array) -> jax.Array:
    """The same network in plain operations of `lax` and `jax.image`, strides and all."""
    given = params["params"]

    def conv(x: jax.Array, name: dict[str, Any], stride: Any = (1, 1, 1)) -> jax.Array:
        how = "SAME" if stride == (1, 1, 1) else "VALID"
        y = lax.conv_general_dilated(x, name["kernel"], stride, how, dimension_numbers=DIMENSIONS)
        return y + name["bias"]

    def blocks(x: jax.Array, name: str, count: int) -> jax.Array:
        for index in range(count):
            own = given[f"{name}_{index}"]
            x = conv(x, own["Conv_0"])
            x = (x - x.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(
                x.var((1, 2, 3), keepdims=True) + 1e-5
            )
            norm = own["InstanceNorm_0"]
            x = nn.leaky_relu(x * norm["scale"] + norm["bias"], 0.01)
        return x

    def down(x: jax.Array, level: int) -> jax.Array:
        stride = config.strides[level - 1]
        if config.down == "max_pool":
            return nn.max_pool(x, stride, stride)
        own = given[f"down_{level}"]
        wide = own["kernel"].reshape(*stride, x.shape[-1], -1)
        return conv(x, own | {"kernel": wide}, stride)

    def up(x: jax.Array, level: int) -> jax.Array:
        stride = config.strides[level]
        edges = [size * times for size, times in zip(x.shape[1:4], stride, strict=True)]
        if config.up == "trilinear":
            return jax.image.resize(x, (x.shape[0], *edges, x.shape[-1]), "linear")
        own, width = given[f"up_{level}"], config.widths[level]
        kernel = own["kernel"].reshape(x.shape[-1], *stride, width).transpose(1, 2, 3, 0, 4)
        out = np.zeros((x.shape[0], *edges, width), np.float32)
        for i, j, k in np.ndindex(*stride):
            out[:, i :: stride[0], j :: stride[1], k :: stride[2]] = x @ kernel[i, j, k]
        return out + jnp.tile(own["bias"].reshape(*stride, width), (*x.shape[1:4], 1))

    skips = [x := blocks(x, "encoder_0", 1)]
    for level in (1, 2):
        skips.append(x := blocks(down(x, level), f"encoder_{level}", 1))
    for level in (1, 0):
        x = jnp.concatenate([up(x, level), skips[level]], axis=-1)
        x = blocks(x, f"decoder_{level}", 1 if level else config.last_blocks)
    return conv(x, given["head"])


@BOTH
def test_the_network_is_that_of_plain_operations(config: unet.UNetConfig) -> None:
    params, x = random_params(config, 2), normal(1, 4, 8, 6, 2)
    logits, features = jax.jit(config.module().apply)(params, x)
    assert features["bottleneck"].shape == (1, 2, 2, 3, 5)
    close(logits, slow(config, params, x), 2e-4)
    assert jax.tree.map(np.shape, networks.init_params(config, 2, jax.random.key(0))) == (
        jax.tree.map(np.shape, params)
    )


def test_explicit_cubes_are_the_network_of_no_plan() -> None:
    plain = dataclasses.replace(THICK, strides=(), kernels=())
    cubes = dataclasses.replace(plain, strides=((2, 2, 2),) * 2, kernels=((3, 3, 3),) * 3)
    params, x = random_params(plain, 1), normal(1, 4, 4, 8, 1)
    programs = [
        str(jax.make_jaxpr(lambda p, x, c=config: c.module().apply(p, x)[0])(params, x))
        for config in (plain, cubes)
    ]
    assert programs[0] == programs[1]


def test_deep_supervision_follows_the_strides() -> None:
    config = unet.UNetConfig(
        widths=(2, 2, 2, 2, 2),
        strides=((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
        deep_supervision=True,
    )
    x = jax.ShapeDtypeStruct((1, 8, 32, 16, 1), jnp.float32)
    (_, features), _ = jax.eval_shape(config.module().init_with_output, jax.random.key(0), x)
    found = {name: each.shape for name, each in features.items() if "logits" in name}
    assert found == {"logits_1": (1, 8, 16, 8, 4), "logits_2": (1, 8, 8, 4, 4)}


def test_one_program_serves_every_size() -> None:
    d, h, w = THICK.divisor
    shape = export.symbolic_shape(f"b, {d}*d, {h}*h, {w}*w, 1")
    params, x = random_params(THICK, 1), normal(1, 4, 4, 2, 1)
    program = export.export(jax.jit(lambda p, x: THICK.module().apply(p, x)[0]))(
        jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), params),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    close(program.call(params, x), jax.jit(THICK.module().apply)(params, x)[0], 1e-4)


@pytest.mark.parametrize("name", ["plain_conv_unet", "residual_encoder_unet", "dynunet"])
def test_other_networks_take_the_same_levels(name: str) -> None:
    like = dataclasses.replace(THICK, blocks=2, last_blocks=3)
    config = networks.of_family(name, like)
    assert config.divisor == THICK.divisor
    x = jax.ShapeDtypeStruct((1, 4, 8, 6, 1), jnp.float32)
    (_, features), params = jax.eval_shape(config.module().init_with_output, jax.random.key(0), x)
    assert features["bottleneck"].shape == (1, 2, 2, 3, 5)
    kernels = {leaf.shape[:3] for leaf in jax.tree.leaves(params) if leaf.ndim == 5}
    assert {(1, 3, 3), (3, 3, 1), (3, 3, 3)} <= kernels


def test_a_segresnet_has_no_other_levels() -> None:
    like = dataclasses.replace(THICK, widths=(8, 16, 32))
    with pytest.raises(UserError, match=r"segresnet halves every axis.*another model\.family"):
        networks.of_family("segresnet", like)


@pytest.mark.once
def test_two_devices_have_the_gradient_of_one(tmp_path: pathlib.Path) -> None:
    # The number of devices is fixed when JAX starts.
    env = dict(os.environ) | {"JAX_NUM_CPU_DEVICES": "2"}
    root = pathlib.Path(__file__).parents[2]
    env["PYTHONPATH"] = str(root)
    subprocess.run([sys.executable, __file__], check=True, env=env, cwd=tmp_path, timeout=300)


def _compare_devices() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    mesh = sharding.make_mesh(1, 2)
    x = normal(1, 4, 8, 4, 1)
    for config, form in ((THICK, "native"), (THICK, "planes"), (LEARNED, "planes")):
        network = dataclasses.replace(config, convolutions=form)
        params = random_params(network, 1)

        def loss(params: Any, x: Any, apply: Any) -> Any:
            logits, features = apply(params, x)
            return jnp.sin(logits).sum() + jnp.cos(features["bottleneck"]).sum()

        applies = network.module().apply, sharding.spread(network.module().apply, mesh)
        grads = [
            jax.jit(jax.grad(functools.partial(loss, apply=each)))(params, x) for each in applies
        ]
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[0]))
        for one, two in zip(*map(jax.tree.leaves, grads), strict=True):
            np.testing.assert_allclose(two, one, atol=1e-4 * scale, err_msg=form)


if __name__ == "__main__":
    _compare_devices()
