"""Terms against a teacher: KD-Net's distillation loss, its open choices as options.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564):

    L = lambda L_KD + (1 - lambda) L_GT + alpha L_KL

L_KD compares the softened outputs of student and teacher (Dice + BCE), L_GT the student with the
reference (`segmentation.py`), L_KL the two bottlenecks. Later work compares the outputs otherwise:
`kd_form` chooses. `features.py` and `masked.py` have the terms that are added with weights of their
own. `docs/distillation.md` says what the paper leaves open, what was tried and why the default is
what it is.
"""

import dataclasses
from typing import Final, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdnet_jax.losses import channels, output, segmentation
from kdnet_jax.models import heads


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """The weights of KD-Net's loss and of other terms, and the choices that the paper leaves open.

    Attributes:
        kd_weight: lambda, the share of the distillation term against the reference term.
        latent_weight: alpha, the weight of the divergence of the bottlenecks.
        temperature: T, softens the teacher's output.
        temper_student: T divides the student's logits too. Without it (the paper's words read
            literally) the student must match nearly uniform targets, which costs it 0.11 of Dice.
        scale_by_temperature: multiply L_KD by T^2, so that its gradient does not fade with T
            (Hinton et al., 2015).
        kd_form: what L_KD is: "dice_bce" (KD-Net), "kl", the divergence of the softened outputs
            (Hinton et al., 2015), or "mse", the squared difference of the probabilities (ACN, Wang
            et al., MICCAI 2021).
        kd_voxels: "balanced": L_KD's mean over voxels gives half of the weight to those that the
            reference calls tumour and half to the others; "boundary": likewise to those beside a
            boundary of the teacher's decision; "uniform": a plain mean.
        standardize_logits: "kl" compares logits that are brought to mean 0 and deviation 1 in each
            voxel (Sun et al., CVPR 2024); of a softmax head.
        kl_direction: "teacher_student" for KL(teacher || student), or "student_teacher".
        latent_softmax: what the bottleneck's softmax runs over: "channels", or "voxels".
        latent_reduction: "mean" over what the softmax leaves, or "sum" (per sample).
        unlabelled: the teacher's labels of scans without a reference: "hard", its decisions in the
            place of the reference; "soft", its probabilities; or "sharp", these sharpened.
        unlabelled_weight: weight of the loss against the teacher's labels of scans without a
            reference.
        unlabelled_temperature: T of "soft", of both networks.
        sharpening: T of "sharp", of the teacher's probabilities: p^(1/T), normalised.
        confidence: weight of a voxel in a scan without a reference: "none" (1), "probability" (the
            teacher's of its decision), "threshold": 1 where that reaches `confidence_threshold`,
            else 0, or "agreement": how far several teachers agree.
        confidence_threshold: the probability of the teacher's decision that "threshold" asks for.
        hint_weight: of the hints: the squared distance of the bottlenecks, by a projector (FitNets,
            Romero et al., 2015).
        gram_weight: of the bottlenecks' Gram matrices (SMU-Net, Azad et al., 2022).
        contrastive_weight: of the contrast of the bottlenecks' voxels (after PMKL, Chen et al.,
            2022, and CRD, Tian et al., 2020).
        contrastive_temperature: by which the contrast divides cosines.
        prototype_weight: of the similarities with class prototypes (ProtoKD, Wang et al., 2023).
        affinity_weight: of the cosines between class prototypes (Qin et al., 2021).
        masked_weight: of the cross-entropy with the teacher where it is right and better (PMKL,
            Chen et al., 2022).
        mixup: a of Beta(a, a): student and teacher see a mixture of two samples of the batch, and
            the references are mixed alike (Zhang et al., 2018; Beyer et al., 2022); 0: they do not.
        init_from_teacher: the student starts from the teacher's parameters: from all arrays of
            equal shape, and in the first convolution from those of its own sequences.
    """

    kd_weight: float = 0.75
    latent_weight: float = 10.0
    temperature: float = 5.0
    temper_student: bool = True
    scale_by_temperature: bool = False
    kd_form: Literal["dice_bce", "kl", "mse"] = "dice_bce"
    kd_voxels: Literal["uniform", "balanced", "boundary"] = "uniform"
    standardize_logits: bool = False
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    latent_softmax: Literal["channels", "voxels"] = "channels"
    latent_reduction: Literal["mean", "sum"] = "mean"
    unlabelled: Literal["soft", "sharp", "hard"] = "hard"
    unlabelled_weight: float = 1.0
    unlabelled_temperature: float = 1.0
    sharpening: float = 0.5
    confidence: Literal["none", "probability", "threshold", "agreement"] = "none"
    confidence_threshold: float = 0.8
    hint_weight: float = 0.0
    gram_weight: float = 0.0
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.1
    prototype_weight: float = 0.0
    affinity_weight: float = 0.0
    masked_weight: float = 0.0
    mixup: float = 0.0
    init_from_teacher: bool = False

    def weight(self, role: str) -> float:
        """Returns the weight of "kd", "latent" or a term of `OF_OWN_WEIGHT`."""
        return getattr(self, f"{role}_weight")

    @property
    def teaches_beside_references(self) -> bool:
        """Whether the teacher counts on cases that have a reference."""
        weights = map(self.weight, ("kd", "latent", *OF_OWN_WEIGHT))
        return self.init_from_teacher or any(weights)


