"""Other tools, asked for the metrics of one pair of masks.

Each function takes (reference, prediction, spacing in mm) and returns the metrics that the tool
has, by the names of `cases.csv`. What a tool leaves undefined is NaN or infinite here as there.
"""

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.metrics import cases

Mask = Bool[np.ndarray, "d h w"]
Spacing = tuple[float, float, float]
Values = dict[str, float]

_CROSS: Final = ndimage.generate_binary_structure(3, 1)
_FACES_AND_EDGES: Final = ndimage.generate_binary_structure(3, 2)
_CUBE: Final = ndimage.generate_binary_structure(3, 3)


def ours(reference: Mask, prediction: Mask, spacing: Spacing) -> Values:
    """This project: the masks as enhancing tumour of a whole case."""
    classes = (mask.astype(np.uint8) * 3 for mask in (reference, prediction))
    row = cases.score_case("", *classes, spacing, task=task_lib.GLIOMA)[0]
    return {name: getattr(row, name) for name in (*cases.METRICS, *cases.COUNTS)}


# --- SciPy, written out ---------------------------------------------------------------------------


def scipy_distances(start: Mask, target: Mask, spacing: Spacing) -> Float[np.ndarray, "n"]:
    """From each surface voxel of `start` to the surface of `target`, over the whole grid."""
    edges = [mask & ~ndimage.binary_erosion(mask, _CROSS) for mask in (start, target)]
    if not target.any():
        return np.full(np.count_nonzero(edges[0]), np.inf)
    return ndimage.distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]


def scipy_written_out(reference: Mask, prediction: Mask, spacing: Spacing) -> Values:
    """The definitions by distance transforms of the whole grid, BraTS 2023 lesion by lesion."""
    if not (reference.any() and prediction.any()):
        return by_lesion(reference, prediction, spacing, _scipy_hd95)
    there = scipy_distances(reference, prediction, spacing)
    back = scipy_distances(prediction, reference, spacing)
    both = np.concatenate([there, back])
    return {
        "dice": 2 * np.sum(reference & prediction) / (np.sum(reference) + np.sum(prediction)),
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "nsd": float(np.mean(both <= 1.00001)),
        "nsd_2mm": float(np.mean(both <= 2.00002)),
        "sensitivity": np.sum(reference & prediction) / np.sum(reference),
        "specificity": np.mean(~prediction[~reference]) if not reference.all() else np.nan,
        **by_lesion(reference, prediction, spacing, _scipy_hd95),
    }


def _scipy_hd95(reference: Mask, prediction: Mask, spacing: Spacing) -> float:
    ways = ((reference, prediction), (prediction, reference))
    return max(np.percentile(scipy_distances(*way, spacing), 95) for way in ways)


def by_lesion(
    reference: Mask, prediction: Mask, spacing: Spacing, hd95: Callable[..., float]
) -> Values:
    """BraTS 2023's lesion-wise scores, one lesion after the other, with the given HD95."""
    components, found = ndimage.label(prediction, _CUBE)
    zones, many = ndimage.label(ndimage.binary_dilation(reference, _FACES_AND_EDGES, 3), _CUBE)
    dices, distances, touched, missed = [], [], set(), 0
    for zone in range(1, many + 1):
        lesion = reference & (zones == zone)
        grown = ndimage.binary_dilation(lesion, _FACES_AND_EDGES, 3)
        hits = set(components[grown].tolist()) - {0}
        touched |= hits
        if np.sum(lesion) * np.prod(spacing) <= 50:
            continue
        match = np.isin(components, list(hits))
        dices.append(2 * np.sum(lesion & match) / (np.sum(lesion) + np.sum(match)))
        distances.append(hd95(lesion, match, spacing) if hits else 374.0)
        missed += not hits
    false = found - len(touched)
    parts = len(dices) + false
    return {
        "lesion_dice": sum(dices) / parts if parts else 1.0,
        "lesion_hd95_mm": (sum(distances) + 374.0 * false) / parts if parts else 0.0,
        "lesions_ref": len(dices),
        "lesions_pred": found,
        "lesions_missed": missed,
        "lesions_false": false,
    }


# --- Packages -------------------------------------------------------------------------------------


