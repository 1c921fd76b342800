"""Geometry of a case: from the scan's voxel grid to the network's working grid, and back.

The way there: reorder the axes to SPL, crop to a box, resample to the working spacing. The way back
undoes each step. Without resampling nothing is interpolated, so a mask comes back bit for bit.

Both grids of a resampling share the centre of the box, and voxels are boxes of their spacing (the
half-pixel convention): no resampling shifts the anatomy.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped, UInt8
from nibabel import affines, orientations
from scipy import ndimage

from kdnet_jax.core import typed
from kdnet_jax.data.scans import class_maps, spaces
from kdnet_jax.errors import UserError

CANONICAL = ("S", "P", "L")
HEADER = "header"  # the value of `orientation` that means: as the affine says
SAME_SPACING_MM = 1e-3  # two spacings that differ by no more are one: nothing is resampled

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """All that is needed to bring a result back to the scan's own grid.

    Attributes:
        shape: the scan's own shape, in voxels, as stored.
        affine: the scan's own 4x4 affine (voxel index to mm, RAS+), as stored.
        box: (start, stop) of the crop per axis, in voxels of the scan reordered to SPL.
        spacing: the spacing of the working grid, mm per SPL axis.
        working_shape: the shape of the working grid, in voxels, SPL.
        orientation: "header" (the affine says how the voxels lie) or three letters such as "LPS"
            that override it: the direction to which each stored axis grows.
        stored: what the scan's header says of it all, for masks to repeat (`spaces.Space.stored`).
    """

    shape: Shape
    affine: Float[np.ndarray, "4 4"]
    box: Box
    spacing: Triple
    working_shape: Shape
    orientation: str = HEADER
    stored: typed.JsonView | None = None

    @property
    def box_shape(self) -> Shape:
        """The shape of the crop before resampling, in SPL voxels."""
        return typed.triple(stop - start for start, stop in self.box)

    @property
    def native_spacing(self) -> Triple:
        """The scan's own spacing, mm per SPL axis."""
        return spacing_spl(self.affine, self.orientation)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel of the working grid, ml."""
        return math.prod(self.spacing) / 1000

    def to_json(self) -> str:
        """Returns the geometry as JSON text; numbers survive exactly."""
        fields = dataclasses.asdict(self) | {"affine": self.affine.tolist()}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Geometry":
        """Returns the geometry that `to_json` wrote."""
        fields = json.loads(text)
        return cls(
            shape=tuple(fields["shape"]),
            affine=np.array(fields["affine"], np.float64),
            box=typed.triple((start, stop) for start, stop in fields["box"]),
            spacing=tuple(fields["spacing"]),
            working_shape=tuple(fields["working_shape"]),
            orientation=fields["orientation"],
            stored=fields["stored"],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())


def make_geometry(
    shape: Sequence[int],
    space: spaces.Space | Num[np.ndarray, "4 4"],
    *,
    box: Box | None = None,
    spacing: float | Sequence[float] | None = None,
    orientation: str = HEADER,
) -> Geometry:
    """Plans the working grid of a scan.

    Args:
        shape: the scan's own shape.
        space: where its voxels lie, or the affine that says so.
        box: the crop in SPL voxels; all of the scan if None.
        spacing: the wanted spacing in mm, one number or one per SPL axis; None keeps the scan's.
        orientation: see `Geometry`.

    Raises:
        UserError: `spacing` is not one or three positive numbers, or `orientation` is not known.
    """
    space = space if isinstance(space, spaces.Space) else spaces.of_affine(space)
    affine = space.affine
    native = spacing_spl(affine, orientation)
    if box is None:
        spl_shape = orient(np.broadcast_to(False, shape), affine, orientation).shape
        box = typed.triple((0, size) for size in spl_shape)
    wanted = native if spacing is None else _wanted_spacing(spacing, native)
    sizes = [stop - start for start, stop in box]
    # The grid covers the box; the small tolerance keeps 100 * 1.0 / 2.0 from becoming 51 voxels.
    cover = [np.ceil(n * s / t - 1e-3) for n, s, t in zip(sizes, native, wanted, strict=True)]
    return Geometry(
        shape=typed.triple(int(size) for size in shape),
        affine=np.array(affine, np.float64),
        box=typed.triple((int(start), int(stop)) for start, stop in box),
        spacing=wanted,
        working_shape=typed.triple(max(1, int(size)) for size in cover),
        orientation=orientation,
        stored=space.stored,
    )


def _wanted_spacing(spacing: float | Sequence[float], native: Triple) -> Triple:
    values = np.atleast_1d(np.asarray(spacing, np.float64))
    if values.shape not in ((1,), (3,)) or not np.all(np.isfinite(values) & (values > 0)):
        raise UserError(
            f"spacing is {spacing!r}; expected None (keep the scan's own), one positive number or "
            "three (superior, posterior, left), in mm, such as 1.0 or (2.0, 1.0, 1.0)"
        )
    wanted = np.broadcast_to(values, 3)
    keep = np.abs(wanted - native) <= SAME_SPACING_MM
    return typed.triple(np.where(keep, native, wanted).tolist())


# ------------------------------------------------------------------------------- orientation


def check_orientation(orientation: str) -> None:
    """Refuses what is neither "header" nor one letter each of R/L, A/P and S/I (`UserError`)."""
    known = {"".join(p) for p in itertools.permutations("RAS")}
    letters = str(orientation).translate(str.maketrans("LPI", "RAS"))
    if orientation != HEADER and letters not in known:
        raise UserError(
            f'orientation is {orientation!r}; expected "header" or three letters, one each of R/L, '
            'A/P and S/I, that say to where the stored axes grow, such as "LPS"'
        )


def _axes_to_spl(
    affine: Num[np.ndarray, "4 4"], orientation: str = HEADER
) -> Num[np.ndarray, "3 2"]:
    """Returns nibabel's orientation transform from the stored axes to SPL."""
    check_orientation(orientation)
    stored = (
        orientations.io_orientation(affine)
        if orientation == HEADER
        else orientations.axcodes2ornt(orientation)
    )
    return orientations.ornt_transform(stored, orientations.axcodes2ornt(CANONICAL))