# Terms that are added, each with a weight of its own; 0: it is not computed.
OF_OWN_WEIGHT: Final = ("hint", "gram", "contrastive", "prototype", "affinity", "masked")
# Of these, those whose student's bottleneck goes through a projector.
PROJECTED: Final = ("hint", "gram", "contrastive")


def softened_dice_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
    weighted: bool = False,
) -> Float[Array, "b"]:
    """Term of L_KD: `1 - mean_k Dice(s_k, p_k)` over all channels (Hu et al., 2020).

    Args:
        student: at its temperature p.
        teacher: at its temperature the soft target s; no gradient flows into it.
        y: not read.
        where: weights of the voxels, read if `weighted`: without a reference a teacher has an
            opinion too.
        teacher_temperature: T of s.
        student_temperature: T of p.
        scale: factor of the term.
        weighted: p and s count times where.
    """
    del y
    s = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    p = student.softened(student_temperature).p
    if weighted and where is not None:
        p, s = (tuple(channel * where for channel in each) for each in (p, s))
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
    voxels: str = "uniform",
    weighted: bool = False,
) -> Float[Array, "b"]:
    """Term of L_KD: BCE(s, p), a mean over voxels and channels (Hu et al., 2020).

    Args:
        student: see `softened_dice_loss`.
        teacher: likewise.
        y: the reference, used only to balance the voxels.
        where: see `softened_dice_loss`.
        teacher_temperature: see `softened_dice_loss`.
        student_temperature: likewise.
        scale: likewise.
        voxels: see `voxel_weights`.
        weighted: the mean has the weights where, in place of those of `voxels`.
    """
    s = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    entropy = segmentation.binary_cross_entropy(student.softened(student_temperature), s)
    weights = where if weighted else voxel_weights(voxels, teacher, y)
    return scale * segmentation.weighted_mean(entropy, weights)


