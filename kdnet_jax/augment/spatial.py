"""Spatial augmentation: rotation, zoom and bending in one resampling; flips.

Coordinates are voxels; rotations are drawn in space (`in_voxels`). Images are "m d h w".
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

# Voxels between the control points of a bending.
CONTROL_SPACING: Final = 32
# A cubic B-spline deformation cannot fold while no control point moves further than this share of
# their distance (Choi and Lee, "Injectivity conditions of 2D and 3D uniform cubic B-spline
# functions", Graphical Models 2000: 1 / 2.479472).
LARGEST_BEND: Final = 0.4 * CONTROL_SPACING
# Crops grow in steps of this many voxels: the difference stays even, so that the middle of a crop
# lies on the patch's voxels, and a depth stays divisible over a mesh.
_GROWTH: Final = 8


class Chance(NamedTuple):
    """How often something is drawn, and between what values evenly."""

    probability: float
    low: float
    high: float


class Geometry(NamedTuple):
    """The drawn geometry of samples (the leading axis "b" is there before the samples are apart).

    Attributes:
        drawn: whether there is any; else the sample is its crop's middle as it is.
        matrix: from a voxel's place in the patch to its place in the crop, both from the middle:
            in space, or in voxels once `in_voxels` was applied.
        bend: moves of the control points in voxels, or None where bending is switched off.
    """

    drawn: Bool[Array, "*b"]
    matrix: Float[Array, "*b 3 3"]
    bend: Float[Array, "*b i j k 3"] | None


def source_patch(
    patch: Sequence[int],
    rotation: Chance,
    zoom_out: Chance,
    elastic: Chance,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[int, ...]:
    """Returns the size "d h w" of the crop that a resampled patch is taken from.

    It holds a patch that is rotated fully about any one axis, and one that is fully zoomed, each
    bent fully. Where several are drawn at once, corners can still lie outside, where all is 0
    (docs/augmentation.md has the shares).
    """
    sizes = [np.asarray(patch, float)]
    if rotation.probability:
        angle = min(math.radians(max(abs(rotation.low), abs(rotation.high))), math.pi / 2)
        for axis in range(3):
            # The largest extent of a rotated edge lies at the full angle, or at its own diagonal.
            others = [other for other in range(3) if other != axis]
            extent = np.multiply(patch, spacing)
            size = extent.copy()
            for edge, far in (others, others[::-1]):
                best = min(angle, math.atan2(extent[far], extent[edge]))
                size[edge] = extent[edge] * math.cos(best) + extent[far] * math.sin(best)
            sizes.append(size / spacing)
    if zoom_out.probability:
        sizes.append(np.multiply(patch, max(zoom_out.high, 1.0)))
    needed = np.max(sizes, axis=0) + (2 * elastic.high if elastic.probability else 0)
    growth = np.ceil(np.round(needed - patch, 6) / _GROWTH).astype(int) * _GROWTH
    return tuple(int(edge) for edge in np.add(patch, growth))


def draw_bend(
    key: jax.Array, patch: Sequence[int], reach: Float[Array, " b"]
) -> Float[Array, "b i j k 3"]:
    """Draws moves of control points, each evenly up to `reach` voxels along each axis."""
    shape = (len(reach), *(_control_points(edge) for edge in patch), 3)
    return reach.reshape(-1, 1, 1, 1, 1) * jax.random.uniform(key, shape, minval=-1, maxval=1)


def rotation_matrix(angles: Float[Array, "b 3"]) -> Float[Array, "b 3 3"]:
    """Returns the rotation about d, then h, then w, by angles in radians."""
    (cd, ch, cw), (sd, sh, sw) = jnp.cos(angles).T, jnp.sin(angles).T
    # The product of the three, written out: a matrix product may be rounded to fewer digits.
    rows = (
        (cw * ch, cw * sh * sd - sw * cd, cw * sh * cd + sw * sd),
        (sw * ch, sw * sh * sd + cw * cd, sw * sh * cd - cw * sd),
        (-sh, ch * sd, ch * cd),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def in_voxels(geometry: Geometry, spacing: Sequence[float]) -> Geometry:
    """Returns a geometry that was drawn in space for voxels with edges of `spacing`, "d h w"."""
    if len(set(spacing)) == 1:
        return geometry
    edges = np.asarray(spacing)
    return geometry._replace(matrix=geometry.matrix * (edges / edges[:, None]))


def not_background(
    image: Float[Array, "m d h w"], zero_is_background: Sequence[bool] | None
) -> Bool[Array, "m d h w"]:
    """Returns the voxels of each channel that count; `None`: 0 is background in all of them."""
    counts = image != 0
    if zero_is_background is None or all(zero_is_background):
        return counts
    return counts | ~spread(np.asarray(zero_is_background))


def spread(each: Shaped[Array | np.ndarray, " m"]) -> Shaped[Array | np.ndarray, "m 1 1 1"]:
    """Returns a value for each channel in a shape that an image's voxels can be combined with."""
    return each[:, None, None, None]


def place(
    image: Float[Array, "D H W m"],
    label: Integer[Array, "D H W"],
    geometry: Geometry | None,
    patch: tuple[int, int, int],
    zero_is_background: Sequence[bool] | None = None,
) -> tuple[Float[Array, "m d h w"], Integer[Array, "d h w"]]:
    """Returns the patch at the middle of a crop, resampled only if a geometry was drawn.

    The crop has its channels last; all of it is turned only where it is resampled.
    """

    def channels_first() -> Float[Array, "m D H W"]:
        return jnp.moveaxis(image, -1, 0)

    def as_it_is() -> tuple[Array, Array]:
        return middle(channels_first(), patch).astype(jnp.float32), middle(label, patch)

    if geometry is None:
        return as_it_is()
    _, matrix, bend = geometry
    return jax.lax.cond(
        geometry.drawn,
        lambda: resample(channels_first(), label, matrix, bend, patch, zero_is_background),
        as_it_is,
    )


