"""KD-Net's distillation loss, its open choices as options, every term by itself.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564):

    L = lambda L_KD + (1 - lambda) L_GT + alpha L_KL

L_KD compares the softened outputs of student and teacher (Dice + BCE), L_GT the student with the
reference (Dice + cross-entropy), L_KL the two bottlenecks. `docs/distillation.md` says what the
paper leaves open, what was tried and why the default is what it is.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.losses import channels, segmentation
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

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        for key, allowed in _CHOICES.items():
            check_choice(f"distillation.{key}", getattr(self, key), allowed)
        if not 0 <= self.kd_weight <= 1:
            raise UserError(f"distillation.kd_weight is {self.kd_weight}: give 0 to 1.")
        if self.latent_weight < 0:
            raise UserError(f"distillation.latent_weight is {self.latent_weight}: give 0 or more.")
        if self.temperature <= 0:
            raise UserError(f"distillation.temperature is {self.temperature}: give more than 0.")


_CHOICES = {
    "kd_voxels": ("uniform", "balanced"),
    "kl_direction": ("teacher_student", "student_teacher"),
    "latent_softmax": ("channels", "voxels"),
    "latent_reduction": ("mean", "sum"),
}


def distillation_terms(
    student: Float[Array, "b d h w k"],
    teacher: Float[Array, "b d h w k"],
    y: Float[Array, "b d h w k"],
    *,
    head: heads.Head,
    options: DistillationOptions,
) -> dict[str, Float[Array, "b"]]:
    """L_KD's two terms per sample: 1 - Dice(s, p) and BCE(s, p), s the teacher's softened output.

    Args:
        student: the student's logits.
        teacher: the frozen teacher's logits; no gradient flows into them.
        y: the reference, used only to balance the voxels.
        head: what the channels of both are.
        options: temperature, tempering, scale and voxel weights.

    Returns:
        {"kd_dice", "kd_bce"}; L_KD is their sum.
    """
    t = options.temperature
    soft_target = jax.lax.stop_gradient(channels.predict(teacher / t, head).p)
    prediction = channels.predict(student / t if options.temper_student else student, head)
    entropy = segmentation.binary_cross_entropy(prediction, soft_target)
    weights = balance_weights(y, head) if options.kd_voxels == "balanced" else None
    scale = t**2 if options.scale_by_temperature else 1.0
    return {
        "kd_dice": scale * (1 - segmentation.soft_dice(prediction.p, soft_target).mean(axis=-1)),
        "kd_bce": scale * segmentation.weighted_mean(entropy, weights),
    }


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
    student: Float[Array, "b d h w c"],
    teacher: Float[Array, "b d h w c"],
    options: DistillationOptions,
) -> Float[Array, "b"]:
    """L_KL per sample: KL divergence of the two bottlenecks, each made a distribution by softmax.

    Args:
        student: the student's bottleneck.
        teacher: the teacher's, of the same shape; no gradient flows into it.
        options: direction, what the softmax runs over, and the reduction.
    """
    b, c = student.shape[0], student.shape[-1]
    flat = (b, -1, c)
    axis = -1 if options.latent_softmax == "channels" else 1
    log_s = jax.nn.log_softmax(student.astype(jnp.float32).reshape(flat), axis=axis)
    log_t = jax.lax.stop_gradient(
        jax.nn.log_softmax(teacher.astype(jnp.float32).reshape(flat), axis=axis)
    )
    if options.kl_direction == "student_teacher":
        log_s, log_t = log_t, log_s
    divergence = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=axis)
    reduce = jnp.mean if options.latent_reduction == "mean" else jnp.sum
    return reduce(divergence, axis=-1)


def total(terms: dict[str, Float[Array, "b"]], options: DistillationOptions) -> Float[Array, "b"]:
    """L = lambda L_KD + (1 - lambda) L_GT + alpha L_KL from terms named kd_*, gt_* and kl.

    Without weight (alpha 0) "kl" may be absent.
    """
    kd = sum(value for name, value in terms.items() if name.startswith("kd_"))
    gt = sum(value for name, value in terms.items() if name.startswith("gt_"))
    weight = options.kd_weight
    loss = weight * kd + (1 - weight) * gt
    return loss + options.latent_weight * terms["kl"] if options.latent_weight else loss
