"""Resampling of class maps and of class probabilities such that each class keeps its volume.

Averaging and linear interpolation pull a convex border inwards: from 1 mm to 2 mm a ball of 3 mm
loses a seventh of its volume, even if ties are shared fairly. Here

- the classes' shares are interpolated by Keys's cubic convolution, which is exact for parabolas and
  so leaves a curved border in its place (IEEE Trans. ASSP 29(6), 1981, a = -1/2);
- each class gets as many voxels as its volume comes to: those where it leads the best other class
  by most, the rarest class first; the commonest gets the rest. A thin rim is not lost to its
  neighbours where no coarse voxel lies half in it.

Both grids share their centre, and voxels are boxes of their spacing (the half-pixel convention).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, Num, Shaped, UInt8

from kdnet_jax.core import counting

SLAB_VOXELS = 2**23  # a resampling yields so many voxels at a time, 32 MiB of float32

# Shares are compared in whole steps, so that no tie hangs on a rounding error.
_ONE = 2**13
_NEVER = -(2**15)
# Halving puts each centre midway between two voxels, where a flat border is a tie. A centre that is
# moved by this share of a voxel has one nearest voxel; the axes differ for the diagonals' sake.
_ASIDE = (0.001, 0.0012, 0.0014)
# Powers of 1 / 1.2207, the root of x^4 = x + 1: multiples of them spread evenly over 0 to 1, also
# for the places of single voxels, which lie on a lattice.
_IRRATIONAL = (0.8191725134, 0.6710436067, 0.5497004779)

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
# (planes of the first axis, values there)
Slabs = Iterator[tuple[slice, Num[np.ndarray, "s h w"]]]


def resample_classes(
    labels: UInt8[np.ndarray, "d h w"], source: Triple, target: Triple, shape: Shape
) -> UInt8[np.ndarray, "D H W"]:
    """Resamples a class map of spacing `source` to a grid of spacing `target` and `shape`."""
    return _decide(
        lambda value: _shares(labels == value, source, target, shape),
        _counts(labels, source, target, shape),
        shape,
    )


def resample_probabilities(
    probs: Float[np.ndarray, "d h w k"], source: Triple, target: Triple, shape: Shape
) -> UInt8[np.ndarray, "D H W"]:
    """Resamples each class's probability, then decides.

    The volume that a class keeps is that of the voxels where it is the most probable one.
    """
    return _decide(
        lambda value: _shares(probs[..., value], source, target, shape),
        _counts(most_probable(probs), source, target, shape),
        shape,
    )


def most_probable(probs: Float[np.ndarray, "d h w k"]) -> UInt8[np.ndarray, "d h w"]:
    """Returns the class with the largest probability, the first of equals."""
    classes = np.empty(probs.shape[:3], np.uint8)
    for plane, values in zip(classes, probs, strict=True):  # argmax takes 8 bytes a voxel
        plane[:] = values.argmax(axis=-1)
    return classes


def _counts(
    labels: UInt8[np.ndarray, "d h w"], source: Triple, target: Triple, shape: Shape
) -> dict[int, int]:
    """Returns how many voxels of the target grid each class comes to, the rarest class first."""
    classes, voxels = counting.value_counts(labels)
    rarest_first = classes[np.argsort(voxels, kind="stable")].tolist()
    sides = zip(labels.shape, source, target, shape, strict=True)
    lengths = [_lengths(*side) for side in sides]
    return {value: _whole_voxels(labels == value, lengths) for value in rarest_first}


def _lengths(size: int, source: float, target: float, count: int) -> Float[np.ndarray, "n"]:
    """Returns how much of the target axis each source voxel covers, in target voxels.

    Beyond its end an axis continues as its last voxel, as in `_matrix`.
    """
    half = count * target / 2
    borders = np.clip((np.arange(size + 1) - size / 2) * source, -half, half)
    borders[[0, -1]] = -half, half
    return np.diff(borders) / target


def _whole_voxels(
    mask: Bool[np.ndarray, "d h w"], lengths: Sequence[Float[np.ndarray, "_"]]
) -> int:
    """Returns the volume in target voxels, rounded up as often as its fraction says.

    Plain rounding would make 4 of every 4.2. Where the centre of mass lies says which way: over
    random places as good as chance, and always the same for the same mask.
    """
    deep, high, wide = lengths
    volume = sum(depth * (high @ (plane @ wide)) for depth, plane in zip(deep, mask, strict=True))
    place = 0.0
    for axis, length in enumerate(lengths):
        profile = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
        place += _IRRATIONAL[axis] * (profile @ np.cumsum(length)) / profile.sum()
    return math.floor(round(float(volume), 6) + place % 1)


# ---------------------------------------------------------------------------------- the decision


def _decide(
    channel: Callable[[int], Slabs], counts: dict[int, int], shape: Shape
) -> UInt8[np.ndarray, "d h w"]:
    """Gives each class its volume. Three int16 volumes are held, however many classes there are."""
    first, second = _two_largest(channel, counts, shape)
    *rarer, commonest = counts
    result = np.full(shape, commonest, np.uint8)
    free = np.ones(shape, bool)
    lead = np.empty(shape, np.int16)
    for value in rarer:
        for planes, share in channel(value):
            best = first[planes]
            lead[planes] = share - np.where(share == best, second[planes], best)
        lead[~free] = _NEVER
        taken = _largest(lead, min(counts[value], int(np.count_nonzero(free))))
        result[taken] = value
        free[taken] = False
    return result


def _two_largest(
    channel: Callable[[int], Slabs], classes: Iterable[int], shape: Shape
) -> tuple[Int16[np.ndarray, "d h w"], Int16[np.ndarray, "d h w"]]:
    first = np.full(shape, -_ONE, np.int16)
    second = first.copy()
    for value in classes:
        for planes, share in channel(value):
            np.maximum(second[planes], np.minimum(first[planes], share), out=second[planes])
            np.maximum(first[planes], share, out=first[planes])
    return first, second


def _largest(lead: Int16[np.ndarray, "d h w"], count: int) -> Bool[np.ndarray, "d h w"]:
    """Returns where the `count` largest values lie; of equals at the end, some evenly spread."""
    voxels = np.zeros(2**16, np.int64)
    for plane in lead:
        voxels += np.bincount(plane.ravel().astype(np.int64) - _NEVER, minlength=2**16)
    down_to = np.cumsum(voxels[::-1])
    last = 2**15 - 1 - int(np.searchsorted(down_to, count))
    taken = lead > last
    equal, missing = np.flatnonzero(lead == last), count - np.count_nonzero(taken)
    taken.flat[equal[np.arange(missing) * len(equal) // max(missing, 1)]] = True
    return taken


# ----------------------------------------------------------------------------- the interpolation


def _shares(
    volume: Shaped[np.ndarray, "d h w"], source: Triple, target: Triple, shape: Shape
) -> Slabs:
    """Yields (planes, the interpolated volume there in steps of 1 / `_ONE`, int16)."""
    sides = zip(volume.shape, source, target, shape, _ASIDE, strict=True)
    deep, high, wide = (_matrix(*side) for side in sides)
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        planes = slice(start, min(start + thickness, shape[0]))
        used = np.flatnonzero(deep[planes].any(axis=0))
        rows = slice(used[0], used[-1] + 1)
        # "d h w" -> "s h w" -> "s H w" -> "s H W"
        slab = np.tensordot(deep[planes, rows], volume[rows].astype(np.float32), axes=1)
        slab = high @ slab @ wide.T
        np.clip(slab, -0.5, 1.5, out=slab)
        slab *= _ONE
        yield planes, np.rint(slab, out=slab).astype(np.int16)


def _matrix(
    size: int, source: float, target: float, count: int, aside: float
) -> Float32[np.ndarray, "{count} {size}"]:
    """Returns the weights of each voxel of an axis in `count` results about its centre.

    Most are 0, and still a product of matrices takes a tenth of the time of picking the others.
    """
    at = (size - 1) / 2 + target / source * (np.arange(count) - (count - 1) / 2) + aside
    low = np.floor(at)
    voxels = low + np.arange(-1, 3)[:, None]
    distance = np.abs(at - voxels)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    matrix = np.zeros((count, size), np.float32)
    columns = np.clip(voxels.astype(np.int64), 0, size - 1)
    np.add.at(matrix, (np.arange(count), columns), np.where(distance <= 1, near, far))
    return matrix