def softened_divergence(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
    voxels: str = "uniform",
    standardize: bool = False,
    weighted: bool = False,
) -> Float[Array, "b"]:
    """Term of L_KD: `KL(s || p) = sum_k s_k log(s_k / p_k)`, a mean over voxels (Hinton, 2015).

    Of a regions head the mean over the regions of the divergences of two outcomes.

    Args:
        student: see `softened_dice_loss`.
        teacher: likewise.
        y: the reference, used only to balance the voxels.
        where: see `softened_dice_loss`.
        teacher_temperature: likewise.
        student_temperature: likewise.
        scale: likewise.
        voxels: see `voxel_weights`.
        standardize: see `DistillationOptions.standardize_logits`.
        weighted: see `softened_cross_entropy_loss`.
    """
    weights = where if weighted else voxel_weights(voxels, teacher, y)
    if standardize:
        student, teacher = student.standardized, teacher.standardized
    target = jax.lax.stop_gradient(teacher.softened(teacher_temperature))
    answer = student.softened(student_temperature)
    if student.head.kind == "regions":
        entropy = segmentation.binary_cross_entropy
        divergence = entropy(answer, target.p) - entropy(target, target.p)
    else:
        entropy = segmentation.cross_entropy
        divergence = entropy(answer.log_p, target.p) - entropy(target.log_p, target.p)
    return scale * segmentation.weighted_mean(divergence, weights)


def squared_difference(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
    voxels: str = "uniform",
    weighted: bool = False,
) -> Float[Array, "b"]:
    """Term of L_KD: `mean_k (s_k - p_k)^2`, a mean over voxels (ACN, Wang et al., MICCAI 2021).

    Args:
        student: see `softened_dice_loss`.
        teacher: likewise.
        y: the reference, used only to balance the voxels.
        where: see `softened_dice_loss`.
        teacher_temperature: likewise.
        student_temperature: likewise.
        scale: likewise.
        voxels: see `voxel_weights`.
        weighted: see `softened_cross_entropy_loss`.
    """
    s = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    p = student.softened(student_temperature).p
    squares = [(each - target) ** 2 for each, target in zip(p, s, strict=True)]
    weights = where if weighted else voxel_weights(voxels, teacher, y)
    return scale * segmentation.weighted_mean(channels.add(squares) / len(squares), weights)


def voxel_weights(
    voxels: str, teacher: output.Output, y: Float[Array, "b d h w k"]
) -> Float[Array, "b d h w"] | None:
    """Returns the weights of L_KD's mean over voxels; see `DistillationOptions.kd_voxels`."""
    if voxels == "balanced":
        return balance_weights(y, teacher.head)
    return boundary_weights(teacher) if voxels == "boundary" else None


def boundary_weights(teacher: output.Output) -> Float[Array, "b d h w"]:
    """Weights that give half of the total to the voxels beside a boundary, the others the other.

    Beside a boundary is a voxel of which one of the 6 neighbours has another decision of the
    teacher's: of its most probable class, or of a region. The teacher's and not the reference's, so
    that scans without a reference have weights too; after Wen et al., "Towards efficient medical
    image segmentation via boundary-guided knowledge distillation", ICME 2021.
    """
    decided = jax.lax.stop_gradient(teacher.decided)
    beside = jnp.zeros(decided.shape[:-1], bool)
    for axis in (1, 2, 3):
        before = jax.lax.slice_in_dim(decided, 0, -1, axis=axis)
        after = jax.lax.slice_in_dim(decided, 1, None, axis=axis)
        differ = (before != after).any(axis=-1)
        for ends in ((0, 1), (1, 0)):  # the voxel before the boundary, and the one after it
            beside |= jnp.pad(differ, [ends if each == axis else (0, 0) for each in range(4)])
    return _halved(beside)


def balance_weights(y: Float[Array, "b d h w k"], head: heads.Head) -> Float[Array, "b d h w"]:
    """Weights that give the tumour's voxels half of the total, the others the other half.

    A sample without tumour (or with nothing else) has equal weights.
    """
    return _halved(y[..., head.foreground].max(axis=-1) > 0)


def _halved(chosen: Bool[Array, "b d h w"]) -> Float[Array, "b d h w"]:
    share = chosen.mean(axis=(1, 2, 3), keepdims=True)
    mixed = (share > 0) & (share < 1)
    inside = jnp.where(mixed, 0.5 / jnp.where(mixed, share, 1), 1.0)
    outside = jnp.where(mixed, 0.5 / jnp.where(mixed, 1 - share, 1), 1.0)
    return jnp.where(chosen, inside, outside)


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
