"""The U-Net: shapes, variants, sizes, types, purity, and its refusals."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.models import layers, networks, unet
from tests.helpers import kernels
from tests.helpers.arrays import normal


def tiny(**options: Any) -> unet.UNetConfig:
    return unet.UNetConfig(**{"widths": (2, 3), "blocks": 1, "last_blocks": 1} | options)


def shapes(config: unet.UNetConfig, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Output shapes without compiling anything."""
    model = unet.UNet(config)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.eval_shape(model.apply, params, x)


def random_params(config: unet.UNetConfig, modalities: int) -> Any:
    """Parameters of the right shapes, faster than `init` compiles; unlike its biases, none is 0."""
    x = jax.ShapeDtypeStruct((1, *config.divisor, modalities), jnp.float32)
    like = jax.eval_shape(unet.UNet(config).init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), like
    )


def count(config: unet.UNetConfig, modalities: int) -> int:
    x = jax.ShapeDtypeStruct((1, *config.divisor, modalities), jnp.float32)
    params = jax.eval_shape(unet.UNet(config).init, jax.random.key(0), x)
    return layers.parameter_count(params)


def test_kd_net_s_shapes() -> None:
    logits, features = shapes(unet.UNetConfig(), (2, 32, 48, 16, 4))
    assert logits.shape == (2, 32, 48, 16, 4)
    assert {name: value.shape for name, value in features.items()} == {
        "bottleneck": (2, 2, 3, 1, 256),
        "decoder_3": (2, 4, 6, 2, 128),
        "decoder_2": (2, 8, 12, 4, 64),
        "decoder_1": (2, 16, 24, 8, 32),
        "decoder_0": (2, 32, 48, 16, 16),
    }


@pytest.mark.parametrize(
    ("down", "up", "head", "bfloat16"),
    list(
        itertools.product(
            ("max_pool", "strided"), ("trilinear", "learned"), ("softmax", "regions"), (False, True)
        ),
    ),
)
def test_every_variant_has_the_same_shapes(down: str, up: str, head: str, bfloat16: bool) -> None:
    channels = 4 if head == "softmax" else 3
    config = tiny(
        widths=(2, 3, 4), down=down, up=up, head=head, out_channels=channels, bfloat16=bfloat16
    )
    logits, features = shapes(config, (1, 4, 8, 12, 1))
    assert logits.shape == (1, 4, 8, 12, channels)
    assert logits.dtype == jnp.float32
    assert features["bottleneck"].shape == (1, 1, 2, 3, 4)


def test_deep_supervision_has_logits_at_all_but_the_coarsest_decoder_level() -> None:
    config = tiny(widths=(2, 2, 2, 2), deep_supervision=True, head="regions", out_channels=3)
    _, features = shapes(config, (1, 8, 16, 8, 1))
    coarse = {name: value.shape for name, value in features.items() if "logits" in name}
    assert coarse == {"logits_1": (1, 4, 8, 4, 3)}


def test_parameters_counted_by_hand() -> None:
    # A block: 27 in out weights, out biases, out scales and out shifts.
    encoder = (27 * 1 * 2 + 3 * 2) + (27 * 2 * 3 + 3 * 3)
    decoder, head = 27 * (3 + 2) * 2 + 3 * 2, 2 * 4 + 4
    assert count(tiny(), 1) == encoder + decoder + head == 519
    # Each further block keeps its width; a second sequence widens the first kernel.
    more = (27 * 2 * 2 + 3 * 2) + (27 * 3 * 3 + 3 * 3) + 2 * (27 * 2 * 2 + 3 * 2)
    assert count(tiny(blocks=2, last_blocks=3), 1) == 519 + more
    assert count(tiny(), 2) == 519 + 27 * 2
    assert count(tiny(out_channels=3), 1) == 519 - 3
    # 8 x 2 channels to 3, and the encoder's second block sees 3 in place of 2.
    assert count(tiny(down="strided"), 1) == 519 + (8 * 2 * 3 + 3) + 27 * 3
    # 3 channels to 8 x 2, and the decoder's block sees 2 + 2 in place of 3 + 2.
    assert count(tiny(up="learned"), 1) == 519 + (3 * 16 + 16) - 27 * 2


