"""The peer's U-Net, loss and gradients are ours: the benchmarks compare the same work."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the peer of the benchmarks needs torch")

from benchmarks import made_data, peer_unet  # noqa: E402
from kdnet_jax.losses import objective, output  # noqa: E402
from kdnet_jax.models import networks, unet  # noqa: E402
from tests.helpers import glioma  # noqa: E402

_WIDTHS = (4, 6, 8)
# Threads that wait for one another are slow where tests share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def both() -> tuple[Any, ...]:
    """Our parameters with scales and biases that matter, the peer with the same, and a batch."""
    config = unet.UNetConfig(widths=_WIDTHS)
    params = networks.init_params(config, made_data.CHANNELS, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    leaves = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, leaves)
    peer = peer_unet.UNet(made_data.CHANNELS, _WIDTHS)
    peer.load_state_dict(peer_unet.state_from_flax(params), strict=True)
    image, label = made_data.batch(2, 16)
    return unet.UNet(config), params, peer, image, label


def _peer_outputs(peer, image, label) -> tuple[Any, Any]:
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3).contiguous()
    logits = peer(x)
    return logits, peer_unet.dice_ce(logits, torch.from_numpy(label).long())


def _our_loss(network, params, image, label) -> tuple[Any, Any]:
    logits, _ = network.apply(params, jnp.asarray(image))
    y = glioma.SOFTMAX.targets(jnp.asarray(label))
    loss = objective.of_options(glioma.SOFTMAX)
    terms = loss.terms(output.Output(logits, {}, glioma.SOFTMAX), None, y, None)
    return loss.total(terms).mean(), logits


def test_logits_loss_and_gradients_are_ours(both) -> None:
    network, params, peer, image, label = both
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda p: _our_loss(network, p, image, label), has_aux=True)
    )
    (loss, logits), grads = value_and_grad(params)
    peer.zero_grad()
    peer_logits, peer_loss = _peer_outputs(peer, image, label)
    peer_loss.backward()

    np.testing.assert_allclose(
        peer_logits.detach().permute(0, 2, 3, 4, 1).numpy(), logits, rtol=1e-3, atol=1e-3
    )
    assert peer_loss.item() == pytest.approx(float(loss), rel=1e-5)
    wanted = peer_unet.state_from_flax(grads)
    found = {name: value.grad for name, value in peer.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # A convolution's bias before a normalisation has no gradient but rounding.
        scale = max(float(value.abs().max()), 1e-3)
        np.testing.assert_allclose(found[name], value, atol=2e-3 * scale, rtol=0, err_msg=name)


def test_layouts_of_the_peer_agree(both) -> None:
    _, _, peer, image, _ = both
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        outputs = [peer(x.contiguous(memory_format=form)) for form in peer_unet.LAYOUTS.values()]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


def test_a_step_of_the_peer_learns(both) -> None:
    image, label = made_data.batch(1, 8)
    torch.manual_seed(0)
    network = peer_unet.UNet(made_data.CHANNELS, (4, 8))
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3).contiguous()
    # Classes that can be told from the first channel.
    label = torch.from_numpy((image[..., 0] > 0).astype(np.int64))
    step = peer_unet.training_step(network, x, label)
    losses = [step() for _ in range(6)]
    assert losses[-1] < losses[0]
