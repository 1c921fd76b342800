"""Pairs of masks on which tools are compared: perturbed real segmentations and edge cases."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError

Mask = Bool[np.ndarray, "d h w"]
Classes = UInt8[np.ndarray, "d h w"]


class Pair(NamedTuple):
    """A reference and a prediction on one grid, with its spacing in mm."""

    name: str
    reference: Mask
    prediction: Mask
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


def segmentations(data_dir: str | pathlib.Path) -> list[tuple[str, Classes]]:
    """Reads the segmentations of a folder of BraTS cases, as classes 0..3.

    Raises:
        UserError: the folder has none.
    """
    paths = sorted(pathlib.Path(data_dir).glob("*/*[_-]seg.nii*"))
    if not paths:
        raise UserError(f"{data_dir}: no */*_seg.nii.gz found; give a folder of BraTS cases")
    return [(path.parent.name, _classes(path)) for path in paths]


def _classes(path: pathlib.Path) -> Classes:
    values = np.asarray(nib.load(path).dataobj).astype(np.uint8)
    return np.where(values == 4, 3, values).astype(np.uint8)


def perturbed(reference: Mask, other: Mask) -> dict[str, Mask]:
    """Returns predictions that are wrong on purpose.

    Args:
        reference: the mask that they are compared with.
        other: another patient's mask, on the same grid.
    """
    labels, _ = ndimage.label(reference, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=2)[1:]
    specks = np.random.default_rng(0).random(reference.shape) < 1e-4
    return {
        "equal": reference.copy(),
        "shifted": np.roll(reference, (2, -1, 1), (0, 1, 2)),
        "dilated": ndimage.binary_dilation(reference, iterations=2),
        "eroded": ndimage.binary_erosion(reference),
        "largest part dropped": reference & (labels != 1 + np.argmax(sizes)),
        "specks": reference | specks,
        "other patient": other,
    }


def real_pairs(data_dir: str | pathlib.Path, limit: int | None = None) -> Iterator[Pair]:
    """Yields each region of each case against its perturbed copies.

    The grid is cut to the tumours and 12 voxels around, which only changes the specificity.
    """
    found = segmentations(data_dir)
    for place, (case, classes) in enumerate(found[:limit]):
        other_classes = found[(place + 1) % len(found)][1]
        box = _around((classes > 0) | (other_classes > 0), 12)
        for region in task_lib.GLIOMA.region_names:
            masks = (task_lib.GLIOMA.mask(each[box], region) for each in (classes, other_classes))
            reference, other = masks
            for name, prediction in perturbed(reference, other).items():
                yield Pair(f"{case} {region} {name}", reference, prediction)


def _around(mask: Mask, margin: int) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)


def edge_pairs() -> list[Pair]:
    """Returns small pairs made by hand, the same on an isotropic and an anisotropic grid."""
    pairs = []
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 5.5)):
        kind = "1 mm" if spacing[0] == 1.0 else "anisotropic"
        pairs += [Pair(f"{name}, {kind}", *masks, spacing) for name, masks in _edges().items()]
    return pairs


def _cubes(*corners_and_edges: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros((40, 36, 32), bool)
    for x, y, z, edge in corners_and_edges:
        mask[x : x + edge, y : y + edge, z : z + edge] = True
    return mask


def _edges() -> dict[str, tuple[Mask, Mask]]:
    a, b, far = (5, 5, 5, 6), (5, 14, 5, 6), (28, 26, 22, 6)
    return {
        "both empty": (_cubes(), _cubes()),
        "prediction empty": (_cubes(a), _cubes()),
        "reference empty": (_cubes(), _cubes(a)),
        "one voxel each, equal": (_cubes((9, 9, 9, 1)), _cubes((9, 9, 9, 1))),
        "one voxel each, apart": (_cubes((9, 9, 9, 1)), _cubes((9, 12, 9, 1))),
        "one voxel in a lesion": (_cubes(a), _cubes((7, 7, 7, 1))),
        "touching the border": (_cubes((0, 0, 0, 8)), _cubes((1, 0, 0, 8))),
        "the whole grid": (~_cubes(), ~_cubes(a)),
        "disjoint": (_cubes(a), _cubes(far)),
        "two lesions merged": (_cubes(a, b), _cubes(a, b, (6, 9, 6, 4), (6, 11, 6, 4))),
        "one of two lesions missed": (_cubes(a, far), _cubes(a)),
        "a false lesion": (_cubes(a), _cubes(a, far)),
        "lesions that dilation merges": (_cubes(a, (5, 16, 5, 5)), _cubes(a)),
        "only an ignored lesion, touched": (_cubes((9, 9, 9, 2)), _cubes((9, 10, 9, 2))),
        "only an ignored lesion, missed": (_cubes((9, 9, 9, 2)), _cubes()),
        "ignored lesion touched beside one": (_cubes(a, (28, 26, 22, 2)), _cubes(a, far)),
        "near a lesion but not on it": (_cubes(a), _cubes((13, 5, 5, 4))),
        "hollow": (_cubes(a), _cubes(a) & ~_cubes((7, 7, 7, 2))),
    }
