"""Each layer against the plain operation that it stands for."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax import lax

from kdnet_jax.models import layers
from tests.helpers import commands, kernels
from tests.helpers.arrays import close, normal

DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")


def equals_lax(
    form: layers.Form, grid: tuple[int, int, int], size: int, inputs: int, outputs: int
) -> None:
    x, bias = normal(2, *grid, inputs), normal(outputs, seed=3)
    kernel = normal(size, size, size, inputs, outputs, seed=1) / (size**3 * inputs) ** 0.5
    cotangent = normal(2, *grid, outputs, seed=2)

    def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=DIMENSIONS)
        return y + bias

    expected, plain_vjp = jax.vjp(plain, x, kernel, bias)
    actual, vjp = jax.vjp(lambda *values: layers.convolve(*values, form), x, kernel, bias)
    close(actual, expected)
    for ours, theirs in zip(vjp(cotangent), plain_vjp(cotangent), strict=True):
        close(ours, theirs, 1e-4)


# 8 input channels are the last that "planes" stacks, 9 the first that it sums; "blocks" takes up to
# 4 channels and even edges. 17 fill one of oneDNN's blocks of 16 and begin another. Of 7, 6 and 8
# voxels along the width oneDNN computes 1, 2 and up to 8 as one.
@pytest.mark.parametrize("form", kernels.FORMS)
@pytest.mark.parametrize("channels", [1, 4, 8, 9, 17])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(5, 3, 7), (4, 2, 6), (3, 2, 8)])
def test_each_form_equals_lax_convolution_with_its_gradients(
    form: layers.Form, channels: int, size: int, grid: tuple[int, int, int]
) -> None:
    equals_lax(form, grid, size, channels, 3)


@kernels.needs_bfloat16
@pytest.mark.parametrize("channels", [3, 16])
def test_products_in_bfloat16_are_those_of_rounded_factors(channels: int) -> None:
    x, bias = normal(2, 5, 3, 8, channels), normal(4, seed=3)
    kernel = normal(3, 3, 3, channels, 4, seed=1) / (27 * channels) ** 0.5
    cotangent = normal(2, 5, 3, 8, 4, seed=2)

    def rounded(values: jax.Array) -> jax.Array:
        return values.astype(jnp.bfloat16).astype(jnp.float32)

    actual, vjp = jax.vjp(lambda *a: layers.convolve(*a, "onednn_bfloat16"), x, kernel, bias)
    plain, plain_vjp = jax.vjp(lambda *a: layers.convolve(*a, "onednn"), x, kernel, bias)
    of_rounded = functools.partial(layers.convolve, form="onednn")
    close(actual, of_rounded(rounded(x), rounded(kernel), bias))
    assert 1e-3 < np.abs(actual - plain).max() < 0.1
    _, rounded_vjp = jax.vjp(lambda x: of_rounded(x, rounded(kernel), bias), rounded(x))
    dx, dkernel, dbias = vjp(cotangent)
    close(dx, *rounded_vjp(rounded(cotangent)))
    # What the parameters get stays float32's.
    for ours, theirs in zip((dkernel, dbias), plain_vjp(cotangent)[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_blocks_reach_into_the_neighbours() -> None:
    # One voxel in the corner of its block: its response covers 3x3x3 voxels of eight blocks.
    x = jnp.zeros((1, 4, 4, 4, 1)).at[0, 1, 1, 1, 0].set(1)
    kernel = normal(3, 3, 3, 1, 2)
    actual = layers.convolve(x, kernel, jnp.zeros(2), "blocks")
    close(actual[0, :3, :3, :3], kernel[::-1, ::-1, ::-1, 0])
    assert not actual[0, 3].any()
    assert not actual[0, :, 3].any()
    assert not actual[0, :, :, 3].any()


def test_onednn_in_bfloat16_takes_planes() -> None:
    x, kernel = (normal(*s).astype(jnp.bfloat16) for s in ((1, 4, 4, 4, 2), (3, 3, 3, 2, 3)))
    bias = jnp.zeros(3, jnp.bfloat16)
    expected = layers.convolve(x, kernel, bias, "planes")
    np.testing.assert_array_equal(layers.convolve(x, kernel, bias, "onednn"), expected)


@pytest.mark.parametrize("form", [pytest.param("onednn", marks=kernels.needs_onednn), "native"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 7, 3), (1, 2, 2, 2, 200), (2, 17, 18, 19, 8)])
@pytest.mark.parametrize("slope", [1.0, 0.01])
def test_normalise_equals_its_definition_with_its_gradients(
    form: layers.Form, shape: tuple[int, ...], slope: float
) -> None:
    x, cotangent = 2 * normal(*shape) + 30, normal(*shape, seed=3)
    scale, bias = normal(shape[-1], seed=1), normal(shape[-1], seed=2)

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        variance = x.var(axis=(1, 2, 3), keepdims=True)
        return nn.leaky_relu((x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias, slope)

    expected, plain_vjp = jax.vjp(plain, x, scale, bias)
    actual, vjp = jax.vjp(lambda *a: layers.normalise(*a, slope, form), x, scale, bias)
    close(actual, expected, 1e-4)
    for ours, theirs in zip(vjp(cotangent), plain_vjp(cotangent), strict=True):
        # In float32 the gradient of a sum over n voxels is known to about sqrt(n) roundings.
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 * np.abs(theirs).max())


@kernels.needs_onednn
def test_normalise_keeps_its_precision_far_from_zero() -> None:
    # Mean 10 000, deviation 1: sums of squares in float32 would lose all of the variance.
    x = normal(1, 16, 16, 16, 2) + 10_000
    exact = np.asarray(x, np.float64)
    exact -= exact.mean(axis=(1, 2, 3), keepdims=True)
    exact /= np.sqrt(exact.var(axis=(1, 2, 3), keepdims=True) + 1e-5)
    actual = layers.normalise(x, jnp.ones(2), jnp.zeros(2), 1.0, "onednn")
    np.testing.assert_allclose(actual, exact, atol=2e-3)


# Numbers of outputs with whole and partial blocks of 8; 64 are oneDNN's again. 16 voxels of one
# channel fill a register.
INPUTS_OUTPUTS = ((1, 1), (3, 9), (5, 17), (2, 64), (4, 8))
SIZES = (1, 3)


@kernels.needs_onednn
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("inputs", "outputs"), INPUTS_OUTPUTS)
def test_whole_and_partial_blocks_equal_lax(size: int, inputs: int, outputs: int) -> None:
    equals_lax("onednn", (4, 3, 16), size, inputs, outputs)


_EQUAL = """
import itertools
from kdnet_jax.models import layers
from tests.models import test_layers

