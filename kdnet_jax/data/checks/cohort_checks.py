"""Checks of a cohort's intensities: duplicate patients, and sequences mixed up.

Pure functions of arrays and small records; `case_checks.py` reads the files. `docs/data.md` states
what the thresholds were measured on.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Num, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.data.checks import problems
from kdnet_jax.metrics import boxes

EDGE: Final = 16  # cells per axis of a fingerprint: about 1 cm of a brain
# Correlation of two fingerprints: from here on the same scan, or so alike that one must look.
# Scans of different patients reached 0.73, copies of other type or spacing fell to 0.98.
SAME, ALIKE = 0.98, 0.90
# By how much another naming of the sequences must fit better before it is reported (see `swapped`).
SWAP_MARGIN: Final = 0.5
# A label map of fewer voxels may be like another one by chance.
MIN_LABEL_VOXELS: Final = 50
_MIN_SHARED: Final = 100  # voxels that all sequences must share for their correlations to count
_STRIDE: Final = 2  # contrasts are measured in every second voxel along each axis
_MIN_REGION: Final = 6  # such voxels of a region; about 50 of the scan's own


# ------------------------------------------------------------------------------ the same patient


def fingerprint(scores: Float[np.ndarray, "d h w"]) -> Float32[np.ndarray, "e e e"]:
    """Returns the means of the brain's z-scores over 16x16x16 cells of its bounding box.

    The box and the scores make it blind to crop, spacing, scale and type of the stored numbers;
    the cells are exact area means, so turning the volume over turns the fingerprint over.
    """
    cells = scores[boxes.bounding_box(scores != 0)]
    for axis, size in enumerate(cells.shape):
        cells = np.moveaxis(np.tensordot(_cell_weights(size), cells, (1, axis)), 0, axis)
    centred = cells - cells.mean()
    return (centred / (np.linalg.norm(centred) or 1.0)).astype(np.float32)


def _cell_weights(size: int) -> Float32[np.ndarray, "e n"]:
    """Returns the share that each of `size` voxels has in each of the `EDGE` cells of an axis."""
    edges = np.linspace(0, size, EDGE + 1)
    voxel = np.arange(size)
    overlap = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    return (np.clip(overlap, 0, None) * (EDGE / size)).astype(np.float32)


def label_key(classes: UInt8[np.ndarray, "d h w"]) -> str | None:
    """Returns a hash of the tumour within its bounding box; None where it is too small."""
    if np.count_nonzero(classes) < MIN_LABEL_VOXELS:
        return None
    tumour = classes[boxes.bounding_box(classes > 0)]
    text = f"{tumour.shape}".encode() + np.ascontiguousarray(tumour).tobytes()
    return hashlib.sha256(text).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What identifies a case, whatever its name.

    Attributes:
        case: the case id.
        patient: the patient id.
        folder: where the case lies.
        prints: modality -> two fingerprints, turned by the header, and as stored (so that neither
            another way of storing nor a wrong header hides a copy).
        labels: the keys of the label map in the same two orientations.
    """

    case: str
    patient: str
    folder: str
    prints: Mapping[str, Float32[np.ndarray, "two cells"]]
    labels: frozenset[str]


def doubled(
    contents: Sequence[Content], *, task: task_lib.Task = task_lib.DEFAULT
) -> list[problems.Problem]:
    """Returns a row for each case that shows the same brain as another one, or nearly so.

    The same brain under two patients is an error: it would be trained and tested on. Within one
    patient, or where the brains are only alike, it is a warning.
    """
    alike: dict[tuple[int, int], dict[str, float]] = {}
    for modality in task.modalities:
        for pair, value in _similar_pairs(contents, modality).items():
            alike.setdefault(pair, {})[modality] = value
    for pair in _same_labels(contents):
        alike.setdefault(pair, {})["segmentation"] = 1.0
    rows = []
    for (i, j), values in sorted(alike.items()):
        for one, other in ((contents[i], contents[j]), (contents[j], contents[i])):
            rows += _doubled_row(one, other, values)
    return rows


def _similar_pairs(contents: Sequence[Content], modality: str) -> dict[tuple[int, int], float]:
    places = [i for i, content in enumerate(contents) if modality in content.prints]
    if len(places) < 2:
        return {}
    prints = np.stack([contents[i].prints[modality] for i in places], axis=1)
    likeness = np.maximum(prints[0] @ prints[0].T, prints[1] @ prints[1].T)
    pairs = np.argwhere(np.triu(likeness >= ALIKE, 1))
    return {(places[a], places[b]): float(likeness[a, b]) for a, b in pairs}


def _same_labels(contents: Sequence[Content]) -> set[tuple[int, int]]:
    holders: dict[str, list[int]] = {}
    for i, content in enumerate(contents):
        for key in content.labels:
            holders.setdefault(key, []).append(i)
    return {pair for group in holders.values() for pair in itertools.combinations(group, 2)}


