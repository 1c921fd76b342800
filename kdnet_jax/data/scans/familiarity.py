"""Similarity of a scan to the scans that a network was trained on.

`measure` keeps what is usual in a cohort: voxel sizes, the brain's volume and extent, and for each
sequence the z-scores inside the brain (their quantiles, and their means at three depths below the
brain's surface). `compare` says in plain words where a scan departs from it. It recognises a scan
of another kind; it cannot predict that a usual-looking scan will be segmented well.

In tasks whose scans are not skull-stripped, all that has data stands for the brain, and its volume
is not compared: it is a matter of the field of view.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, files, typed
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError

FILE = "training_data.json"
# Of a large cohort so many cases are enough.
SAMPLE = 50
# Fewer cases say nothing about how much intensities vary.
MIN_CASES = 5

_VERSION = 1
# The extremes are left out: a few voxels of vessel or artefact rule them.
_QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Millimetres below the brain's surface: cortex and its fluid, white matter, the deep structures.
_DEPTHS = ((0.0, 6.0), (6.0, 16.0), (30.0, math.inf))
# Each feature is judged in deviations of the cohort, of at least so much (z-score).
_LEAST_DEVIATION = 0.1
# A distance is unusual from here on, and from so many times the one that 9 of 10 cases keep below.
_UNUSUAL, _UNUSUAL_TIMES = 1.5, 1.5
# Another sequence is named where its distance is at most this share of the expected one's.
_OTHER_SEQUENCE = 0.6
# How far outside of the cohort's range a size may be.
_COARSER, _LARGER, _SMALLER = 1.5, 1.25, 0.75
# Finer voxels than this are for nothing here: the histogram and the depth need no more.
_VOXEL_MM = 2.0

# In these, intensities of all scans are in deviations of a mean, as `_LEAST_DEVIATION` is.
_IN_DEVIATIONS = ("zscore_nonzero", "zscore", "ct")
_EXTENTS = ("from bottom to top", "from front to back", "from side to side")
_CAUTION = "Treat the mask with caution."
STRIP = (
    "Strip the skull with HD-BET or SynthStrip (--strip) and run again; else treat the mask with "
    "caution."
)


def measure(
    cases: Iterable[prepare.PreparedCase], *, task: task_lib.Task = task_lib.DEFAULT
) -> typed.Json:
    """Returns what is usual in `cases`, as values that JSON holds; about 0.3 s a case.

    Give a sample of at most `SAMPLE` training cases. Of channels without a common scale ("rescale",
    "none") the intensities are left out.

    Raises:
        ValueError: there is no case.
    """
    spacings, extents, volumes = [], [], []
    features: dict[str, list[list[float]]] = {}
    for case in cases:
        spacings.append(case.geometry.native_spacing)
        extents.append(_extent_mm(case))
        volumes.append(_brain_ml(case))
        for modality in case.modalities:
            rows = features.setdefault(modality, [])
            if modality in case.absent:
                continue
            if task.channel(modality).normalisation in _IN_DEVIATIONS:
                rows.append(_features(case, modality).tolist())
    if not volumes:
        raise ValueError("no case to measure")
    return {
        "version": _VERSION,
        "cases": len(volumes),
        "spacing_mm": _range(spacings),
        "extent_mm": _range(extents),
        "brain_ml": _range(volumes),
        "sequences": {
            name: _usual(np.array(rows)) if rows else None for name, rows in features.items()
        },
    }


def _range(values: Sequence[object]) -> list[object]:
    array = np.round(np.array(values, np.float64), 3)
    return [array.min(axis=0).tolist(), array.max(axis=0).tolist()]


def _usual(rows: Float[np.ndarray, "n f"]) -> typed.Json | None:
    """Returns mean and deviation of each feature, and the distance that 9 of 10 keep below.

    Each case's distance is taken from the others.
    """
    if len(rows) < MIN_CASES:
        return None
    left_out = [
        _distance(row, _moments(np.delete(rows, index, axis=0))) for index, row in enumerate(rows)
    ]
    moments = _moments(rows)
    return {key: value.tolist() for key, value in moments.items()} | {
        "distance_90": float(np.quantile(left_out, 0.9))
    }


def _moments(rows: Float[np.ndarray, "n f"]) -> dict[str, Float[np.ndarray, " f"]]:
    return {"mean": rows.mean(axis=0), "deviation": rows.std(axis=0, ddof=1)}


def _distance(features: Float[np.ndarray, " f"], usual: typed.JsonView) -> float:
    """Returns the root mean square of the features' departures, in deviations of the cohort."""
    deviation = np.maximum(usual["deviation"], _LEAST_DEVIATION)
    return float(np.sqrt(np.mean(((features - usual["mean"]) / deviation) ** 2)))