def orient(
    volume: Shaped[np.ndarray, "x y z *c"],
    affine: Num[np.ndarray, "4 4"],
    orientation: str = HEADER,
) -> Shaped[np.ndarray, "d h w *c"]:
    """Returns a view of `volume` with its axes in SPL order and direction; no voxel is changed."""
    return orientations.apply_orientation(volume, _axes_to_spl(affine, orientation))


def unorient(
    array: Shaped[np.ndarray, "d h w *c"],
    shape: Sequence[int],
    affine: Num[np.ndarray, "4 4"],
    orientation: str = HEADER,
) -> Shaped[np.ndarray, "x y z *c"]:
    """Undoes `orient`: returns a view of an SPL array in the stored axes, of the scan's `shape`."""
    transform = _axes_to_spl(affine, orientation)
    # Row i of a transform says to which axis input axis i goes, and whether it is flipped.
    back = np.empty_like(transform)
    for stored, (canonical, flip) in enumerate(transform):
        back[int(canonical)] = stored, flip
    result = orientations.apply_orientation(array, back)
    if result.shape[:3] != tuple(shape):
        raise ValueError(f"an SPL array of shape {array.shape} is no scan of shape {tuple(shape)}")
    return result


def spacing_spl(affine: Num[np.ndarray, "4 4"], orientation: str = HEADER) -> Triple:
    """Returns the voxel spacing in mm per SPL axis."""
    sizes = affines.voxel_sizes(affine)
    places = _axes_to_spl(affine, orientation)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[places] = sizes
    return typed.triple(spacing.tolist())


# -------------------------------------------------------------------------------- resampling


def _resample(
    volume: Shaped[np.ndarray, "d h w"], source: Triple, target: Triple, shape: Shape
) -> Float[np.ndarray, "D H W"]:
    """Resamples linearly about the common centre, smoothing first on axes that get coarser.

    The Gaussian's width, (factor - 1) / 2 voxels, is that of scikit-image and MONAI.
    """
    result = np.empty(shape, np.float32)
    for planes, values in _resample_slabs(volume, source, target, shape):
        result[planes] = values
    return result


