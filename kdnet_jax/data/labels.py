"""The label values of each release, and the project's classes."""

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