def _features(case: prepare.PreparedCase, modality: str) -> Float[np.ndarray, " f"]:
    """Returns quantiles of the z-scores inside the brain, and their means at three depths."""
    strides = [max(1, round(_VOXEL_MM / spacing)) for spacing in case.geometry.spacing]
    thinned = tuple(slice(None, None, stride) for stride in strides)
    scores = case.image[..., case.modalities.index(modality)][thinned].astype(np.float32)
    brain = scores != 0 if case.foreground is None else case.foreground[thinned]
    depth = _depth_mm(brain, np.multiply(strides, case.geometry.spacing))
    means = []
    for low, high in _DEPTHS:
        shell = brain & (depth > low) & (depth <= high)
        means.append(scores[shell].mean() if shell.any() else 0.0)
    return np.append(np.quantile(scores[brain], _QUANTILES), means).astype(np.float64)


def _depth_mm(
    brain: Bool[np.ndarray, "d h w"], spacing: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "d h w"]:
    padded = np.asarray(ndimage.distance_transform_edt(np.pad(brain, 1), sampling=spacing))
    return padded[1:-1, 1:-1, 1:-1]


def _brain_ml(case: prepare.PreparedCase) -> float:
    return np.count_nonzero(case.inside) * case.geometry.voxel_ml


def _extent_mm(case: prepare.PreparedCase) -> list[float]:
    sizes = zip(case.geometry.box_shape, case.geometry.native_spacing, strict=True)
    return [size * spacing for size, spacing in sizes]


# ------------------------------------------------------------------------------- comparison


def compare(
    case: prepare.PreparedCase,
    statistics: typed.JsonView,
    *,
    task: task_lib.Task = task_lib.DEFAULT,
) -> list[str]:
    """Returns a sentence for every way in which a scan is unlike those of `measure`.

    Each says what was seen, what training looked like, and what it means.
    """
    found = _compare_spacing(case, statistics["spacing_mm"], task)
    least, most = statistics["brain_ml"]
    volume = _brain_ml(case)
    trained = f"({_interval(f'{least:.0f}', f'{most:.0f}')} ml in training)"
    stripped = _is_stripped(task)
    if stripped and volume > _LARGER * most:
        # The z-scores are those of the whole head: to compare them would say nothing more.
        return [
            *found,
            f"{volume:.0f} ml are not background, more than a brain {trained}: skull, skin or "
            f"neck may still be on. {STRIP}",
        ]
    if stripped and volume < _SMALLER * least:
        found.append(
            f"the brain measures only {volume:.0f} ml {trained}: part of it may be cut off, or "
            f"the skull-stripping took too much. {_CAUTION}"
        )
    found += _compare_extent(case, statistics["extent_mm"][0], task)
    return found + _compare_intensities(case, statistics, task)


def _is_stripped(task: task_lib.Task) -> bool:
    return all(task.zero_is_background())


def _compare_spacing(
    case: prepare.PreparedCase, usual: list[list[float]], task: task_lib.Task
) -> list[str]:
    native = case.geometry.native_spacing
    low, high = usual
    kept = case.geometry.spacing == native
    coarse = any(mine > _COARSER * most for mine, most in zip(native, high, strict=True))
    # A finer scan is resampled to the voxels of training, unless the network keeps each scan's own.
    fine = kept and any(_COARSER * mine < least for mine, least in zip(native, low, strict=True))
    if not coarse and not fine:
        return []
    seen = "coarser" if coarse else "finer"
    return [
        f"the voxels are {_mm(native)} mm (up-down, front-back, left-right), {seen} than in "
        f"training ({_interval(_mm(low), _mm(high))} mm). "
        + (
            f"Between the slices the mask is a guess, and small {task.noun} parts may be missing. "
            f"{_CAUTION}"
            if coarse
            else _CAUTION
        )
    ]