def middle(volume: Array, patch: Sequence[int]) -> Array:
    """Returns the middle `patch` voxels of a larger volume ("... d h w")."""
    starts = [(size - edge) // 2 for size, edge in zip(volume.shape[-3:], patch, strict=True)]
    return volume[..., *(slice(s, s + edge) for s, edge in zip(starts, patch, strict=True))]


def resample(
    image: Float[Array, "m D H W"],
    label: Integer[Array, "D H W"],
    matrix: Float[Array, "3 3"],
    bend: Float[Array, "i j k 3"] | None,
    patch: tuple[int, int, int],
    zero_is_background: Sequence[bool] | None = None,
) -> tuple[Float[Array, "m d h w"], Integer[Array, "d h w"]]:
    """Returns the patch at the middle of the crop: trilinear for the image, nearest for the label.

    A voxel bent by b and at p from the patch's middle is taken from `matrix @ (p + b)`, from the
    crop's. Outside of the crop all is 0. A voxel of a channel whose background is 0 (all channels
    where `zero_is_background` is None) is background where background has at least half of the
    weight in its mean: otherwise the brain's rim would be a ramp of values that are neither.
    """
    # Places in the crop: three arrays "d h w", one for each axis.
    where = _coordinates(label.shape, matrix, bend, patch)
    # "m D H W" -> "m (D H W)": one index takes all channels of a voxel.
    flat = image.reshape(image.shape[0], -1)
    value, brain = 0.0, 0.0
    lows = [jnp.floor(c) for c in where]
    # One gather per corner takes all sequences; XLA fuses the eight and their sums into one loop.
    for corner in np.ndindex(2, 2, 2):
        at = [low + step for low, step in zip(lows, corner, strict=True)]
        weight = jnp.ones(())
        for c, a, size in zip(where, at, label.shape, strict=True):
            weight = weight * jnp.where((a >= 0) & (a < size), 1 - jnp.abs(c - a), 0)
        # weight "d h w", voxel "m d h w"
        voxel = flat[:, _flat_index(at, label.shape)]
        value += weight * voxel.astype(jnp.float32)
        brain += weight * (voxel != 0)
    kept = brain > 0.5
    if zero_is_background is not None and not all(zero_is_background):
        kept |= ~spread(np.asarray(zero_is_background))
    return jnp.where(kept, value, 0), _nearest(label, where)


def _coordinates(
    size: Sequence[int], matrix: Array, bend: Array | None, patch: Sequence[int]
) -> list[Float[Array, "d h w"]]:
    # From the patch's middle: "d 1 1", "1 h 1" and "1 1 w"; bent, each is "d h w".
    offsets = list(
        jnp.meshgrid(*(jnp.arange(e) - (e - 1) / 2 for e in patch), indexing="ij", sparse=True)
    )
    if bend is not None:
        moves = displacement(bend, patch)
        offsets = [offset + moves[..., axis] for axis, offset in enumerate(offsets)]
    # Sums of products, not a matrix product: that may be rounded to fewer digits.
    rows = [[matrix[axis, other] * offsets[other] for other in range(3)] for axis in range(3)]
    return [a + b + c + (edge - 1) / 2 for (a, b, c), edge in zip(rows, size, strict=True)]


def _flat_index(at: Sequence[Array], size: Sequence[int]) -> Integer[Array, "d h w"]:
    d, h, w = (jnp.clip(a, 0, edge - 1).astype(jnp.int32) for a, edge in zip(at, size, strict=True))
    return (d * size[1] + h) * size[2] + w


def _nearest(label: Array, where: Sequence[Array]) -> Array:
    at = [jnp.floor(c + 0.5) for c in where]
    inside = True
    for a, edge in zip(at, label.shape, strict=True):
        inside &= (a >= 0) & (a < edge)
    return jnp.where(inside, label.reshape(-1)[_flat_index(at, label.shape)], 0)


def _control_points(edge: int) -> int:
    return (edge - 1) // CONTROL_SPACING + 4


def displacement(bend: Float[Array, "i j k 3"], patch: Sequence[int]) -> Float[Array, "d h w 3"]:
    """Returns the move of each voxel: a cubic B-spline through the moves of the control points.

    It is nowhere larger than the largest of those (Rueckert et al., "Nonrigid registration using
    free-form deformations", IEEE TMI 1999, equation 2).
    """
    # "i j k 3" -> "d j k 3" -> "d h k 3" -> "d h w 3"
    for axis, edge in enumerate(patch):
        basis = jnp.asarray(_spline_basis(edge), jnp.float32)
        moved = jnp.tensordot(basis, bend, (1, axis), precision=jax.lax.Precision.HIGHEST)
        bend = jnp.moveaxis(moved, 0, axis)
    return bend


def _spline_basis(edge: int) -> Float[np.ndarray, "x i"]:
    cell, u = np.divmod(np.arange(edge) / CONTROL_SPACING, 1)
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    basis = np.zeros((edge, _control_points(edge)))
    for step, weight in enumerate(weights):
        basis[np.arange(edge), cell.astype(int) + step] = weight / 6
    return basis


def flip(volume: Array, flips: Bool[Array, "3"], axes: str) -> Array:
    """Returns a volume ("... d h w") mirrored along those of `axes` that were drawn."""
    for axis, letter in enumerate("dhw"):
        if letter in axes:
            volume = jnp.where(flips[axis], jnp.flip(volume, axis - 3), volume)
    return volume
