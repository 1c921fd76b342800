"""Volumes with few channels, taken channel by channel.

With 4 channels last, XLA's softmax, one-hot products and sums over voxels run four lanes wide and
pass over the data many times; on CPU the loss then costs a good part of the step
(`docs/performance.md`). Here each channel is a volume of its own: every loss is written as
arithmetic on whole volumes, and the values that several sums read are computed once.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.models import heads

Volume = Float[Array, "b d h w"]
Volumes = tuple[Volume, ...]
# Below it the sum of the other classes' exponentials is 0 in float32, and its logarithm -inf.
_SMALLEST = 1e-37


@jax.custom_vjp
def split(x: Float[Array, "b d h w k"]) -> Volumes:
    """Returns the channels of x."""
    return tuple(x[..., channel] for channel in range(x.shape[-1]))


def _split_forward(x: Array) -> tuple[Volumes, None]:
    return split(x), None


def _split_backward(saved: None, gradients: Volumes) -> tuple[Array]:
    return (jnp.stack(gradients, axis=-1),)


split.defvjp(_split_forward, _split_backward)


def voxel_sum(x: Volume) -> Float[Array, "b"]:
    """Sums over d, h and w, in two steps: XLA gives a sum to one number per sample to one core."""
    return jax.lax.optimization_barrier(x.sum(axis=(2, 3))).sum(axis=1)


class Prediction(NamedTuple):
    """What losses read of a network's output, by channel.

    Attributes:
        p: probabilities.
        log_p: their logarithms.
        log_q: log(1 - p), exact where 1 - p would round to 0 (softmax: down to about -85, where it
            stays).
    """

    p: Volumes
    log_p: Volumes
    log_q: Volumes


def predict(volumes: Volumes, head: heads.Head) -> Prediction:
    """Returns the probabilities of logits, by softmax over all channels or a sigmoid for each."""
    if head.kind == "regions":
        return Prediction(
            tuple(jax.nn.sigmoid(x) for x in volumes),
            tuple(jax.nn.log_sigmoid(x) for x in volumes),
            tuple(jax.nn.log_sigmoid(-x) for x in volumes),
        )
    p, log_p = _softmax(volumes)
    rest = (_sum_without(p, channel) for channel in range(len(p)))
    return Prediction(p, log_p, tuple(jnp.log(jnp.maximum(each, _SMALLEST)) for each in rest))


@jax.custom_vjp
def _softmax(volumes: Volumes) -> tuple[Volumes, Volumes]:
    """Returns the softmax over the channels, and its logarithm."""
    largest = functools.reduce(jnp.maximum, volumes)
    shifted = [x - largest for x in volumes]
    exponentials = [jnp.exp(x) for x in shifted]
    total = add(exponentials)
    log_total = jnp.log(total)
    return tuple(e / total for e in exponentials), tuple(x - log_total for x in shifted)


def _softmax_forward(volumes: Volumes) -> tuple[tuple[Volumes, Volumes], Volumes]:
    p, log_p = _softmax(volumes)
    return (p, log_p), p


def _softmax_backward(p: Volumes, gradients: tuple[Volumes, Volumes]) -> tuple[Volumes]:
    """dz_k = p_k (dp_k - sum_j (p_j dp_j + dlog_p_j)) + dlog_p_k.

    Autodiff divides and takes exponentials of each channel again: 40 divisions a voxel of KD-Net's
    loss, and XLA computes them where it writes the logits' gradient, without vectors.
    """
    dp, dlog_p = gradients
    shared = add([*(each * d for each, d in zip(p, dp, strict=True)), *dlog_p])
    each = zip(p, dp, dlog_p, strict=True)
    return (tuple(p_k * (dp_k - shared) + dlog_k for p_k, dp_k, dlog_k in each),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _sum_without(volumes: Sequence[Volume], channel: int) -> Volume:
    return add(volume for index, volume in enumerate(volumes) if index != channel)


def add(values: Iterable[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Returns the sum of arrays, of which there is at least one."""
    return functools.reduce(operator.add, values)
