"""Terms against a teacher: KD-Net's distillation loss, its open choices as options.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564):

    L = lambda L_KD + (1 - lambda) L_GT + alpha L_KL

L_KD compares the softened outputs of student and teacher (Dice + BCE), L_GT the student with the
reference (`segmentation.py`), L_KL the two bottlenecks. `docs/distillation.md` says what the paper
leaves open, what was tried and why the default is what it is.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import output, segmentation
from kdnet_jax.models import heads


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """The weights of KD-Net's loss and the choices that the paper leaves open.

    Attributes:
        kd_weight: lambda, the share of the distillation term against the reference term.
        latent_weight: alpha, the weight of the divergence of the bottlenecks.
        temperature: T, softens the teacher's output.
        temper_student: T divides the student's logits too. Without it (the paper's words read
            literally) the student must match nearly uniform targets, which costs it 0.11 of Dice.
        scale_by_temperature: multiply L_KD by T^2, so that its gradient does not fade with T
            (Hinton et al., 2015).
        kd_voxels: "balanced": the entropy's mean gives half of the weight to the voxels that the
            reference calls tumour and half to the others; "uniform": a plain mean.
        kl_direction: "teacher_student" for KL(teacher || student), or "student_teacher".
        latent_softmax: what the bottleneck's softmax runs over: "channels", or "voxels".
        latent_reduction: "mean" over what the softmax leaves, or "sum" (per sample).
        unlabelled: the teacher's labels of scans without a reference: "hard", its decisions in the
            place of the reference; "soft", its probabilities; or "sharp", these sharpened.
        unlabelled_weight: weight of the loss against these labels.
        unlabelled_temperature: T of "soft", of both networks.
        sharpening: T of "sharp", of the teacher's probabilities: p^(1/T), normalised.
        confidence: weight of a voxel there: "none" (1), "probability" (the teacher's of its
            decision), or "threshold": 1 where that reaches the threshold, else 0.
        confidence_threshold: see above.
    """

    kd_weight: float = 0.75
    latent_weight: float = 10.0
    temperature: float = 5.0
    temper_student: bool = True
    scale_by_temperature: bool = False
    kd_voxels: Literal["uniform", "balanced"] = "uniform"
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    latent_softmax: Literal["channels", "voxels"] = "channels"
    latent_reduction: Literal["mean", "sum"] = "mean"
    unlabelled: Literal["soft", "sharp", "hard"] = "hard"
    unlabelled_weight: float = 1.0
    unlabelled_temperature: float = 1.0
    sharpening: float = 0.5
    confidence: Literal["none", "probability", "threshold"] = "none"
    confidence_threshold: float = 0.8


def softened_dice_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
) -> Float[Array, "b"]:
    """Term of L_KD: `1 - mean_k Dice(s_k, p_k)` over all channels (Hu et al., 2020).

    Args:
        student: at its temperature p.
        teacher: at its temperature the soft target s; no gradient flows into it.
        y: not read.
        where: not read: a teacher has an opinion on voxels without a label.
        teacher_temperature: T of s.
        student_temperature: T of p.
        scale: factor of the term.
    """
    del y, where
    s = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    p = student.softened(student_temperature).p
    return scale * (1 - segmentation.soft_dice(p, s).mean(axis=-1))


def softened_cross_entropy_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
    balanced: bool = False,
) -> Float[Array, "b"]:
    """Term of L_KD: BCE(s, p), a mean over voxels and channels (Hu et al., 2020).

    Args:
        student: see `softened_dice_loss`.
        teacher: likewise.
        y: the reference, used only to balance the voxels.
        where: not read.
        teacher_temperature: see `softened_dice_loss`.
        student_temperature: likewise.
        scale: likewise.
        balanced: the mean has the weights of `balance_weights`.
    """
    del where
    s = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    entropy = segmentation.binary_cross_entropy(student.softened(student_temperature), s)
    weights = balance_weights(y, student.head) if balanced else None
    return scale * segmentation.weighted_mean(entropy, weights)


def balance_weights(y: Float[Array, "b d h w k"], head: heads.Head) -> Float[Array, "b d h w"]:
    """Weights that give the tumour's voxels half of the total, the others the other half.

    A sample without tumour (or with nothing else) has equal weights.
    """
    tumour = y[..., head.foreground].max(axis=-1)
    share = tumour.mean(axis=(1, 2, 3), keepdims=True)
    mixed = (share > 0) & (share < 1)
    inside = jnp.where(mixed, 0.5 / jnp.where(mixed, share, 1), 1.0)
    outside = jnp.where(mixed, 0.5 / jnp.where(mixed, 1 - share, 1), 1.0)
    return jnp.where(tumour > 0, inside, outside)


def latent_divergence(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    direction: str = "teacher_student",
    softmax: str = "channels",
    reduction: str = "mean",
) -> Float[Array, "b"]:
    """Term L_KL: `KL(teacher || student)` of the bottlenecks, each made a distribution by softmax.

    Args:
        student: its bottleneck "b d h w c" is compared.
        teacher: its bottleneck, of the same shape; no gradient flows into it.
        y: not read.
        where: not read.
        direction: see `DistillationOptions.kl_direction`.
        softmax: see `DistillationOptions.latent_softmax`.
        reduction: see `DistillationOptions.latent_reduction`.
    """
    del y, where
    axis = -1 if softmax == "channels" else 1

    def log_distribution(latent: Float[Array, "b d h w c"]) -> Float[Array, "b n c"]:
        flat = latent.astype(jnp.float32).reshape(latent.shape[0], -1, latent.shape[-1])
        return jax.nn.log_softmax(flat, axis=axis)

    log_s = log_distribution(student.features["bottleneck"])
    log_t = jax.lax.stop_gradient(log_distribution(teacher.features["bottleneck"]))
    if direction == "student_teacher":
        log_s, log_t = log_t, log_s
    divergence = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=axis)
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    return reduce(divergence, axis=-1)
