"""The mean of networks of different kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.models import adapted, heads, mean, networks, unet
from tests.helpers import glioma

pytestmark = pytest.mark.usefixtures("quick_compilation")

PATCH = (4, 4, 4)


@glioma.each_head
def test_probabilities_are_the_weighted_mean_of_the_members(head: heads.Head) -> None:
    k = len(head.outputs)
    own = unet.UNetConfig(widths=(2, 3), blocks=1, last_blocks=1, head=head.kind, out_channels=k)
    other = networks.of_family("plain_conv_unet", own)
    config = mean.MeanConfig((own, other), ((0, 2), (1,)), (3.0, 1.0))
    assert config.divisor == (2, 2, 2)
    members = tuple(
        networks.init_params(each, count, jax.random.key(count))
        for each, count in ((own, 2), (other, 1))
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, *PATCH, 3)), jnp.float32)
    first, _ = own.module().apply(members[0], x[..., [0, 2]])
    second, _ = other.module().apply(members[1], x[..., [1]])
    params = adapted.join_members(members)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == jax.tree.map(jnp.shape, networks.init_params(config, 3, jax.random.key(0)))
    logits, features = config.module().apply(params, x)
    expected = (3 * head.probabilities(first) + head.probabilities(second)) / 4
    np.testing.assert_allclose(head.probabilities(logits), expected, atol=1e-5)
    agreement = adapted.agreement([first, second], head.kind, (3.0, 1.0))
    np.testing.assert_allclose(features[adapted.AGREEMENT], agreement, atol=1e-5)
    assert networks.feature_shapes(config, 3, PATCH) == {adapted.AGREEMENT: (*PATCH, 1)}
