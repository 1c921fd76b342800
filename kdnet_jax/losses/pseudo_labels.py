"""Labels of a teacher for samples without a reference, and the terms against its probabilities.

"hard": the teacher's decision stands in the place of the reference, in the very form of L_GT (Lee,
"Pseudo-label", ICML workshop 2013). "soft": its probabilities, at a temperature for both networks
(Hinton et al., 2015).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import distillation, output


class Labels(NamedTuple):
    """How a teacher labels samples without a reference.

    Attributes:
        form: see `DistillationOptions.unlabelled`.
    """

    form: str = "hard"


def of_options(kd: distillation.DistillationOptions) -> Labels:
    """Returns what the options of a student say."""
    return Labels(kd.unlabelled)


def decisions(teacher: output.Output) -> Float[Array, "b d h w k"]:
    """Returns the most probable class as one channel of ones, or the regions above 1/2."""
    logits = jax.lax.stop_gradient(teacher.logits)
    if teacher.head.kind == "regions":
        return (logits > 0).astype(jnp.float32)
    return teacher.head.targets(logits.argmax(axis=-1))


def complete(
    labels: Labels,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    labelled: Float[Array, "b"],
) -> tuple[Float[Array, "b d h w k"], Float[Array, "b d h w"] | None]:
    """Returns y and where with the teacher's labels in samples without a reference.

    Args:
        labels: their form.
        teacher: what it answers to all samples.
        y: the reference; of samples without one it may hold anything.
        where: voxels that count, or their weights.
        labelled: 1 for samples with a reference, 0 for those without.
    """
    if labels.form == "hard":
        y = jnp.where(labelled[:, None, None, None, None] > 0, y, decisions(teacher))
    return y, where
