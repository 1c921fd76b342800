"""Layers with any kernel, stride and norm, against slow references."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from kdnet_jax.errors import UserError
from kdnet_jax.models import layers, torch_layers

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 6, 9, 8, 3), np.float32))


def _apply(module: Any, x: Any = X) -> tuple[Any, np.ndarray]:
    params = module.init(jax.random.key(1), x)
    # Biases and scales that are not 0 and 1.
    params = jax.tree.map(lambda y: y + 0.3 * RNG.standard_normal(y.shape, np.float32), params)
    return params["params"], np.asarray(module.apply(params, x))


def _slow(x: np.ndarray, kernel: np.ndarray, stride: Any, padding: Any) -> np.ndarray:
    """A convolution by SciPy's correlation in full resolution."""
    margins = [(0, 0), *((edge, edge) for edge in padding), (0, 0)]
    x = np.pad(x, margins)
    found = [
        sum(
            scipy.signal.correlate(sample[..., c], kernel[..., c, o], mode="valid")
            for c in range(x.shape[-1])
        )
        for sample in x
        for o in range(kernel.shape[-1])
    ]
    y = np.moveaxis(np.reshape(found, (len(x), kernel.shape[-1], *found[0].shape)), 1, -1)
    return y[:, :: stride[0], :: stride[1], :: stride[2]]


@pytest.mark.parametrize("form", ["native", "planes"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), None),
        ((1, 3, 5), (1, 1, 1), None),
        ((3, 3, 3), (2, 2, 2), None),
        ((1, 3, 3), (1, 2, 2), None),
        ((3, 1, 3), (3, 1, 2), (0, 0, 1)),
        ((1, 1, 1), (2, 3, 1), (0, 0, 0)),
        ((5, 3, 3), (2, 2, 2), (1, 0, 1)),
    ],
)
def test_convolution_is_that_of_scipy(form: Any, kernel: Any, stride: Any, padding: Any) -> None:
    module = torch_layers.Conv(4, kernel, stride, padding, form=form)
    params, y = _apply(module)
    padding = padding or tuple((edge - 1) // 2 for edge in kernel)
    expected = _slow(np.asarray(X), np.asarray(params["kernel"]), stride, padding) + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_both_forms_of_a_strided_convolution_have_the_same_gradient() -> None:
    def loss(form: Any, params: Any, x: Any) -> Any:
        module = torch_layers.Conv(4, (3, 3, 1), (2, 1, 2), form=form)
        return jnp.sin(module.apply(params, x)).sum()

    module = torch_layers.Conv(4, (3, 3, 1), (2, 1, 2))
    params = module.init(jax.random.key(0), X)
    grads = [jax.grad(loss, (1, 2))(form, params, X) for form in ("native", "planes")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *grads)


def test_transposed_convolution_puts_a_scaled_kernel_where_each_voxel_was() -> None:
    params, y = _apply(torch_layers.TransposedConv(2, (1, 2, 3)))
    expected = sum(
        np.kron(X[..., c : c + 1], np.asarray(params["kernel"])[None, ..., c, :])
        for c in range(X.shape[-1])
    )
    np.testing.assert_allclose(y, expected + params["bias"], atol=1e-5)


@pytest.mark.parametrize(("groups", "epsilon"), [(0, 1e-5), (0, 0.1), (2, 1e-5), (4, 0.1)])
@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
def test_norm_standardises_each_group_of_channels(
    groups: int, epsilon: float, slope: float
) -> None:
    x = jnp.asarray(RNG.standard_normal((2, 3, 4, 5, 8), np.float32) + 3)
    params, y = _apply(torch_layers.Norm(groups, epsilon, slope=slope), x)
    for sample, channels in itertools.product(range(2), np.split(np.arange(8), groups or 8)):
        part = np.asarray(x[sample][..., channels], np.float64)
        z = (part - part.mean()) / np.sqrt(part.var() + epsilon)
        z = z * np.asarray(params["scale"])[channels] + np.asarray(params["bias"])[channels]
        expected = np.where(z > 0, z, slope * z)
        np.testing.assert_allclose(y[sample][..., channels], expected, atol=1e-5)


def test_norm_without_scales_has_no_parameters() -> None:
    for groups in (0, 3):
        module = torch_layers.Norm(groups, affine=False)
        assert module.init(jax.random.key(0), X) == {}
        assert float(jnp.std(module.apply({}, X))) == pytest.approx(1, abs=1e-3)


def test_average_pool_means_each_block() -> None:
    y = np.asarray(torch_layers.average_pool(X, (2, 3, 1)))
    assert y.shape == (2, 3, 3, 8, 3)
    np.testing.assert_allclose(y[1, 2, 1, 4], X[1, 4:6, 3:6, 4].mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", [torch_layers.Conv, torch_layers.TransposedConv])
def test_new_weights_are_drawn_as_pytorch_draws_them(kind: Any) -> None:
    # PyTorch's fan in: 24 inputs of a convolution, 32 *outputs* of a transposed one; 8 taps.
    fan_in = 8 * (24 if kind is torch_layers.Conv else 32)
    x = jnp.zeros((1, 2, 2, 2, 24))
    he = kind(32, (2, 2, 2), draw="he").init(jax.random.key(0), x)["params"]
    assert float(he["kernel"].std()) == pytest.approx(np.sqrt(2 / 1.0001 / fan_in), rel=0.03)
    assert float(abs(he["kernel"]).max()) > 3 / np.sqrt(fan_in)
    assert not he["bias"].any()
    limit = 1 / np.sqrt(fan_in)
    plain = kind(32, (2, 2, 2), draw="torch").init(jax.random.key(0), x)["params"]
    for values in plain.values():
        assert 0.85 * limit < float(abs(values).max()) <= limit
    assert float(plain["kernel"].std()) == pytest.approx(limit / np.sqrt(3), rel=0.03)


def test_bfloat16_is_computed_in_bfloat16_from_float32_parameters() -> None:
    for form in layers.FORMS[0], "planes":
        module = torch_layers.Conv(4, stride=(2, 2, 2), form=form, dtype=jnp.bfloat16)
        params = module.init(jax.random.key(0), X)
        y = torch_layers.Norm(2).apply(
            {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, module.apply(params, X)
        )
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("kernels", "strides", "counts", "message"),
    [
        (((3, 3, 3),) * 2, ((1, 1, 1),) * 3, {}, "kernels for 2, strides for 3"),
        (((3, 3, 3),) * 2, ((1, 1, 1),) * 2, {"blocks": (1, 1, 1)}, "blocks for 3"),
        (((3, 2, 3),) * 2, ((1, 1, 1),) * 2, {}, r"\(3, 2, 3\): only odd"),
        (((3, 3, 3),) * 2, ((1, 2, 2),) * 2, {}, r"first stage has the stride \(1, 2, 2\)"),
        (((3, 3, 3),), ((1, 1, 1),), {}, "and two"),
    ],
)
def test_stages_that_make_no_network_are_refused(
    kernels: Any, strides: Any, counts: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        torch_layers.check_stages(kernels, strides, **counts)
