"""Terms on features: of the bottlenecks (hints, Gram matrices, contrast) and the decoders' last.

Widths of student and teacher may differ. The bottlenecks meet by a projector, a 1x1x1 convolution
that is trained with the student (`output.Output.projector`) and that no prediction needs; the terms
on decoders compare cosines, which have no width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdnet_jax.losses import output

# The deepest features, and those under the head, of every network (`models/`).
BOTTLENECK, LAST = "bottleneck", "decoder_0"
# Voxels along an axis that are contrasted at most: their products are as many as their square.
_MOST_CONTRASTED = 8
# Squares of norms below it are none.
_SMALLEST = 1e-12


def hint_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term `mean |W f_S - f_T|^2`: FitNets' hint (Romero et al., ICLR 2015) at the bottleneck.

    Args:
        student: its bottleneck f_S "b D H W c" and projector W "c e".
        teacher: its bottleneck f_T "b . . . e", interpolated to f_S's grid; no gradient flows into
            it.
        y: not read.
        where: not read.
    """
    del y, where
    ours, theirs = _bottlenecks(student, teacher)
    return ((ours - theirs) ** 2).mean(axis=(1, 2, 3, 4))


def gram_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term `|G(W f_S) - G(f_T)|^2` with G(f) = mean over voxels of f f^T, "b e e".

    SMU-Net's style term (Azad et al., MIDL 2022), after Gatys et al., 2016; a sum over e x e.

    Args:
        student: see `hint_loss`.
        teacher: likewise.
        y: not read.
        where: not read.
    """
    del y, where
    grams = [
        jnp.einsum("bdhwe,bdhwf->bef", each, each) / each[0, ..., 0].size
        for each in _bottlenecks(student, teacher)
    ]
    return ((grams[0] - grams[1]) ** 2).sum(axis=(1, 2))


def contrastive_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
    *,
    temperature: float,
) -> Float[Array, "b"]:
    """Term `-mean_i ln(exp(u_i v_i / t) / sum_j exp(u_i v_j / t))` over voxels i, j.

    u and v are the bottlenecks W f_S and f_T at norm 1: what the student has at a place is to be
    closer to what the teacher has there than to what it has elsewhere. InfoNCE (van den Oord et
    al., 2018, arXiv 1807.03748, equation 4), for CRD's term (Tian et al., ICLR 2020) and PMKL's
    (Chen et al., IEEE TMI 2022), whose negatives are other scans.

    Args:
        student: see `hint_loss`.
        teacher: likewise.
        y: not read.
        where: not read.
        temperature: t.
    """
    del y, where
    ours, theirs = map(_contrasted, _bottlenecks(student, teacher))
    alike = jnp.einsum("bie,bje->bij", ours, theirs) / temperature
    own = jnp.diagonal(alike, axis1=1, axis2=2)
    return (jax.nn.logsumexp(alike, axis=2) - own).mean(axis=1)


def _contrasted(x: Float[Array, "b d h w e"]) -> Float[Array, "b n e"]:
    """Returns the features of evenly spaced voxels, at norm 1."""
    d, h, w = (-(-side // _MOST_CONTRASTED) for side in x.shape[1:4])
    chosen = x[:, ::d, ::h, ::w]
    return _unit(chosen.reshape(len(x), -1, x.shape[-1]))


def _bottlenecks(
    student: output.Output, teacher: output.Output
) -> tuple[Float[Array, "b d h w e"], Float[Array, "b d h w e"]]:
    """Returns the student's, projected, and the teacher's on the student's grid."""
    ours = student.features[BOTTLENECK].astype(jnp.float32)
    if student.projector is not None:
        ours = ours @ student.projector
    theirs = jax.lax.stop_gradient(teacher.features[BOTTLENECK].astype(jnp.float32))
    if theirs.shape[1:4] != ours.shape[1:4]:
        theirs = jax.image.resize(theirs, (*ours.shape[:4], theirs.shape[-1]), "linear")
    return ours, theirs


class Prototypes(NamedTuple):
    """The classes (or regions) of each sample in the space of the last features.

    Attributes:
        means: of the features over each class's voxels, brought to norm 1.
        there: 1 for classes that have voxels.
        similarity: cosine of each voxel's features with each class's mean.
    """

    means: Float[Array, "b k c"]
    there: Float[Array, "b k"]
    similarity: Float[Array, "b k d h w"]


def prototypes(last: Float[Array, "b d h w c"], y: Float[Array, "b d h w k"]) -> Prototypes:
    """Returns the prototypes of one network.

    Args:
        last: its features at full resolution.
        y: one-hot classes (background included) or regions; a voxel without a label has none.
    """
    last = last.astype(jnp.float32)
    means = _unit(jnp.einsum("bdhwc,bdhwk->bkc", last, y))
    norms = jnp.sqrt((last * last).sum(axis=-1) + _SMALLEST)
    similarity = jnp.einsum("bdhwc,bkc->bkdhw", last, means) / norms[:, None]
    return Prototypes(means, (y.sum(axis=(1, 2, 3)) > 0).astype(jnp.float32), similarity)


def _unit(x: Float[Array, "b k c"]) -> Float[Array, "b k c"]:
    return x / jnp.sqrt((x * x).sum(axis=-1, keepdims=True) + _SMALLEST)


def _pair(
    student: output.Output, teacher: output.Output, y: Float[Array, "b d h w k"]
) -> tuple[Prototypes, Prototypes]:
    ours, theirs = (prototypes(each.features[LAST], y) for each in (student, teacher))
    return ours, jax.lax.stop_gradient(theirs)


def prototype_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term `mean (M_S - M_T)^2` of the maps of similarity with the class prototypes.

    ProtoKD (Wang et al., ICASSP 2023). The mean is over the voxels that count and the classes that
    the sample has.

    Args:
        student: its last features "b d h w c" give M_S (`prototypes`).
        teacher: its last features, of any width, give M_T; no gradient flows into them.
        y: one-hot classes or regions.
        where: voxels that count.
    """
    ours, theirs = _pair(student, teacher, y)
    weights = ours.there[:, :, None, None, None]
    if where is not None:
        weights = weights * where[:, None]
    squares = weights * (ours.similarity - theirs.similarity) ** 2
    counted = jnp.broadcast_to(weights, squares.shape).sum(axis=(1, 2, 3, 4))
    return squares.sum(axis=(1, 2, 3, 4)) / jnp.maximum(counted, 1)


def affinity_loss(
    student: output.Output,
    teacher: output.Output,
    y: Float[Array, "b d h w k"],
    where: Float[Array, "b d h w"] | None,
) -> Float[Array, "b"]:
    """Term `mean_ij (A_S - A_T)^2` of the cosines A_ij between the prototypes of classes i and j.

    Region affinity distillation (Qin et al., IEEE TMI 2021, "Efficient medical image segmentation
    based on knowledge distillation"). The mean is over the pairs of classes that the sample has.

    Args:
        student: see `prototype_loss`.
        teacher: likewise.
        y: likewise.
        where: not read: y is 0 where it is.
    """
    del where
    ours, theirs = _pair(student, teacher, y)
    a, b = (jnp.einsum("bic,bjc->bij", each.means, each.means) for each in (ours, theirs))
    pairs = ours.there[:, :, None] * ours.there[:, None] * (1 - jnp.eye(y.shape[-1]))
    return (pairs * (a - b) ** 2).sum(axis=(1, 2)) / jnp.maximum(pairs.sum(axis=(1, 2)), 1)