def _resample_slabs(
    volume: Shaped[np.ndarray, "d h w"], source: Triple, target: Triple, shape: Shape
) -> Iterator[tuple[slice, Float[np.ndarray, "s H W"]]]:
    """Yields (planes, values there) of what `_resample` returns: bounded memory on a large grid."""
    # Along each axis, source voxels per target voxel.
    factor = np.divide(target, source)
    smooth = np.asarray(volume, np.float32)
    if np.any(factor > 1):
        sigma = np.maximum(0.0, (factor - 1) / 2)
        smooth = ndimage.gaussian_filter(smooth, sigma, mode="nearest")
    offset = (np.array(volume.shape) - 1) / 2 - factor * (np.array(shape) - 1) / 2
    thickness = max(1, class_maps.SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        stop = min(start + thickness, shape[0])
        first: Any = offset + factor * (start, 0, 0)
        yield (
            slice(start, stop),
            ndimage.affine_transform(
                smooth,
                factor,
                first,
                output_shape=(stop - start, *shape[1:]),
                order=1,
                mode="nearest",
            ),
        )


def to_working(
    volume: Num[np.ndarray, "x y z"], geometry: Geometry, order: int
) -> Num[np.ndarray, "d h w"]:
    """Brings a volume from the scan's own grid to the working grid.

    Args:
        volume: an array of `geometry.shape`.
        geometry: the way.
        order: 1 for an image (linear, smoothed where the grid gets coarser), 0 for a class map
            (`class_maps.resample_classes`).

    Returns:
        An array of `geometry.working_shape`. Without resampling, the voxels as they are; with it,
        float32 for an image and uint8 for a class map.
    """
    if volume.shape != geometry.shape:
        raise ValueError(f"volume of shape {volume.shape}, geometry of {geometry.shape}")
    # Stored axes "x y z" -> SPL -> the box "D H W" -> the working grid "d h w".
    inside = tuple(slice(start, stop) for start, stop in geometry.box)
    cropped = orient(volume, geometry.affine, geometry.orientation)[inside]
    if geometry.native_spacing == geometry.spacing:
        return np.ascontiguousarray(cropped)
    resample = _resample if order else class_maps.resample_classes
    return resample(cropped, geometry.native_spacing, geometry.spacing, geometry.working_shape)


def back_to_scan(
    array: Num[np.ndarray, "d h w *k"], geometry: Geometry
) -> UInt8[np.ndarray, "x y z"]:
    """Brings the network's answer from the working grid to the scan's own grid, as class map.

    Each class keeps the volume that it has on the working grid (`class_maps`). Probabilities are
    resampled before the decision, which gives smoother borders than resampling a finished mask.

    Args:
        array: probabilities "d h w k", or a class map "d h w", on the working grid.
        geometry: the way that `to_working` took.

    Returns:
        Classes on the scan's own voxel grid; 0 outside of the box.
    """
    # The working grid "d h w" (k) -> the box's own voxels "D H W" -> stored axes "x y z".
    _check_working(array, geometry)
    soft = array.ndim == 4
    if geometry.native_spacing == geometry.spacing:
        mask = class_maps.most_probable(array) if soft else array.astype(np.uint8)
    else:
        resample = class_maps.resample_probabilities if soft else class_maps.resample_classes
        mask = resample(array, geometry.spacing, geometry.native_spacing, geometry.box_shape)
    return place(mask, geometry)


def threshold_to_scan(
    probability: Float[np.ndarray, "d h w"], geometry: Geometry, threshold: float = 0.5
) -> Bool[np.ndarray, "x y z"]:
    """Returns where a region lies on the scan's own grid.

    It keeps the volume of the voxels of the working grid with a probability above the threshold.
    """
    # p is above 2t - p where it is above t.
    two = np.stack([2 * threshold - probability, probability], axis=-1)
    return back_to_scan(two, geometry).astype(bool)


def map_to_scan(
    values: Float[np.ndarray, "d h w"],
    geometry: Geometry,
    *,
    outside: float = 0.0,
) -> Float[np.ndarray, "x y z"]:
    """Brings one map, such as a probability, to the scan's own grid by linear interpolation.

    Args:
        values: on the working grid.
        geometry: the way that `to_working` took.
        outside: the value outside of the box.
    """
    box = np.empty(geometry.box_shape, np.float32)
    for planes, slab in _slabs_back(values, geometry):
        box[planes] = slab
    return place(box, geometry, outside)


def _check_working(array: Num[np.ndarray, "d h w *k"], geometry: Geometry) -> None:
    if array.shape[:3] != geometry.working_shape:
        raise ValueError(f"array of shape {array.shape}, working grid {geometry.working_shape}")


def _slabs_back(
    values: Num[np.ndarray, "d h w"], geometry: Geometry
) -> Iterable[tuple[slice, Num[np.ndarray, "s h w"]]]:
    """Returns a map of the working grid on the box of the scan's voxels, slab by slab."""
    _check_working(values, geometry)
    if geometry.native_spacing == geometry.spacing:
        return [(slice(None), values)]
    return _resample_slabs(values, geometry.spacing, geometry.native_spacing, geometry.box_shape)


def place(
    box: Shaped[np.ndarray, "d h w"], geometry: Geometry, outside: float = 0.0
) -> Shaped[np.ndarray, "x y z"]:
    """Places a map of the cropped, unresampled SPL box on the scan's own grid."""
    whole = np.full(geometry.shape, outside, box.dtype)
    spl = orient(whole, geometry.affine, geometry.orientation)  # a view: filling it fills `whole`
    spl[tuple(slice(start, stop) for start, stop in geometry.box)] = box
    return whole
