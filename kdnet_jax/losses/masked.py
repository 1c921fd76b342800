"""Term of a teacher that is followed only where it is right, and better than the student."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import channels, output, segmentation
from kdnet_jax.models import heads


def masked_cross_entropy_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    teacher_temperature: float,
    student_temperature: float,
    scale: float = 1.0,
) -> Float[Array, "b"]:
    """Term `mean m CE(s, p)`, m = max(CE(y, p_S) - CE(y, p_T), 0) [the teacher decides y].

    PMKL's masked distillation (Chen et al., IEEE TMI 2022). s and p are softened, p_S and p_T are
    not; no gradient flows through m. The mean is over all voxels with a label. A regions head has
    binary entropies, and the teacher is right where it is in every region.

    Args:
        student: its probabilities.
        teacher: likewise; no gradient flows into it.
        y: one-hot classes or regions.
        where: voxels that count.
        teacher_temperature: of s.
        student_temperature: of p.
        scale: factor of the term.
    """
    entropy = functools.partial(_entropy, kind=student.head.kind)
    targets = channels.split(y)
    gain = entropy(student.prediction, targets) - entropy(teacher.prediction, targets)
    # A mixture (mixup) counts as its greater part.
    largest = y >= 0.5 if student.head.kind == "regions" else y == y.max(axis=-1, keepdims=True)
    right = (teacher.decided == largest).all(axis=-1)
    mask = jax.lax.stop_gradient(jnp.maximum(gain, 0) * right)
    target = jax.lax.stop_gradient(teacher.softened(teacher_temperature).p)
    answer = student.softened(student_temperature)
    return scale * segmentation.weighted_mean(mask * entropy(answer, target), where)


def _entropy(
    prediction: channels.Prediction, target: channels.Volumes, kind: heads.Kind
) -> Float[Array, "b d h w"]:
    if kind == "regions":
        return segmentation.binary_cross_entropy(prediction, target)
    return segmentation.cross_entropy(prediction.log_p, target)