def surface_distance(reference: Mask, prediction: Mask, spacing: Spacing) -> Values:
    """DeepMind's surface-distance, which the BraTS 2023 program uses."""
    import surface_distance as package

    if not (reference.any() and prediction.any()):
        # Its release on PyPI, 0.1, uses names that NumPy 2 has no more where a mask is empty.
        return by_lesion(reference, prediction, spacing, _surface_distance_hd95)
    both = package.compute_surface_distances(reference, prediction, spacing)
    return {
        "hd95_mm": float(package.compute_robust_hausdorff(both, 95)),
        "nsd": float(package.compute_surface_dice_at_tolerance(both, 1.0)),
        "nsd_2mm": float(package.compute_surface_dice_at_tolerance(both, 2.0)),
        **by_lesion(reference, prediction, spacing, _surface_distance_hd95),
    }


def _surface_distance_hd95(reference: Mask, prediction: Mask, spacing: Spacing) -> float:
    import surface_distance as package

    both = package.compute_surface_distances(reference, prediction, spacing)
    return float(package.compute_robust_hausdorff(both, 95))


def monai(reference: Mask, prediction: Mask, spacing: Spacing) -> Values:
    """MONAI's metric functions."""
    import torch
    from monai import metrics

    torch.set_num_threads(1)  # small work: more threads only wait for each other
    p, r = (
        torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, reference)
    )
    common = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a mask is empty
        values = {
            "dice": metrics.compute_dice(p, r, ignore_empty=False),
            "hd95_mm": metrics.compute_hausdorff_distance(p, r, percentile=95, **common),
            "nsd": metrics.compute_surface_dice(p, r, [1.0], **common),
            "nsd_2mm": metrics.compute_surface_dice(p, r, [2.0], **common),
        }
    return {name: float(value) for name, value in values.items()}


@functools.cache
def _brats_evaluator() -> Any:
    import panoptica

    config = resources.files("brats_evaluation") / "configs" / "config_gli.yaml"
    return panoptica.Panoptica_Evaluator.load_from_config(str(config))


def brats_evaluation(reference: Mask, prediction: Mask, spacing: Spacing) -> Values:
    """The challenge's current package, with its settings for adult glioma."""
    classes = (mask.astype(np.uint8) * 3 for mask in (prediction, reference))
    # It prints a notice, which has no place in a table on standard output.
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of its tolerance, and of empty masks
        groups = _brats_evaluator().evaluate(*classes, voxelspacing=spacing, verbose=False)
        values = groups["et"].to_dict()
    names = {
        "dice": "global_bin_dsc",
        "hd95_mm": "global_bin_hd95",
        "lesion_dice": "sq_dsc",
        "lesion_hd95_mm": "sq_hd95",
        "lesions_missed": "fn",
        "lesions_false": "fp",
    }
    return {ours: float(values.get(theirs, np.nan)) for ours, theirs in names.items()}


def surface_distance_only(reference: Mask, prediction: Mask, spacing: Spacing) -> None:
    """HD95 and both NSD of surface-distance, for timing; nothing that is written out here."""
    import surface_distance as package

    if reference.any() and prediction.any():
        both = package.compute_surface_distances(reference, prediction, spacing)
        package.compute_robust_hausdorff(both, 95)
        for tolerance in (1.0, 2.0):
            package.compute_surface_dice_at_tolerance(both, tolerance)


_TOOLS: Final = {
    "surface-distance": ("surface_distance", surface_distance),
    "MONAI": ("monai", monai),
    "brats-evaluation": ("brats_evaluation", brats_evaluation),
}
# Without brats-evaluation: it handles part by part, which thousands of specks make too slow.
_TIMED: Final = {
    "surface-distance": ("surface_distance", surface_distance_only),
    "MONAI": ("monai", monai),
}


def installed() -> Mapping[str, Callable[[Mask, Mask, Spacing], Values]]:
    """Returns SciPy written out and the packages that are installed, by name."""
    return {"SciPy written out": scipy_written_out, **_installed(_TOOLS)}


def peers() -> Mapping[str, Callable[[Mask, Mask, Spacing], Any]]:
    """Returns the installed packages for timing, by name."""
    return _installed(_TIMED)


def _installed(tools: Mapping[str, tuple[str, Callable[..., Any]]]) -> dict[str, Any]:
    return {name: ask for name, (module, ask) in tools.items() if importlib.util.find_spec(module)}
