"""Two made-up tasks on disk: thick slices with plain classes, and overlapping regions."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

# Two channels, two plain classes, slices of 3 mm.
PLAIN: Mapping[str, Any] = {
    "name": "made prostate",
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2},
    "file_ending": ".nii.gz",
}
# Three channels; two regions that overlap within a third; an ignore label.
REGIONS: Mapping[str, Any] = {
    "name": "made liver",
    "channel_names": {"0": "arterial", "1": "venous", "2": "late"},
    "labels": {
        "background": 0,
        "organ": [1, 2, 3, 4],
        "sick": [2, 4],
        "vessel": [3, 4],
        "ignore": 5,
    },
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
    "kdnet": {"student": "venous", "noun": "liver"},
}
# Intensities of background and classes in each channel.
_PLAIN_LEVELS = ((100, 300, 200), (200, 80, 400))
_REGION_LEVELS = (
    (50, 100, 300, 200, 250),
    (80, 200, 150, 400, 300),
    (60, 200, 260, 380, 320),
)


def write_plain(folder: pathlib.Path, cases: int) -> pathlib.Path:
    """Writes cases of `PLAIN` in nnU-Net's raw layout: 12 slices of 3 mm, 1 mm within."""
    for number in range(cases):
        rng = np.random.default_rng(number)
        distance = _distance((32, 32, 12), (1.0, 1.0, 3.0), rng.uniform(-3, 3, 3))
        classes = np.where(distance < 5, 2, np.where(distance < 11, 1, 0))
        _write(folder, f"made_{number:02d}", classes, _PLAIN_LEVELS, (1.0, 1.0, 3.0), rng)
    return _describe(folder, PLAIN)


def write_regions(folder: pathlib.Path, cases: int) -> pathlib.Path:
    """Writes cases of `REGIONS` as a folder of one's own, one folder a case: 2 mm, 24 a side."""
    for number in range(cases):
        rng = np.random.default_rng(100 + number)
        shift = rng.uniform(-4, 4, 3)
        organ = _distance((24, 24, 24), (2.0,) * 3, shift) < 18
        sick = _distance((24, 24, 24), (2.0,) * 3, shift + np.array([5, 0, 0])) < 8
        vessel = _distance((24, 24, 24), (2.0,) * 3, shift + np.array([0, 5, 0])) < 7
        classes = np.where(organ, 1 + sick + 2 * vessel, 0)
        classes[:2] = 5  # nobody looked there
        name = f"made{number:02d}"
        (folder / name).mkdir(parents=True)
        for (channel, _), image in zip(
            enumerate(_REGION_LEVELS), _images(classes, _REGION_LEVELS, rng), strict=True
        ):
            word = REGIONS["channel_names"][str(channel)]
            _save(folder / name / f"{name}_{word}.nii.gz", image, (2.0,) * 3)
        _save(folder / name / f"{name}_seg.nii.gz", classes.astype(np.uint8), (2.0,) * 3)
    return _describe(folder, REGIONS)


def _distance(
    shape: Sequence[int], spacing: Sequence[float], centre: Sequence[float]
) -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.asarray(centre), axis=-1)


def _images(
    classes: np.ndarray, levels: Sequence[Sequence[float]], rng: np.random.Generator
) -> list[np.ndarray]:
    known = np.where(classes < len(levels[0]), classes, 0)
    noise = [rng.normal(0, 30, classes.shape) for _ in levels]
    return [np.asarray(level)[known] + each for level, each in zip(levels, noise, strict=True)]


def _write(
    folder: pathlib.Path,
    name: str,
    classes: np.ndarray,
    levels: Sequence[Sequence[float]],
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> None:
    for channel, image in enumerate(_images(classes, levels, rng)):
        _save(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", image, spacing)
    _save(folder / "labelsTr" / f"{name}.nii.gz", classes.astype(np.uint8), spacing)


def _save(path: pathlib.Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = array.dtype if array.dtype == np.uint8 else np.float32
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)


def _describe(folder: pathlib.Path, document: Mapping[str, Any]) -> pathlib.Path:
    (folder / "dataset.json").write_text(json.dumps(document, indent=1), "utf-8")
    return folder