for channels, size in itertools.product(test_layers.INPUTS_OUTPUTS, test_layers.SIZES):
    test_layers.equals_lax("onednn", (4, 3, 16), size, *channels)
print("equal", layers.choose_form("onednn"))
"""


@pytest.mark.once
@kernels.needs_onednn
def test_the_kernels_without_avx_512_equal_lax(command_env: dict[str, str]) -> None:
    done = commands.python("-c", _EQUAL, env=command_env | {"DNNL_MAX_CPU_ISA": "AVX2"})
    assert done.stdout.strip() == "equal onednn", done.stderr


_EXHAUSTED = """
import resource
import jax, jax.numpy as jnp
from kdnet_jax.core import memory
from kdnet_jax.models import layers

layers.choose_form("onednn")
convolve = jax.jit(lambda x: layers.convolve(x, jnp.ones((3, 3, 3, 16, 16)), jnp.ones(16), FORM))
convolve(jnp.ones((1, 8, 8, 8, 16))).block_until_ready()
x = jnp.ones((1, 128, 128, 128, 16))
compiled = convolve.lower(x).compile()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# Room for the result, and not for half as much: the input, rounded.
resource.setrlimit(resource.RLIMIT_AS, (held + x.nbytes + x.nbytes // 4,) * 2)
try:
    compiled(x).block_until_ready()
except jax.errors.JaxRuntimeError as error:
    print("exhausted", memory.is_exhausted(error), "a CPU kernel" in str(error))
"""


@kernels.needs_bfloat16
def test_a_kernel_without_memory_says_so_to_xla(command_env: dict[str, str]) -> None:
    code = _EXHAUSTED.replace("FORM", "'onednn_bfloat16'")
    done = commands.python("-c", code, env=command_env)
    assert done.stdout.strip() == "exhausted True True", done.stderr


@kernels.needs_onednn
def test_onednn_repeats_itself_bit_for_bit() -> None:
    x, kernel, bias = normal(2, 24, 24, 24, 8), normal(3, 3, 3, 8, 16, seed=1), normal(16, seed=2)

    @jax.jit
    def gradients(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
        def energy(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            y = layers.convolve(x, kernel, bias, "onednn")
            return jnp.square(layers.normalise(y, bias, bias, 0.01, "onednn")).sum()

        return jax.grad(energy, (0, 1, 2))(x, kernel, bias)

    first = gradients(x, kernel, bias)
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, gradients(x, kernel, bias), first)


def test_auto_takes_xlas_own_form_on_several_devices(command_env: dict[str, str]) -> None:
    code = "from kdnet_jax.models import layers; print(layers.choose_form('auto'))"
    flags = {"JAX_NUM_CPU_DEVICES": "2"}
    done = commands.python("-c", code, env=command_env | flags)
    assert done.stdout.strip() == "planes"
    assert "serves one device, and there are 2" in done.stderr


def test_convolution_by_its_definition() -> None:
    x, kernel = normal(1, 4, 3, 5, 2), normal(3, 3, 3, 2, 3, seed=1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((1, 4, 3, 5, 3))
    for i, j, k in itertools.product(range(3), repeat=3):
        expected += padded[:, i : i + 4, j : j + 3, k : k + 5] @ np.asarray(kernel)[i, j, k]
    close(layers.convolve(x, kernel, jnp.zeros(3), "planes"), expected)


def test_space_to_depth_and_1x1x1_is_a_strided_convolution() -> None:
    x, kernel = normal(2, 4, 6, 2, 3), normal(2, 2, 2, 3, 5, seed=1)
    expected = lax.conv_general_dilated(x, kernel, (2, 2, 2), "VALID", dimension_numbers=DIMENSIONS)
    wide = kernel.reshape(1, 1, 1, 24, 5)
    actual = layers.convolve(layers.space_to_depth(x), wide, jnp.zeros(5), "native")
    close(actual, expected)


def test_1x1x1_and_depth_to_space_is_a_transposed_convolution() -> None:
    x, kernel = normal(2, 2, 3, 1, 3), normal(2, 2, 2, 3, 5, seed=1)
    expected = np.zeros((2, 4, 6, 2, 5))
    for i, j, k in itertools.product(range(2), repeat=3):
        expected[:, i::2, j::2, k::2] = np.asarray(x) @ np.asarray(kernel)[i, j, k]
    wide = kernel.transpose(3, 0, 1, 2, 4).reshape(1, 1, 1, 3, 40)
    actual = layers.depth_to_space(layers.convolve(x, wide, jnp.zeros(40), "native"))
    close(actual, expected)


def test_depth_to_space_undoes_space_to_depth() -> None:
    x = normal(2, 4, 2, 6, 3)
    np.testing.assert_array_equal(layers.depth_to_space(layers.space_to_depth(x)), x)


def test_max_pool_equals_flax() -> None:
    x = normal(2, 4, 6, 2, 3)
    expected = nn.max_pool(x, (2, 2, 2), (2, 2, 2))
    np.testing.assert_array_equal(layers.max_pool(x), expected)
    # Without ties the gradients agree too.
    np.testing.assert_array_equal(
        jax.grad(lambda x: jnp.sum(layers.max_pool(x) ** 2))(x),
        jax.grad(lambda x: jnp.sum(nn.max_pool(x, (2, 2, 2), (2, 2, 2)) ** 2))(x),
    )


def test_max_pool_shares_the_gradient_of_a_tie() -> None:
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.zeros((1, 2, 2, 2, 1)))
    np.testing.assert_allclose(gradient, 1 / 8)


@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 5, 1)])
def test_upsampling_is_trilinear_between_voxel_centres(shape: tuple[int, int, int]) -> None:
    x = normal(2, *shape, 3)
    # PyTorch's align_corners=False: voxel i of the fine grid lies at (i + 1/2) / 2 - 1/2.
    axes = [(np.arange(2 * size) + 0.5) / 2 - 0.5 for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    expected = np.stack(
        [
            [
                scipy.ndimage.map_coordinates(x[b, ..., c], grid, order=1, mode="nearest")
                for c in range(3)
            ]
            for b in range(2)
        ]
    )
    close(layers.upsample_trilinear(x), np.moveaxis(expected, 1, -1))


def test_upsampling_equals_jax_resize() -> None:
    x = normal(1, 3, 4, 2, 2)
    close(layers.upsample_trilinear(x), jax.image.resize(x, (1, 6, 8, 4, 2), "linear"))


def test_instance_norm_by_its_formula() -> None:
    x = normal(2, 3, 4, 5, 2) * 7 + 30
    params = {"params": {"scale": jnp.array([2.0, 0.5]), "bias": jnp.array([-1.0, 3.0])}}
    exact = np.asarray(x, np.float64)
    mean = exact.mean((1, 2, 3), keepdims=True)
    variance = exact.var((1, 2, 3), keepdims=True)
    expected = (exact - mean) / np.sqrt(variance + 1e-5) * [2.0, 0.5] + [-1.0, 3.0]
    close(layers.InstanceNorm().apply(params, x), expected)


def test_instance_norm_of_a_constant_is_its_bias() -> None:
    module = layers.InstanceNorm()
    x = jnp.full((1, 2, 2, 2, 1), 1e3)
    output = module.apply(module.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(output, 0, atol=1e-6)


def test_instance_norm_takes_its_statistics_in_float32() -> None:
    # In bfloat16 a mean of 1000 would have steps of 4.
    module = layers.InstanceNorm()
    x = (1000 + 8 * jnp.round(normal(1, 4, 4, 4, 1))).astype(jnp.bfloat16)
    params = module.init(jax.random.key(0), x)
    output = module.apply(params, x)
    assert output.dtype == jnp.bfloat16
    close(output.astype(jnp.float32), module.apply(params, x.astype(jnp.float32)), 1e-2)


def test_block_is_convolution_norm_leaky_relu() -> None:
    x = normal(1, 3, 3, 3, 2)
    block = layers.Block(4, form="planes")
    variables = block.init(jax.random.key(0), x)
    conv = variables["params"]["Conv_0"]
    hidden = layers.convolve(x, conv["kernel"], conv["bias"], "native")
    normed = (hidden - hidden.mean((1, 2, 3))) / np.sqrt(hidden.var((1, 2, 3)) + 1e-5)
    close(block.apply(variables, x), np.where(normed > 0, normed, 0.01 * normed), 1e-4)


def test_kernels_start_at_the_variance_of_he() -> None:
    variables = layers.Conv(64).init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, 16)))
    kernel = variables["params"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / (1.0001 * 27 * 16), rel=0.03)
    assert not variables["params"]["bias"].any()
