"""Labels of a teacher for samples without a reference.

"hard": the teacher's decision stands in the place of the reference, in the very form of L_GT (Lee,
"Pseudo-label", ICML workshop 2013). "soft": its probabilities, at a temperature for both networks
(Hinton et al., 2015). "sharp": its probabilities sharpened, p^(1/T) / sum p^(1/T) (Berthelot et
al., MixMatch, NeurIPS 2019). Voxels may count by the teacher's confidence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import distillation, output
from kdnet_jax.models import adapted


class Labels(NamedTuple):
    """How a teacher labels samples without a reference.

    Attributes:
        form: see `DistillationOptions.unlabelled`.
        confidence: see `DistillationOptions.confidence`.
        threshold: see `DistillationOptions.confidence_threshold`.
    """

    form: str = "hard"
    confidence: str = "none"
    threshold: float = 0.8


def of_options(kd: distillation.DistillationOptions) -> Labels:
    """Returns what the options of a student say."""
    return Labels(kd.unlabelled, kd.confidence, kd.confidence_threshold)


def confidence(teacher: output.Output) -> Float[Array, "b d h w"]:
    """Returns the probability of the teacher's decision at each voxel, from 1/k or 1/2 to 1.

    Softmax: the largest probability. Regions: the least of max(p, 1 - p) over the regions.
    """
    p = jax.lax.stop_gradient(teacher.prediction.p)
    if teacher.head.kind == "regions":
        return jnp.stack([jnp.maximum(each, 1 - each) for each in p]).min(axis=0)
    return jnp.stack(p).max(axis=0)


def complete(
    labels: Labels,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    labelled: Float[Array, "b"],
) -> tuple[Float[Array, "b d h w k"], Float[Array, "b d h w"] | None]:
    """Returns y and where with the teacher's labels in samples without a reference.

    Args:
        labels: their form. The weight of a voxel is the teacher's `confidence`, or 1 where that is
            at least the threshold and 0 elsewhere (Sohn et al., FixMatch, NeurIPS 2020), or how far
            several teachers agree (`adapted.agreement`).
        teacher: what it answers to all samples.
        y: the reference; what it holds of samples without one is not used.
        where: voxels that count; `None`: all.
        labelled: 1 for samples with a reference, 0 for those without.
    """
    has_one = labelled[:, None, None, None] > 0
    if labels.form == "hard":
        y = jnp.where(has_one[..., None], y, jax.lax.stop_gradient(teacher.decided))
    if labels.confidence != "none":
        if labels.confidence == "agreement":
            weight = jax.lax.stop_gradient(teacher.features[adapted.AGREEMENT][..., 0])
        else:
            weight = confidence(teacher)
        if labels.confidence == "threshold":
            weight = (weight >= labels.threshold).astype(jnp.float32)
        where = jnp.where(has_one, 1 if where is None else where, weight)
    return y, where
