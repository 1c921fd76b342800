"""Losses between a prediction and the reference (or a teacher's soft target): Dice, CE, BCE.

Every function returns a value per sample (and per channel where it says so); what is averaged
over what is decided by the caller. p is the prediction, y the target, both in [0, 1].
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import channels
from kdnet_jax.models import heads

_SMOOTH = 1e-5


def soft_dice(
    p: channels.Volumes,
    y: channels.Volumes,
    *,
    squared: bool = True,
    over_batch: bool = False,
) -> Float[Array, "b k"]:
    """Soft Dice coefficient, 1 for equality and for two empty channels.

    `2 sum(p y) / (sum(p^2) + sum(y^2))`, or without the squares. The squared form (Milletari et
    al., V-Net, 2016) is largest at p = y for soft y too; the plain one is not: it pulls p to 0
    or 1.

    Args:
        p: probabilities, a volume "b d h w" per channel.
        y: target, hard or soft, likewise.
        squared: square the terms of the denominator.
        over_batch: sum over the batch first (nnU-Net's batch Dice); the rows are then equal.
    """

    def total(x: Float[Array, "b d h w"]) -> Float[Array, "b"]:
        each = channels.voxel_sum(x)
        return jnp.broadcast_to(each.sum(), each.shape) if over_batch else each

    def dice(p: Float[Array, "b d h w"], y: Float[Array, "b d h w"]) -> Float[Array, "b"]:
        size = total(p * p) + total(y * y) if squared else total(p) + total(y)
        return (2 * total(p * y) + _SMOOTH) / (size + _SMOOTH)

    return jnp.stack([dice(*pair) for pair in zip(p, y, strict=True)], axis=-1)


def weighted_mean(
    values: Float[Array, "b d h w"], weights: Float[Array, "b d h w"] | None
) -> Float[Array, "b"]:
    """Mean over the voxels of each sample, by weight if `weights` are given."""
    if weights is None:
        return channels.voxel_sum(values) / values[0].size
    # At least 1: a sample may have no voxel that counts.
    total = jnp.maximum(channels.voxel_sum(weights), 1)
    return channels.voxel_sum(values * weights) / total


def cross_entropy(log_p: channels.Volumes, y: channels.Volumes) -> Float[Array, "b d h w"]:
    """Softmax cross-entropy `-sum_k y_k log p_k` of each voxel; y may be soft."""
    return -sum(target * log for target, log in zip(y, log_p, strict=True))


def binary_cross_entropy(
    prediction: channels.Prediction, y: channels.Volumes
) -> Float[Array, "b d h w"]:
    """Mean over the channels of `-(y log p + (1 - y) log(1 - p))` of each voxel."""
    terms = [
        target * log_p + (1 - target) * log_q
        for target, log_p, log_q in zip(y, prediction.log_p, prediction.log_q, strict=True)
    ]
    return -sum(terms) / len(terms)


def supervised_terms(
    logits: Float[Array, "b d h w k"],
    y: Float[Array, "b d h w k"],
    *,
    head: heads.Head,
    known: Float[Array, "b d h w"] | None = None,
    form: str = "dice_ce",
    over_batch: bool = False,
) -> dict[str, Float[Array, "b"]]:
    """The two terms against the reference, per sample: 1 - Dice and an entropy.

    Args:
        logits: the network's output.
        y: one-hot classes or 0/1 regions (`Head.targets`).
        head: what the channels of the logits are.
        known: 1 for the voxels that have a label, 0 for those to ignore, which are in no sum
            (`Head.known`); `None`: all count.
        form: "dice_ce" (Dice over the tumour channels + cross-entropy), or "dice_bce" (Dice and
            binary cross-entropy over all channels, as KD-Net writes L_GT). A regions head has
            binary entropies in both.
        over_batch: batch Dice.

    Returns:
        {"gt_dice": 1 - mean Dice, "gt_ce" or "gt_bce"}; their sum is the loss.
    """
    prediction, target = channels.predict(logits, head), channels.split(y)
    if form == "dice_ce" and head.kind == "softmax":
        name, entropy = "gt_ce", cross_entropy(prediction.log_p, target)
    else:
        name, entropy = "gt_bce", binary_cross_entropy(prediction, target)
    counted = head.foreground if form == "dice_ce" else slice(None)
    p = prediction.p[counted]
    if known is not None:  # the target is 0 there already
        p = tuple(channel * known for channel in p)
    dice = soft_dice(p, target[counted], over_batch=over_batch)
    return {"gt_dice": 1 - dice.mean(axis=-1), name: weighted_mean(entropy, known)}


def deep_supervision_loss(
    features: dict[str, Array],
    y: Float[Array, "b d h w k"],
    *,
    head: heads.Head,
    known: Float[Array, "b d h w"] | None = None,
    form: str,
    over_batch: bool = False,
) -> Float[Array, "b"] | None:
    """The supervised loss of the coarser logits, level i with weight 1/2^i (the full one has 1).

    The weights are not divided by their sum. The reference of a coarser voxel is that at its centre
    (`_at_centres`). `None` where the network has no coarser logits. Isensee et al., nnU-Net, 2021.
    """
    levels = sorted(int(name.removeprefix("logits_")) for name in features if "logits_" in name)
    if not levels:
        return None
    total: Array = jnp.zeros(y.shape[0])
    for level in levels:
        logits = features[f"logits_{level}"]
        shape = logits.shape[1:4]
        coarse = None if known is None else _at_centres(known[..., None], shape)[..., 0]
        terms = supervised_terms(
            logits,
            _at_centres(y, shape),
            head=head,
            known=coarse,
            form=form,
            over_batch=over_batch,
        )
        total = total + sum(terms.values()) / 2**level
    return total


def _at_centres(
    y: Float[Array, "b d h w k"], shape: tuple[int, int, int]
) -> Float[Array, "b D H W k"]:
    """Returns voxel `stride // 2` of each block of `stride` voxels (PyTorch's "nearest-exact").

    Voxel 0 of each block would lie (stride - 1) / 2 voxels off its centre, to one corner.
    """
    strides = [full // coarse for full, coarse in zip(y.shape[1:4], shape, strict=True)]
    return y[:, *(slice(stride // 2, None, stride) for stride in strides)]
