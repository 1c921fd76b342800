"""Tiny cases on disk, in the layout of BraTS 2021: made up, or real ones made coarser."""

import pathlib

import nibabel as nib
import numpy as np

# Intensity of healthy tissue, NCR, ED and ET in each sequence: each class stands out in some.
_INTENSITIES = {
    "t1": (500, 250, 420, 480),
    "t1ce": (500, 250, 430, 900),
    "t2": (400, 800, 650, 550),
    "flair": (400, 300, 800, 650),
}


def write_case(
    folder: pathlib.Path, number: int, *, edge: int = 32, spacing: float = 4.0, radius: float = 8.0
) -> pathlib.Path:
    """Writes one case: an ellipsoid brain with an off-centre tumour of three shells."""
    rng = np.random.default_rng(number)
    name = f"BraTS2021_{number:05d}"
    case = folder / name
    case.mkdir(parents=True)
    axes = np.meshgrid(*[np.arange(edge, dtype=np.float64)] * 3, indexing="ij")
    grid = np.stack(axes, axis=-1) - (edge - 1) / 2
    brain = (grid**2 / (np.array([0.36, 0.44, 0.40]) * edge) ** 2).sum(-1) < 1
    centre = np.array([0.14, 0.05, 0.1]) * edge * rng.choice([-1, 1], 3)
    distance = np.linalg.norm(grid - centre, axis=-1)
    classes = np.zeros((edge,) * 3, np.uint8)
    for value, reach in ((2, radius), (3, 0.7 * radius), (1, 0.4 * radius)):
        classes[(distance < reach) & brain] = value
    # As BraTS 2021: LPS, origin away from zero.
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = (0.0, edge * spacing - 1, 0.0)
    for sequence, intensities in _INTENSITIES.items():
        image = np.asarray(intensities, np.float64)[classes] + rng.normal(0, 60, classes.shape)
        image = np.where(brain, np.maximum(image, 1), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), case / f"{name}_{sequence}.nii.gz")
    values = np.array([0, 1, 2, 4], np.uint8)[classes]
    nib.save(nib.Nifti1Image(values, affine), case / f"{name}_seg.nii.gz")
    return case


def write_coarser(real: pathlib.Path, folder: pathlib.Path, cases: int) -> pathlib.Path:
    """Writes the first real cases, every second voxel along each axis; returns the folder."""
    for case in sorted(each for each in real.iterdir() if each.is_dir())[:cases]:
        (folder / case.name).mkdir(parents=True)
        for path in case.glob("*.nii.gz"):
            nib.save(nib.load(path).slicer[::2, ::2, ::2], folder / case.name / path.name)
    return folder


def write_cohort(folder: pathlib.Path, cases: int, **options: float) -> pathlib.Path:
    """Writes cases 1 to `cases` and returns the folder."""
    for number in range(1, cases + 1):
        write_case(folder, number, **options)
    return folder
