"""Terms against the reference, and what they are made of: Dice, CE, BCE.

Every function returns a value per sample (and per channel where it says so). p is the prediction, y
the target, both in [0, 1]. What a term's four arguments are says `objective.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.core import typed
from kdnet_jax.losses import channels, output

_SMOOTH = 1e-5


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The loss against the reference, L_GT.

    Attributes:
        form: "dice_ce" (Dice of all channels but the background + cross-entropy), or "dice_bce"
            (Dice and binary cross-entropy of all channels, as KD-Net writes it); a regions head has
            binary entropies in both. Or "reconstruction": no reference is read, and the network
            learns to reconstruct what is hidden of its input, to be the start of others.
        over_batch: the Dice of the whole batch, not of each sample.
        mask_share: of a reconstruction: share of a patch's cubes that the network does not see.
        mask_edge: of a reconstruction: edge of a hidden cube in voxels.
    """

    form: Literal["dice_ce", "dice_bce", "reconstruction"] = "dice_ce"
    over_batch: bool = False
    mask_share: float = 0.75
    mask_edge: int = 8

    @property
    def reconstructs(self) -> bool:
        """Whether the network learns from its input alone."""
        return self.form == "reconstruction"


def soft_dice(
    p: channels.Volumes,
    y: channels.Volumes,
    *,
    over_batch: bool = False,
) -> Float[Array, "b k"]:
    """Soft Dice coefficient, 1 for equality and for two empty channels.

    `2 sum(p y) / (sum(p^2) + sum(y^2))` (Milletari et al., V-Net, 2016), which is largest at p = y
    for soft y too; without the squares it is not: it pulls p to 0 or 1.

    Args:
        p: probabilities, a volume "b d h w" per channel.
        y: target, hard or soft, likewise.
        over_batch: sum over the batch first (nnU-Net's batch Dice); the rows are then equal.
    """

    def total(x: Float[Array, "b d h w"]) -> Float[Array, "b"]:
        each = channels.voxel_sum(x)
        return jnp.broadcast_to(each.sum(), each.shape) if over_batch else each

    def dice(p: Float[Array, "b d h w"], y: Float[Array, "b d h w"]) -> Float[Array, "b"]:
        return (2 * total(p * y) + _SMOOTH) / (total(p * p) + total(y * y) + _SMOOTH)

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
    return -channels.add(target * log for target, log in zip(y, log_p, strict=True))


def binary_cross_entropy(
    prediction: channels.Prediction, y: channels.Volumes
) -> Float[Array, "b d h w"]:
    """Mean over the channels of `-(y log p + (1 - y) log(1 - p))` of each voxel."""
    terms = [
        target * log_p + (1 - target) * log_q
        for target, log_p, log_q in zip(y, prediction.log_p, prediction.log_q, strict=True)
    ]
    return -channels.add(terms) / len(terms)


def dice_loss(
    student: output.Output,
    teacher: output.Output | None,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    background: bool = False,
    over_batch: bool = False,
) -> Float[Array, "b"]:
    """Term `1 - mean_k Dice(p_k, y_k)` (`soft_dice`); V-Net, Milletari et al., 2016.

    Args:
        student: its probabilities are p.
        teacher: not read.
        y: one-hot classes or 0/1 regions.
        where: voxels that count, or a weight of each, of p and y.
        background: the mean counts the background's channel too, as in KD-Net's L_GT.
        over_batch: batch Dice.
    """
    del teacher
    counted = slice(None) if background else student.head.foreground
    p, target = student.prediction.p[counted], channels.split(y)[counted]
    if where is not None:
        p, target = (tuple(channel * where for channel in each) for each in (p, target))
    return 1 - soft_dice(p, target, over_batch=over_batch).mean(axis=-1)


def cross_entropy_loss(
    student: output.Output,
    teacher: output.Output | None,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term CE(y, p): mean over the voxels of `-sum_k y_k log p_k`; needs a softmax head."""
    del teacher
    return weighted_mean(cross_entropy(student.prediction.log_p, channels.split(y)), where)


def binary_cross_entropy_loss(
    student: output.Output,
    teacher: output.Output | None,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term BCE(y, p): mean over voxels and channels of `-(y log p + (1 - y) log(1 - p))`.

    That of L_GT in KD-Net (Hu et al., 2020), and of every regions head.
    """
    del teacher
    return weighted_mean(binary_cross_entropy(student.prediction, channels.split(y)), where)


def deep_supervision(
    student: output.Output,
    teacher: output.Output | None,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    terms: Sequence[Callable[..., Float[Array, "b"]]],
) -> Float[Array, "b"] | None:
    """Term `sum_i (sum of terms at level i) / 2^i` over the coarser logits; the full ones have 1.

    The weights are not divided by their sum. The reference of a coarser voxel is that at its centre
    (`_at_centres`). Isensee et al., nnU-Net, 2021.

    Args:
        student: its coarser logits are compared.
        teacher: not read.
        y: the reference at full resolution.
        where: voxels that count, likewise.
        terms: those against the reference.

    Returns:
        `None` where the network has no coarser logits.
    """
    del teacher
    if not student.coarse:
        return None
    total: Array = jnp.zeros(y.shape[0])
    for level, coarse in student.coarse.items():
        # "b d h w k" to "b D H W k" of the level
        shape = typed.triple(coarse.logits.shape[1:4])
        counts = None if where is None else _at_centres(where[..., None], shape)[..., 0]
        targets = _at_centres(y, shape)
        total = total + sum(term(coarse, None, targets, counts) for term in terms) / 2**level
    return total


def _at_centres(
    y: Float[Array, "b d h w k"], shape: tuple[int, int, int]
) -> Float[Array, "b D H W k"]:
    """Returns voxel `stride // 2` of each block of `stride` voxels (PyTorch's "nearest-exact").

    Voxel 0 of each block would lie (stride - 1) / 2 voxels off its centre, to one corner.
    """
    strides = [full // coarse for full, coarse in zip(y.shape[1:4], shape, strict=True)]
    return y[:, *(slice(stride // 2, None, stride) for stride in strides)]
