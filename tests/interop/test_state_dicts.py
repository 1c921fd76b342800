"""State dicts of nnU-Net's and MONAI's networks: both ways, and what is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.interop import monai_weights, nnunet_weights
from kdnet_jax.models import monai, networks, nnunet, unet

CONFIGS = {
    name: kind.of_unet(unet.UNetConfig(widths=(8, 16, 32), bfloat16=False))
    for name, kind in networks.FAMILIES.items()
}
CONFIGS["dynunet_residual"] = dataclasses.replace(CONFIGS["dynunet"], res_block=True, heads=1)
EACH = pytest.mark.parametrize("name", list(CONFIGS))
NNUNET = pytest.mark.parametrize("name", ["plain_conv_unet", "residual_encoder_unet"])


def _weights(config: Any) -> Any:
    return nnunet_weights if isinstance(config, nnunet.PlainConvConfig) else monai_weights


def _params(config: Any, channels: int = 2) -> Any:
    x = jnp.zeros((1, *config.divisor, channels))
    shapes = jax.eval_shape(config.module().init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda y: rng.standard_normal(y.shape, np.float32), shapes)


def _state(name: str, channels: int = 2) -> tuple[Any, Any, dict[str, np.ndarray]]:
    config = CONFIGS[name]
    weights = _weights(config)
    return config, weights, weights.to_torch(config, _params(config, channels))


@EACH
# With 8 the first residual block of DynUNet has no projection.
@pytest.mark.parametrize("channels", [1, 8])
def test_there_and_back_is_the_same(name: str, channels: int) -> None:
    config, weights, state = _state(name, channels)
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.from_torch(config, state, channels),
        _params(config, channels),
    )


@EACH
def test_a_missing_surplus_or_misshaped_array_is_named(name: str) -> None:
    config, weights, state = _state(name)
    key = next(key for key in state if key.endswith("weight") and state[key].ndim == 5)
    twins = [other for other in state if state[other] is state[key]]
    less = {other: y for other, y in state.items() if other not in twins}
    with pytest.raises(UserError, match=f"lack {key}$|lack {key}[.]"):
        weights.from_torch(config, less, 2)
    with pytest.raises(UserError, match=r"have extra\.weight, which it does not"):
        weights.from_torch(config, state | {"extra.weight": state[key]}, 2)
    wide = np.concatenate([state[key]] * 2, axis=2)
    with pytest.raises(UserError, match=rf"{key} have the shape .*, expected \(8, 2, 3, 3, 3\)"):
        weights.from_torch(config, state | dict.fromkeys(twins, wide), 2)
    flat = dict.fromkeys(twins, np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"\(3,\), expected"):
        weights.from_torch(config, state | flat, 2)


@EACH
def test_another_number_of_input_channels_is_refused(name: str) -> None:
    config, weights, state = _state(name, channels=1)
    with pytest.raises(UserError, match=r"\(8, 1, 3, 3, 3\), expected \(8, 4, .*sees 4 sequences"):
        weights.from_torch(config, state, 4)


@EACH
def test_weights_that_are_not_numbers_are_refused(name: str) -> None:
    config, weights, state = _state(name)
    last = list(state)[-1]
    twins = {key: np.full_like(y, np.nan) for key, y in state.items() if y is state[last]}
    with pytest.raises(UserError, match="NaN"):
        weights.from_torch(config, state | twins, 2)


@NNUNET
@pytest.mark.parametrize("part", ["decoder.encoder.", ".all_modules."])
def test_twins_may_be_missing_but_not_differ(name: str, part: str) -> None:
    config, weights, state = _state(name)
    twins = [key for key in state if part in key]
    assert twins
    fewer = {key: y for key, y in state.items() if key not in twins}
    jax.tree.map(
        np.testing.assert_array_equal, weights.from_torch(config, fewer, 2), _params(config)
    )
    for key in (twins[0], twins[-1]):
        with pytest.raises(UserError, match="one array of the network, but differ") as refused:
            weights.from_torch(config, state | {key: state[key] + 1e-6}, 2)
        assert key in str(refused.value)


def test_twins_of_dynunet_may_be_missing_but_not_differ() -> None:
    config, weights, state = _state("dynunet_residual")
    for part in ("skip_layers", "input_block"):
        fewer = {key: y for key, y in state.items() if not key.startswith(part)}
        params = weights.from_torch(config, fewer, 2)
        jax.tree.map(np.testing.assert_array_equal, params, _params(config))
    key = next(key for key in state if "super_head" in key)
    with pytest.raises(UserError, match="super_head"):
        weights.from_torch(config, state | {key: state[key] + 1}, 2)


def test_weights_of_another_network_are_refused() -> None:
    _, _, state = _state("plain_conv_unet")
    with pytest.raises(UserError, match=r"lack encoder.stem.convs.0.conv.weight, .* more and have"):
        nnunet_weights.from_torch(CONFIGS["residual_encoder_unet"], state, 2)


def test_half_precision_becomes_float32() -> None:
    config, weights, state = _state("segresnet")
    halves = {key: y.astype(np.float16) for key, y in state.items()}
    params = weights.from_torch(config, halves, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_known_names() -> None:
    # As in checkpoints of nnU-Net v2 and in MONAI's bundle.
    _, _, state = _state("plain_conv_unet")
    assert state["encoder.stages.1.0.convs.0.conv.weight"].shape == (16, 8, 3, 3, 3)
    assert state["decoder.transpconvs.0.weight"].shape == (32, 16, 2, 2, 2)
    assert state["decoder.seg_layers.1.bias"].shape == (4,)
    bundle = monai.SegResNetConfig(16, 3)
    state = monai_weights.to_torch(bundle, _params(bundle, 4))
    assert state["down_layers.3.4.conv2.conv.weight"].shape == (128, 128, 3, 3, 3)
    assert state["conv_final.2.conv.bias"].shape == (3,)