def _doubled_row(
    one: Content, other: Content, values: Mapping[str, float]
) -> list[problems.Problem]:
    same = [name for name, value in values.items() if value >= SAME]
    two_patients = one.patient != other.patient
    whose = f"{other.case} ({other.folder})"
    if same:
        severity = problems.ERROR if two_patients else problems.WARNING
        finding = f"{', '.join(same)}: the same content as in {whose}"
    elif two_patients:
        severity = problems.WARNING
        finding = (
            f"{', '.join(values)}: looks like {whose} (correlation {max(values.values()):.2f})"
        )
    else:  # Two visits of one patient look alike.
        return []
    finding += f", another patient ({other.patient})" if two_patients else ", the same patient"
    remedy = (
        "Remove one of the two, or keep both on one side of the split (a patients.csv for your own "
        "data, a split.json otherwise)"
    )
    return [problems.Problem(one.case, one.folder, severity, finding, remedy)]


# --------------------------------------------------------------------------- swapped sequences


@dataclasses.dataclass(frozen=True, eq=False)
class Contrast:
    """How the sequences of a case look beside each other; all in z-scores.

    Attributes:
        modalities: the order of the arrays.
        correlation: over the voxels that are brain in all sequences.
        tail: the 99.5 % percentile of each sequence.
        edema: mean of each sequence in ED, or None without ED.
        enhancing: mean of each sequence in ET, or None without ET.
    """

    modalities: tuple[str, ...]
    correlation: Float[np.ndarray, "m m"]
    tail: Float[np.ndarray, "m"]
    edema: Float[np.ndarray, "m"] | None
    enhancing: Float[np.ndarray, "m"] | None


def contrast(
    scores: Mapping[str, Float[np.ndarray, "x y z"]],
    classes: UInt8[np.ndarray, "x y z"] | None,
) -> Contrast | None:
    """Measures the contrasts of a case; None where the sequences share next to no brain."""
    if len(scores) < 2:
        return None
    thin = (slice(None, None, _STRIDE),) * 3
    image = np.stack([volume[thin] for volume in scores.values()], axis=-1)
    brain = (image != 0).all(-1)
    if np.count_nonzero(brain) < _MIN_SHARED:
        return None
    voxels = image[brain]
    regions = [None, None]
    if classes is not None:
        inside = classes[thin][brain]
        regions = [_region_mean(voxels[inside == value]) for value in (2, 3)]
    return Contrast(
        tuple(scores),
        np.corrcoef(voxels, rowvar=False),
        np.percentile(voxels, 99.5, axis=0),
        *regions,
    )


def _region_mean(voxels: Num[np.ndarray, "n m"]) -> Float[np.ndarray, "m"] | None:
    return voxels.mean(0, dtype=np.float64) if len(voxels) >= _MIN_REGION else None


def swapped(measured: Contrast) -> tuple[str, str] | None:
    """Returns the two sequences whose exchange would make the case look clearly more usual."""
    usual = plausibility(measured, measured.modalities)
    gains = {
        pair: plausibility(measured, _exchanged(measured.modalities, *pair)) - usual
        for pair in itertools.combinations(measured.modalities, 2)
    }
    best = max(gains, key=gains.__getitem__, default=None)
    return best if best and gains[best] > SWAP_MARGIN else None


def _exchanged(names: Sequence[str], one: str, other: str) -> list[str]:
    turned = {one: other, other: one}
    return [turned.get(name, name) for name in names]


# (sequence, its near kin, a stranger): r(sequence, kin) is the larger. CSF is dark in T1, T1ce and
# FLAIR and bright in T2; edema is bright in T2 and FLAIR.
_KINSHIP: Final = (
    ("t1", "t1ce", "t2"),
    ("t1ce", "t1", "t2"),
    ("t2", "flair", "t1"),
    ("t2", "flair", "t1ce"),
    ("t1", "flair", "t2"),
    ("t1ce", "flair", "t2"),
)


def plausibility(measured: Contrast, names: Sequence[str]) -> float:
    """Returns how well the arrays of a case fit these names; the larger, the better.

    The sum of: the differences of correlations in `_KINSHIP`; by how much the brightest voxels of
    T1ce (vessels, enhancement) exceed those of T1; with a label map, by how much FLAIR exceeds the
    others in ED, and T1ce exceeds T1 in ET. Differences of z-scores go through tanh, so that none
    of them outvotes the rest.
    """
    at = {name: place for place, name in enumerate(names)}
    r, terms = measured.correlation, []
    for name, kin, stranger in _KINSHIP:
        if {name, kin, stranger} <= at.keys():
            terms.append(r[at[name], at[kin]] - r[at[name], at[stranger]])
    if {"t1", "t1ce"} <= at.keys():
        first, second = at["t1"], at["t1ce"]
        terms.append(0.5 * np.tanh(measured.tail[second] - measured.tail[first]))
        if measured.enhancing is not None:
            terms.append(np.tanh(measured.enhancing[second] - measured.enhancing[first]))
    if "flair" in at and measured.edema is not None:
        others = np.delete(measured.edema, at["flair"])
        terms.append(np.tanh(measured.edema[at["flair"]] - others.max()))
    return float(sum(terms))


# --------------------------------------------------------------------------------- orientations


def odd_orientations(stated: Sequence[str]) -> dict[int, str]:
    """Returns the place of each case whose header differs from that of most -> that of most.

    Args:
        stated: orientation of each case, such as "LPS"; empty where it is not known.
    """
    known = [code for code in stated if code]
    if not known:
        return {}
    usual, _ = Counter(known).most_common(1)[0]
    return {place: usual for place, code in enumerate(stated) if code not in ("", usual)}
