"""Networks of other tools see their own axes and channels, whatever ours are."""

import dataclasses
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import scipy.special

from kdnet_jax.errors import UserError
from kdnet_jax.models import adapted

# All ways in which three axes can lie.
AXES = [
    "".join(letters[i] for i in order)
    for letters in itertools.product("SI", "PA", "LR")
    for order in itertools.permutations(range(3))
]


class _Places(nn.Module):
    """Says where each voxel lies along the axes of its own array, and its input."""

    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        scale = self.param("scale", nn.initializers.normal(), (self.out_channels,))
        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[1:4]), indexing="ij"), -1)
        logits = jnp.concatenate([places[None] + 0 * x, x], axis=-1) + scale
        return logits, {"bottleneck": x[:, ::2], "logits_1": logits[:, ::2, ::2, ::2]}


@dataclasses.dataclass(frozen=True)
class _Config:
    out_channels: int = 4
    bfloat16: bool | None = False
    convolutions: str = "native"
    divisor: tuple[int, int, int] = (2, 4, 3)

    def module(self) -> nn.Module:
        return _Places(self.out_channels)


def _network(axes: str, order: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> Any:
    return adapted.AdaptedConfig(_Config(), "softmax", order, axes, **changes)


def _to(axes: str, image: np.ndarray) -> np.ndarray:
    """The SPL image in other axes, by nibabel."""
    way = [nib.orientations.axcodes2ornt(each) for each in ("SPL", axes)]
    return nib.orientations.apply_orientation(image, nib.orientations.ornt_transform(*way))


@pytest.mark.parametrize("axes", AXES)
def test_the_network_sees_its_own_axes(axes: str) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 6, 1)).astype(np.float32)
    config = _network(axes)
    params = {"params": {"member_0": {"scale": jnp.zeros(4)}}}
    logits, features = config.module().apply(params, jnp.asarray(x))
    seen = jnp.asarray(_to(axes, x[0])[None])
    theirs = _Config().module().apply({"params": {"scale": jnp.zeros(4)}}, seen)
    np.testing.assert_array_equal(_to(axes, np.asarray(logits[0])), theirs[0][0])
    for name, expected in theirs[1].items():
        np.testing.assert_array_equal(_to(axes, np.asarray(features[name][0])), expected[0])
    assert features["bottleneck"].ndim == 5


def test_edges_follow_their_axes() -> None:
    assert adapted.to_spl((10, 20, 30), "RAS") == (30, 20, 10)
    assert adapted.to_spl((10, 20, 30), "ASL") == (20, 10, 30)
    for axes in AXES:
        assert adapted.to_spl(adapted.from_spl((10, 20, 30), axes), axes) == (10, 20, 30)


def test_outputs_are_put_into_our_order() -> None:
    x = jnp.ones((1, 2, 2, 2, 1), jnp.float32)
    network = _network("SPL", (3, 1, 0, 2)).module()
    logits, features = network.apply({"params": {"member_0": {"scale": jnp.arange(4.0)}}}, x)
    assert logits[0, 0, 0, 0].tolist() == [4.0, 1.0, 0.0, 2.0]
    assert features["logits_1"][0, 0, 0, 0].tolist() == [4.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize("head", ["softmax", "regions"])
def test_members_are_averaged_as_probabilities(head: Any) -> None:
    members = np.random.default_rng(1).normal(scale=8, size=(3, 2, 5)).astype(np.float32)
    found = np.asarray(adapted.mean_logits(list(jnp.asarray(members)), head), np.float64)
    if head == "softmax":
        probs, expected = (scipy.special.softmax(each, axis=-1) for each in (found, members))
    else:
        probs, expected = (scipy.special.expit(each) for each in (found, members))
    np.testing.assert_allclose(probs, expected.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_agreement_by_hand() -> None:
    # Voxels: opposed; alike; sure and undecided, of which the mean is (3/4, 1/4).
    sure, other, undecided = (90.0, 0.0), (0.0, 90.0), (0.0, 0.0)
    one, two = jnp.array([sure, undecided, sure]), jnp.array([other, undecided, undecided])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    half = 1 - (entropy - 0.5 * math.log(2)) / math.log(2)
    found = adapted.agreement([one, two], "softmax")
    np.testing.assert_allclose(found, [[0], [1], [half]], atol=1e-6)
    # A logit of a region is a softmax of two with 0: the least of the regions counts.
    regions = [jnp.array([[90.0, 0.0]]), jnp.array([[0.0, 0.0]])]
    np.testing.assert_allclose(adapted.agreement(regions, "regions"), [[half]], atol=1e-6)
    opposed = [jnp.array([[90.0, 3.0]]), jnp.array([[-90.0, 3.0]])]
    np.testing.assert_allclose(adapted.agreement(opposed, "regions"), [[0]], atol=1e-6)
    # Whatever they count, those who say the opposite agree in nothing.
    weighted = adapted.agreement([one, two], "softmax", (3.0, 1.0))
    np.testing.assert_allclose(weighted[:2], [[0], [1]], atol=1e-6)


def test_several_members_have_parameters_of_their_own_and_no_bottleneck() -> None:
    config = dataclasses.replace(_network("SPL"), members=2)
    x = jnp.ones((1, 2, 2, 2, 1), jnp.float32)
    own = [{"params": {"scale": jnp.full(4, value)}} for value in (0.0, 5.0)]
    params = adapted.join_members(tuple(own))
    fresh = config.module().init(jax.random.key(0), x)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    logits, features = config.module().apply(params, x)
    alone = [_Config().module().apply(each, x)[0] for each in own]
    expected = np.mean(scipy.special.softmax(np.asarray(alone), axis=-1), axis=0)
    np.testing.assert_allclose(scipy.special.softmax(logits, axis=-1), expected, rtol=1e-5)
    agreement = adapted.agreement([jnp.asarray(each) for each in alone], "softmax")
    assert features.keys() == {adapted.AGREEMENT}
    np.testing.assert_array_equal(features[adapted.AGREEMENT], agreement)


def test_the_divisor_is_that_of_each_of_our_axes() -> None:
    assert _network("SPL").divisor == (2, 4, 3)
    assert _network("RAS").divisor == (3, 4, 2)
    assert _network("PSR").divisor == (4, 2, 3)


@pytest.mark.parametrize("axes", ["RAX", "SPI", "SP", "SPLR", "header"])
def test_letters_that_are_no_axes_are_refused(axes: str) -> None:
    with pytest.raises(UserError, match="expected three letters such as 'RAS'"):
        _network(axes)


def test_an_order_that_is_none_of_the_outputs_is_refused() -> None:
    for order in ((0, 1, 2), (0, 1, 2, 2), (1, 2, 3, 4)):
        with pytest.raises(UserError, match="an order of the network's 4 outputs"):
            _network("SPL", order)
