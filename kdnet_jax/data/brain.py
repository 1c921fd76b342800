"""Which voxels of a scan are not background, also where interpolation blurred the background.

A skull-stripped scan that is resampled by B-splines or a windowed sinc rings around the brain: its
background is no longer one value, but small values of either sign that fade with the distance.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

# The share of the border that must be 0, or one other value, for that value to be the background.
# 0 needs less because a field of view may cut through the brain.
_ZERO_BORDER, _CONSTANT_BORDER = 0.5, 0.99
# Of the brain's level: what is fainter and joined to the border is background.
_FAINT: Final = 0.05
# Around a brain that was resampled, more such voxels than this share of it are not the background's
# own value; see docs/data.md for what was measured.
_RINGING: Final = 0.02
# Ringing fades: so many voxels away from the brain most of the background is its own value, up to
# this share of the level. The noise in the air around a head is not.
_REACH, _QUIET, _MOST = 6, 1e-3, 0.75
_SAMPLE: Final = 100_000  # voxels that the level is measured on


def foreground(
    volume: Num[np.ndarray, "x y z"], name: str
) -> tuple[Bool[np.ndarray, "x y z"] | None, list[str]]:
    """Returns the voxels that are not background, None if there is no background, and notes.

    The background is 0, or the value of the border. Where the voxels around the brain are not quite
    that value, because the scan was resampled, it is what lies within 5 % of the brain's level and
    is joined to the border; dark voxels inside the brain are not. On a scan without such voxels,
    all that is not exactly the background is foreground.

    Args:
        volume: intensities.
        name: names the scan in the notes.
    """
    border = _border(volume)
    if np.count_nonzero(border == 0) >= _ZERO_BORDER * border.size:
        mask, rings = _without_ringing(volume, 0.0)
        return mask, [_ringing_note(name, 0.0)] if rings else []
    usual = float(np.median(border))  # One value of more than half of the border is the median.
    constant = np.count_nonzero(border == usual) >= _CONSTANT_BORDER * border.size
    for background in (usual,) if constant else (0.0, usual):
        if not constant and not _is_background(volume, border, background):
            continue
        mask, rings = _without_ringing(volume, background)
        if rings:
            return mask, [_ringing_note(name, background)]
        note = f"{name}: the background is {background:g}, not 0; it was taken as such"
        return mask, [note] if background else []
    return None, []


def _ringing_note(name: str, background: float) -> str:
    return (
        f"{name}: the background is not {background:g} throughout, as after interpolation (splines "
        f"ring around the brain): what is joined to the border and within {_FAINT:.0%} of the "
        "brain's level was taken as background"
    )


def _border(volume: Num[np.ndarray, "x y z"]) -> Num[np.ndarray, "n"]:
    faces = [np.moveaxis(volume, axis, 0)[side].ravel() for axis in range(3) for side in (0, -1)]
    return np.concatenate(faces)


def _level(distance: Float[np.ndarray, "..."]) -> float:
    """Returns the median distance from the background of what is clearly not background."""
    size = np.abs(distance[distance != 0])
    if not size.size:
        return 0.0
    size = size[:: max(1, size.size // _SAMPLE)]
    return float(np.median(size[size > 0.1 * np.percentile(size, 99)]))


def _faint(distance: Float[np.ndarray, "x y z"], level: float) -> Bool[np.ndarray, "x y z"]:
    """Returns the voxels that the background may have; undershoot is no part of a bright brain."""
    limit = _FAINT * level
    above, below = np.count_nonzero(distance > limit), np.count_nonzero(distance < -limit)
    if above >= 3 * below:
        return distance <= limit
    return distance >= -limit if below >= 3 * above else np.abs(distance) <= limit


def _outside(faint: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Returns what of `faint` is joined to the border."""
    parts, count = ndimage.label(faint)
    joined = np.zeros(count + 1, bool)
    joined[np.unique(_border(parts))] = True
    joined[0] = False
    return joined[parts]


def _fades(
    distance: Float[np.ndarray, "x y z"], level: float, outside: Bool[np.ndarray, "x y z"]
) -> bool:
    """Whether, away from the brain, most of the background is its own value."""
    far = ~ndimage.maximum_filter(~outside, size=2 * _REACH + 1)
    quiet = np.abs(distance[far]) <= _QUIET * level
    return bool(quiet.size) and bool(quiet.mean() >= _MOST)


def _is_background(
    volume: Num[np.ndarray, "x y z"], border: Num[np.ndarray, "n"], background: float
) -> bool:
    """Whether half of the border is `background` or nearly so, and it is no noise around it."""
    distance = volume.astype(np.float32) - np.float32(background)
    level = _level(distance)
    near = np.abs(border.astype(np.float32) - np.float32(background)) <= _FAINT * level
    if np.count_nonzero(near) < _ZERO_BORDER * border.size:
        return False
    return _fades(distance, level, _outside(_faint(distance, level)))


def _without_ringing(
    volume: Num[np.ndarray, "x y z"], background: float
) -> tuple[Bool[np.ndarray, "x y z"], bool]:
    """Returns the foreground, and whether there was ringing around it that was taken off."""
    exact = volume != background
    distance = volume.astype(np.float32) - np.float32(background)
    level = _level(distance)
    faint = _faint(distance, level)
    if np.count_nonzero(faint & exact) < _RINGING * np.count_nonzero(exact):
        return exact, False
    outside = _outside(faint)
    ringing = np.count_nonzero(outside & exact)
    inside = outside.size - np.count_nonzero(outside)
    if ringing < _RINGING * inside or not _fades(distance, level, outside):
        return exact, False
    return ~outside, True