def _compare_extent(
    case: prepare.PreparedCase, usual: list[float], task: task_lib.Task
) -> list[str]:
    of = " of the brain" if _is_stripped(task) else ""
    return [
        f"the scan shows {mine:.0f} mm{of} {words} (at least {least:.0f} mm in "
        f"training): the rest may be outside of the picture. {_CAUTION}"
        for mine, least, words in zip(_extent_mm(case), usual, _EXTENTS, strict=True)
        if mine < _SMALLER * least
    ]


def _compare_intensities(
    case: prepare.PreparedCase, statistics: typed.JsonView, task: task_lib.Task
) -> list[str]:
    if statistics["cases"] < MIN_CASES:
        return [
            f"the network was trained on {statistics['cases']} cases, too few to say which "
            "intensities are usual: they were not checked."
        ]
    found = []
    for modality in case.modalities:
        if task.channel(modality).normalisation not in _IN_DEVIATIONS:
            found.append(
                f"the intensities of {modality} were not compared with those of training: its "
                "normalisation brings them to no common scale."
            )
            continue
        usual = statistics["sequences"].get(modality)
        if usual is None:
            continue
        features = _features(case, modality)
        distance = _distance(features, usual)
        if distance > max(_UNUSUAL, _UNUSUAL_TIMES * usual["distance_90"]):
            others = {
                name: _distance(features, each)
                for name, each in statistics["sequences"].items()
                if name != modality and each is not None
            }
            found.append(_intensity_words(modality, distance, usual["distance_90"], others, task))
    return found


def _intensity_words(
    modality: str, distance: float, usual: float, others: Mapping[str, float], task: task_lib.Task
) -> str:
    stripped = _is_stripped(task)
    words = (
        f"the brightness of the {'brain' if stripped else 'scan'} is unlike {_shown(modality)} in "
        f"training (distance {distance:.1f}; 9 of 10 training scans keep below {usual:.1f})"
    )
    nearest = min(others, key=others.__getitem__, default=None)
    if nearest is not None and others[nearest] <= _OTHER_SEQUENCE * distance:
        words += f": it looks more like {_shown(nearest)}"
    if task.channel(modality).normalisation == "ct":
        question = "Is it the right channel, in Hounsfield units?"
    else:
        skull = ", without skull" if stripped else ""
        question = f"Is it the right sequence{skull}, with bright and dark not inverted?"
    return f"{words}. {question} If all of that is right, {_CAUTION[0].lower()}{_CAUTION[1:]}"


def _shown(modality: str) -> str:
    """Returns a channel's name as readers know it: T1ce, FLAIR, CT."""
    short = modality.isalpha() and len(modality) <= 5
    return modality.upper() if short else modality[:1].upper() + modality[1:]


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing)


def _interval(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


# -------------------------------------------------------------------------------- the file


def write(folder: pathlib.Path, statistics: typed.JsonView) -> None:
    """Writes the statistics into a run's folder atomically."""
    files.write_text(folder / FILE, json.dumps(statistics, indent=1) + "\n")


def read(folder: pathlib.Path) -> typed.Json | None:
    """Returns the statistics of a run's training data, None for a run that kept none.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        statistics = documents.read_json(path)
        version = statistics["version"]
        if version == _VERSION:
            _check(statistics)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Restore it, or delete it: the run then predicts without "
            "this check"
        ) from error
    if version != _VERSION:
        raise UserError(
            f"{path} is of version {version}, expected {_VERSION}. Delete it: the run then "
            "predicts without this check"
        )
    return statistics


def _check(statistics: typed.JsonView) -> None:
    """Raises KeyError, TypeError or ValueError unless all is there that `measure` writes."""
    shapes = {"spacing_mm": (2, 3), "extent_mm": (2, 3), "brain_ml": (2,)}
    for key, shape in shapes.items():
        if np.asarray(statistics[key], np.float64).shape != shape:
            raise ValueError(f"{key} is {statistics[key]!r:.40}")
    for name, usual in dict(statistics["sequences"]).items():
        if usual is None:
            continue
        lengths = {np.asarray(usual[key], np.float64).shape for key in ("mean", "deviation")}
        if len(lengths) > 1 or not float(usual["distance_90"]) >= 0:
            raise ValueError(f"the statistics of {name} do not fit together")
