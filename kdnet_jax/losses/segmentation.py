"""Losses between a prediction and the reference (or a teacher's soft target): Dice, CE, BCE.

Every function returns a value per sample (and per channel where it says so); what is averaged
over what is decided by the caller. p is the prediction, y the target, both in [0, 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.models import heads

_SMOOTH = 1e-5


def soft_dice(
    p: Float[Array, "b d h w k"],
    y: Float[Array, "b d h w k"],
    *,
    squared: bool = True,
    over_batch: bool = False,
) -> Float[Array, "b k"]:
    """Soft Dice coefficient, 1 for equality and for two empty channels.

    `2 sum(p y) / (sum(p^2) + sum(y^2))`, or without the squares. The squared form (Milletari et
    al., V-Net, 2016) is largest at p = y for soft y too; the plain one is not: it pulls p to 0
    or 1.

    Args:
        p: probabilities.
        y: target, hard or soft.
        squared: square the terms of the denominator.
        over_batch: sum over the batch first (nnU-Net's batch Dice); the rows are then equal.
    """
    axes = (0, 1, 2, 3) if over_batch else (1, 2, 3)
    power = 2 if squared else 1
    overlap = jnp.sum(p * y, axis=axes, keepdims=True)
    total = jnp.sum(p**power, axis=axes, keepdims=True) + jnp.sum(
        y**power, axis=axes, keepdims=True
    )
    dice = (2 * overlap + _SMOOTH) / (total + _SMOOTH)
    return jnp.broadcast_to(dice[:, 0, 0, 0, :], (p.shape[0], p.shape[-1]))


def weighted_mean(
    values: Float[Array, "b d h w"], weights: Float[Array, "b d h w"] | None
) -> Float[Array, "b"]:
    """Mean over the voxels of each sample, by weight if `weights` are given."""
    if weights is None:
        return values.mean(axis=(1, 2, 3))
    return jnp.sum(values * weights, axis=(1, 2, 3)) / jnp.sum(weights, axis=(1, 2, 3))


def cross_entropy(
    logits: Float[Array, "b d h w k"], y: Float[Array, "b d h w k"]
) -> Float[Array, "b d h w"]:
    """Softmax cross-entropy `-sum_k y_k log softmax(logits)_k` of each voxel; y may be soft."""
    return -jnp.sum(y * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def binary_cross_entropy(
    logits: Float[Array, "b d h w k"], y: Float[Array, "b d h w k"], head: heads.Head
) -> Float[Array, "b d h w"]:
    """Mean over the channels of `-(y log p + (1 - y) log(1 - p))` of each voxel.

    p is the head's probability. For the softmax head `log(1 - p_k)` is the log-sum-exp of the other
    classes minus that of all, exact where `1 - p` would round to 0.
    """
    if head == "regions":
        log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    else:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        others = 1.0 - jnp.eye(logits.shape[-1], dtype=logits.dtype)
        log_q = jnp.stack(
            [
                jax.nn.logsumexp(log_p, axis=-1, b=others[channel])
                for channel in range(logits.shape[-1])
            ],
            axis=-1,
        )
    return -jnp.mean(y * log_p + (1 - y) * log_q, axis=-1)


def supervised_terms(
    logits: Float[Array, "b d h w k"],
    y: Float[Array, "b d h w k"],
    *,
    head: heads.Head,
    form: str = "dice_ce",
    over_batch: bool = False,
) -> dict[str, Float[Array, "b"]]:
    """The two terms against the reference, per sample: 1 - Dice and an entropy.

    Args:
        logits: the network's output.
        y: one-hot classes or 0/1 regions (`heads.targets`).
        head: what the channels of the logits are.
        form: "dice_ce" (Dice over the tumour channels + cross-entropy), or "dice_bce" (Dice and
            binary cross-entropy over all channels, as KD-Net writes L_GT). A regions head has
            binary entropies in both.
        over_batch: batch Dice.

    Returns:
        {"gt_dice": 1 - mean Dice, "gt_ce" or "gt_bce"}; their sum is the loss.
    """
    p = heads.probabilities(logits, head)
    channels = heads.foreground(head) if form == "dice_ce" else slice(None)
    dice = soft_dice(p[..., channels], y[..., channels], over_batch=over_batch)
    terms = {"gt_dice": 1 - dice.mean(axis=-1)}
    if form == "dice_ce" and head == "softmax":
        terms["gt_ce"] = weighted_mean(cross_entropy(logits, y), None)
    else:
        terms["gt_bce"] = weighted_mean(binary_cross_entropy(logits, y, head), None)
    return terms


def deep_supervision_loss(
    features: dict[str, Array],
    y: Float[Array, "b d h w k"],
    *,
    head: heads.Head,
    form: str,
    over_batch: bool = False,
) -> Float[Array, "b"] | None:
    """The supervised loss of the coarser logits, level i with weight 1/2^i (the full one has 1).

    The weights are not divided by their sum. The reference is brought to level i by striding
    (nearest). `None` where the network has no coarser logits. Isensee et al., nnU-Net, 2021.
    """
    levels = sorted(int(name.removeprefix("logits_")) for name in features if "logits_" in name)
    if not levels:
        return None
    total: Array = jnp.zeros(y.shape[0])
    for level in levels:
        stride = 2**level
        terms = supervised_terms(
            features[f"logits_{level}"],
            y[:, ::stride, ::stride, ::stride],
            head=head,
            form=form,
            over_batch=over_batch,
        )
        total = total + sum(terms.values()) / stride
    return total
