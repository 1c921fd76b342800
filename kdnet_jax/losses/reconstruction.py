"""Term of a network that learns to reconstruct what is hidden of its input; reads no reference.

He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; of convolutional networks
on brain MRI Wald et al., CVPR 2025. `augment/masking.py` hides.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import features, output


def masked_squared_error(
    student: output.Output,
    teacher: output.Output | None,
    y: Float[Array, "b d h w m"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term `mean (x - f W)^2` over the hidden voxels of all sequences, but for the background.

    Args:
        student: its features f under the head and projector W "c m".
        teacher: not read.
        y: x, the sequences that the network sees, with nothing hidden.
        where: 1 where they are hidden.
    """
    del teacher
    assert student.projector is not None
    assert where is not None
    errors, counts = squared_errors(student.features[features.LAST], student.projector, y, where)
    # At least 1: a patch may have no such voxel.
    return errors.sum(axis=(1, 2, 3, 4)) / jnp.maximum(counts.sum(axis=(1, 2, 3, 4)), 1)


def squared_errors(
    last: Float[Array, "b d h w c"],
    projector: Float[Array, "c m"],
    image: Float[Array, "b d h w m"],
    hidden: Float[Array, "b d h w"],
) -> tuple[Float[Array, "b d h w m"], Float[Array, "b d h w m"]]:
    """Returns (x - f W)^2 where voxels count, and 1 there: hidden, and not 0 in a sequence.

    Of a sequence that is not there, or dropped, all voxels are 0.
    """
    answer = jnp.einsum("bdhwc,cm->bdhwm", last.astype(jnp.float32), projector)
    counts = hidden[..., None] * (image != 0)
    return counts * (answer - image) ** 2, counts