def test_the_network_is_a_pure_function() -> None:
    config = tiny(up="learned", down="strided")
    params = random_params(config, 2)
    model, x = unet.UNet(config), normal(2, 4, 6, 2, 2)
    eager, eager_features = model.apply(params, x)
    jitted, jitted_features = jax.jit(model.apply)(params, x)
    np.testing.assert_allclose(jitted, eager, rtol=1e-4, atol=1e-5)
    assert jitted_features.keys() == eager_features.keys()
    # A sample does not depend on its neighbours in the batch.
    alone, _ = jax.jit(model.apply)(params, x[1:])
    np.testing.assert_allclose(alone[0], jitted[1], rtol=1e-4, atol=1e-5)
    assert set(params) == {"params"}


@pytest.mark.parametrize("form", kernels.FORMS)
def test_every_form_of_the_convolutions_gives_the_same_network(form: layers.Form) -> None:
    params = random_params(tiny(), 1)
    x = normal(1, 4, 4, 6, 1)
    found, expected = (
        jax.jit(unet.UNet(tiny(convolutions=each)).apply)(params, x)[0] for each in (form, "native")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_init_is_decided_by_the_key() -> None:
    first, again = (networks.init_params(tiny(), 1, jax.random.key(seed)) for seed in (0, 0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert layers.parameter_count(first) == 519
    kernels = [leaf for leaf in jax.tree.leaves(first) if leaf.ndim == 5]
    assert len(np.unique(np.concatenate([kernel.ravel() for kernel in kernels]))) > 400


def test_bfloat16_keeps_parameters_logits_and_gradients_in_float32() -> None:
    config = tiny(bfloat16=True, convolutions="planes")
    params = random_params(config, 1)
    x = normal(1, 4, 4, 4, 1)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, features = unet.UNet(config).apply(params, x)
        return jnp.mean(logits**2), (logits, features)

    grads, (logits, features) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert logits.dtype == jnp.float32
    assert features["bottleneck"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((params, grads))} == {jnp.dtype("float32")}
    plain, _ = jax.jit(unet.UNet(tiny()).apply)(params, x)
    # Three significant figures a layer, six layers.
    np.testing.assert_allclose(logits, plain, atol=0.15)


def test_every_parameter_but_the_biases_before_a_norm_has_a_gradient() -> None:
    config = tiny(down="strided", up="learned")
    params = random_params(config, 1)
    x = normal(1, 8, 8, 8, 1)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(unet.UNet(config).apply(params, x)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    unused = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not jnp.abs(leaf).max() > 1e-8
    ]
    # InstanceNorm takes out what a bias before it adds.
    assert [name for name in unused if "bias" not in name] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4,)}, "at least two"),
        ({"widths": (4, 0)}, "positive"),
        ({"down": "avg"}, "model.down is 'avg': choose one of max_pool, strided"),
        ({"up": "nearest"}, "trilinear, learned"),
        ({"head": "sigmoid"}, "softmax, regions"),
        ({"blocks": 0}, "model.blocks is 0"),
        ({"last_blocks": 0}, "model.last_blocks is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"strides": ((1, 2, 2),) * 2}, "of 1 or 2 for each of the 4 levels below the finest"),
        ({"strides": ((1, 2, 3),)}, r"model.strides is \(\(1, 2, 3\),\)"),
        ({"strides": (1, 2, 2)}, "of 1 or 2 for each"),
        ({"strides": (2,)}, "of 1 or 2 for each"),
        ({"kernels": ((3, 3, 3),)}, "of 1 or 3 for each of the 5 levels of model.widths"),
        ({"kernels": ((3, 3, 3), (2, 3, 3))}, "of 1 or 3"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unet.UNetConfig(**options)


def test_a_patch_that_cannot_be_halved_is_refused_with_one_that_can() -> None:
    config = unet.UNetConfig(widths=(2, 2, 2))
    networks.check_patch((4, 8, 12), config, "loader.patch")
    with pytest.raises(UserError, match=r"loader\.patch=8,8,12") as error:
        networks.check_patch((6, 8, 9), config, "loader.patch")
    for fact in ("(6, 8, 9)", "divisible by 4", "model.widths"):
        assert fact in str(error.value)
    for patch in ((8, 8), (8, 8, 0), (8, 8, -8)):
        with pytest.raises(UserError, match="three positive edges"):
            networks.check_patch(patch, config, "inference.patch")


def test_a_saved_network_keeps_its_output_channels() -> None:
    thick = tiny(strides=((1, 2, 2),), kernels=((1, 3, 3), (3, 3, 3)))
    for config in (tiny(out_channels=7), tiny(head="regions", out_channels=2), thick):
        assert networks.from_json(networks.to_json(config)) == config
