"""The label values of each release, and the project's classes."""

import itertools
from collections.abc import Collection
from typing import Final

import numpy as np
from jaxtyping import Bool, Num, UInt8

from kdnet_jax import conventions
from kdnet_jax.errors import UserError, check_choice

_NCR, _ED, _ET = 1, 2, 3
_CHALLENGE_WITH_4: Final = {0: 0, 1: _NCR, 2: _ED, 4: _ET}

# Value in the file -> class. BraTS wrote ET as 4 until 2021 and as 3 from 2023 on; the 2024 glioma
# release uses 4 for the resection cavity. The Decathlon's 1 is edema and its 2 the core.
# What a resection cavity may count as in training and scores.
CAVITY_CHOICES: Final = ("background", "NCR")
LABEL_CONVENTIONS: Final[dict[str, dict[int, int]]] = {
    "brats2018": _CHALLENGE_WITH_4,
    "brats2019": _CHALLENGE_WITH_4,
    "brats2020": _CHALLENGE_WITH_4,
    "brats2021": _CHALLENGE_WITH_4,
    "brats2023": {0: 0, 1: _NCR, 2: _ED, 3: _ET},
    "brats2024": {0: 0, 1: _NCR, 2: _ED, 3: _ET, 4: conventions.RESECTION_CAVITY},
    "decathlon": {0: 0, 1: _ED, 2: _NCR, 3: _ET},
    "kdnet": {0: 0, 1: _NCR, 2: _ED, 3: _ET},
}
# The channels of a mask that has several, in the order in which they are painted.
_PAINTED: Final = {"WT": _ED, "ED": _ED, "TC": _NCR, "NCR": _NCR, "ET": _ET}
_WHOLE: Final = tuple(
    {*names, *background}
    for names in (("WT", "TC", "ET"), ("ED", "NCR", "ET"))
    for background in ((), ("background",))
)


def to_classes(
    values: Num[np.ndarray, "*grid"], convention: str, path: object = "the label map"
) -> UInt8[np.ndarray, "*grid"]:
    """Returns the classes that the values of a label map stand for.

    Args:
        values: as stored, of any integer or floating type.
        convention: a key of `LABEL_CONVENTIONS`.
        path: names the file in messages.

    Raises:
        UserError: a value is no whole number or is outside the convention; unknown convention.
    """
    table = _table(convention)
    found, counts = np.unique(values, return_counts=True)
    unknown = ~np.isin(found, list(table))
    if unknown.any():
        raise UserError(_refusal(found, counts, unknown, convention, path))
    lookup = np.zeros(max(table) + 1, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[values.astype(np.uint8)]


def check_convention(key: str, convention: str, *, auto: Collection[str] = ()) -> None:
    """Refuses what is neither a known convention nor a list of channels (`channel_names`).

    Args:
        key: the flag, for messages.
        convention: its value.
        auto: what else is allowed.

    Raises:
        UserError: it is neither.
    """
    if "," not in convention:
        check_choice(key, convention, (*auto, *LABEL_CONVENTIONS))
        return
    names = channel_names(convention)
    if len(set(names)) < len(names) or set(names) not in _WHOLE:
        raise UserError(
            f"{key} is {convention!r}: name each channel of the masks once, in their order: TC, WT "
            "and ET, or NCR, ED and ET, with or without background, such as TC,WT,ET"
        )


def channel_names(convention: str) -> tuple[str, ...]:
    """Returns the channels that a convention such as "TC,WT,ET" lists; none for a known one."""
    known = {name.lower(): name for name in (*conventions.CLASSES, *conventions.REGIONS)}
    parts = convention.split(",") if "," in convention else []
    return tuple(known.get(part.strip().lower(), part) for part in parts)


def classes_of(
    values: Num[np.ndarray, "x y z *c"], convention: str, path: object
) -> UInt8[np.ndarray, "x y z"]:
    """Returns the classes of a label map, or of a mask with a channel for each region or class.

    Args:
        values: as stored.
        convention: a key of `LABEL_CONVENTIONS`, or the channels' names (`channel_names`). Of
            regions the innermost counts.
        path: names the file in messages.

    Raises:
        UserError: as `to_classes`, or the channels are others than those named: regions that do
            not lie in one another, classes that overlap.
    """
    names = channel_names(convention)
    if not names:
        return to_classes(values, convention, path)
    if values.shape[3:] != (len(names),) or not np.isin(values, (0, 1)).all():
        raise UserError(
            f"{path}: is no mask of the {len(names)} channels {convention} with 0 and 1 in each; "
            "probabilities must be thresholded first"
        )
    classes = np.zeros(values.shape[:3], np.uint8)
    inner = [name for name in _PAINTED if name in names]
    masks = {name: values[..., names.index(name)] == 1 for name in inner}
    nested = "WT" in names
    for outer, name in itertools.combinations(inner, 2):
        odd = np.count_nonzero(
            masks[name] & ~masks[outer] if nested else masks[name] & masks[outer]
        )
        if odd:
            where = f"outside of {outer}" if nested else f"in {outer} too"
            raise UserError(
                f"{path}: {odd} voxels of {name} lie {where}, if its channels are {convention}. Is "
                "their order right?"
            )
    for name, mask in masks.items():
        classes[mask] = _PAINTED[name]
    return classes


def from_classes(classes: Num[np.ndarray, "*grid"], convention: str) -> UInt8[np.ndarray, "*grid"]:
    """Returns the label values of `convention` for classes 0..3 and the resection cavity.

    A cavity becomes background where the convention has no value for it.
    """
    lookup = np.zeros(conventions.RESECTION_CAVITY + 1, np.uint8)
    for value, label_class in _table(convention).items():
        lookup[label_class] = value
    return lookup[classes]


def map_cavity(
    classes: UInt8[np.ndarray, "*grid"], choice: str = "background"
) -> UInt8[np.ndarray, "*grid"]:
    """Replaces the resection cavity by a class that is trained.

    "background" is the default because BraTS counts the cavity to none of ET, TC and WT.

    Raises:
        UserError: `choice` is neither "background" nor "NCR".
    """
    check_choice("data.resection_cavity", choice, CAVITY_CHOICES)
    target = conventions.CLASSES.index(choice)
    return np.where(classes == conventions.RESECTION_CAVITY, np.uint8(target), classes)


def _table(convention: str) -> dict[int, int]:
    check_choice("data.label_convention", convention, LABEL_CONVENTIONS)
    return LABEL_CONVENTIONS[convention]


def _refusal(
    found: Num[np.ndarray, " n"],
    counts: Num[np.ndarray, " n"],
    unknown: Bool[np.ndarray, " n"],
    convention: str,
    path: object,
) -> str:
    """Says which values do not belong, and which conventions all values would belong to."""
    pairs = list(zip(found[unknown].tolist(), counts[unknown].tolist(), strict=True))
    listed = ", ".join(f"{value:g} ({count} voxels)" for value, count in pairs[:5])
    more = f" and {len(pairs) - 5} other values" if len(pairs) > 5 else ""
    fitting = [
        name for name, table in LABEL_CONVENTIONS.items() if np.isin(found, list(table)).all()
    ]
    advice = (
        f"All values of the file would fit {' or '.join(fitting)}: is the release named right?"
        if fitting
        else "Is this a segmentation, and was it resampled with nearest-neighbour interpolation?"
    )
    allowed = ", ".join(str(value) for value in _table(convention))
    return (
        f"{path}: holds the label {listed}{more}; {convention} knows only the values {allowed}. "
        f"{advice}"
    )
