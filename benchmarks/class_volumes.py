"""Prints what volume the classes of label maps keep on a coarser grid, beside nnU-Net's resampling.

    python -m benchmarks.class_volumes --labels='DIR/*/*_seg.nii.gz' [--factors=2,3]

Each map is resampled to voxels of a factor times its edges, and back. nnU-Net's columns are "-"
where nnunetv2 is not installed. docs/data.md holds the tables.
"""

import collections
import glob
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence

import nibabel as nib
import numpy as np
import tqdm
from absl import app, flags
from jaxtyping import UInt8

from kdnet_jax.data.scans import class_maps

_LABELS = flags.DEFINE_string("labels", None, "Pattern of the label maps' paths.", required=True)
_FACTORS = flags.DEFINE_list("factors", ["2", "3"], "Of the voxels' edges.")

_LEAST_MM3 = 300  # a ratio of a few voxels says nothing
_MARGIN = 6  # voxels around the tumour
Resample = Callable[..., UInt8[np.ndarray, "d h w"]]


def _nnunet(
    labels: UInt8[np.ndarray, "d h w"],
    source: class_maps.Triple,
    target: class_maps.Triple,
    shape: class_maps.Shape,
) -> UInt8[np.ndarray, "D H W"]:
    """Returns nnU-Net's resampling of a segmentation with the settings of its plans."""
    from nnunetv2.preprocessing.resampling import default_resampling

    return default_resampling.resample_data_or_seg_to_shape(
        labels[None], shape, source, target, is_seg=True, order=1, order_z=0
    )[0].astype(np.uint8)


def _read(paths: Sequence[str]) -> Iterator[tuple[UInt8[np.ndarray, "d h w"], class_maps.Triple]]:
    """Yields the box of each tumour, and its voxel size."""
    for path in tqdm.tqdm(sorted(paths)):
        image = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        inside = np.argwhere(labels)
        low, high = np.maximum(inside.min(0) - _MARGIN, 0), inside.max(0) + _MARGIN + 1
        spacing = tuple(float(edge) for edge in image.header.get_zooms()[:3])
        yield labels[tuple(map(slice, low, high))], spacing


def measure(
    labels: UInt8[np.ndarray, "d h w"],
    spacing: class_maps.Triple,
    factor: float,
    resample: Resample,
) -> dict[int, tuple[float, float, float]]:
    """Returns for each class the volume kept there, that kept back, and the Dice score of that."""
    coarse = tuple(edge * factor for edge in spacing)
    shape = tuple(math.ceil(edge / factor) for edge in labels.shape)
    there = resample(labels, spacing, coarse, shape)
    back = resample(there, coarse, spacing, labels.shape)
    found = {}
    for value in np.unique(labels[labels > 0]):
        true, again = labels == value, back == value
        if true.sum() * np.prod(spacing) >= _LEAST_MM3:
            volumes = np.array([np.sum(there == value) * factor**3, again.sum()]) / true.sum()
            dice = 2 * np.sum(true & again) / (true.sum() + again.sum())
            found[int(value)] = (*volumes, dice)
    return found


def _cell(values: Sequence[tuple[float, float, float]]) -> str:
    if not values:
        return "-"
    there, back, dice = np.mean(values, axis=0)
    return f"{there:.3f} ± {np.std(values, axis=0)[0]:.3f}, {back:.3f}, {dice:.3f}"


def main(argv: Sequence[str]) -> None:
    """Prints the Markdown table."""
    del argv
    methods: dict[str, Resample] = {"ours": class_maps.resample_classes}
    if importlib.util.find_spec("nnunetv2"):
        methods["nnU-Net"] = _nnunet
    found = collections.defaultdict(list)
    for labels, spacing in _read(glob.glob(_LABELS.value)):
        for factor in map(float, _FACTORS.value):
            for name, resample in methods.items():
                for value, row in measure(labels, spacing, factor, resample).items():
                    found[factor, value, name].append(row)
    print("| factor | class | maps | ours: there, back, Dice | nnU-Net |\n|---|---|---|---|---|")
    for factor, value in sorted({key[:2] for key in found}):
        ours, theirs = (found[factor, value, name] for name in ("ours", "nnU-Net"))
        print(f"| {factor:g} | {value} | {len(ours)} | {_cell(ours)} | {_cell(theirs)} |")


if __name__ == "__main__":
    app.run(main)
