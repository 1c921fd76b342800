"""Background of a scan, also where interpolation blurred it.

A skull-stripped scan that is resampled by B-splines or a windowed sinc rings around the brain: its
background is no longer one value, but small values of either sign that fade with the distance.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from kdnet_jax.metrics import labelling

# The share of the border that must be 0, or one other value, for that value to be the background.
# 0 needs less because a field of view may cut through the brain.
_ZERO_BORDER, _CONSTANT_BORDER = 0.5, 0.99
# Of the brain's level: what is fainter and joined to the border is background.
_FAINT: Final = 0.05
# Of the level, too: half of a border that has ringing is closer to the background's own value.
_QUIET: Final = 1e-3
# Around a brain that was resampled, more such voxels than this share of it are not the background's
# own value; see docs/data.md for what was measured.
_RINGING: Final = 0.04
# Ringing fades: at most this share of the sum of all departures from the background's own value is
# so many voxels away from the brain. The noise in the air around a head does not.
_REACH, _FAR = 6, 0.002
# The brightest of that noise makes specks: more than this share of its other voxels.
_SPECKS: Final = 0.25
# Ringing has many values. One value of nearly all such voxels is something else, such as what was
# filled in where the field of view of a sequence ends.
_ONE_VALUE: Final = 0.9
# Of a border without ringing or noise, all background but for cut edges has one value.
_ALL_BUT: Final = 0.98
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


def level_of(distance: Float[np.ndarray, "..."]) -> float:
    """Returns the brain's level: the median of what is clearly more than the background's 0."""
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


def joined_to_border(faint: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Returns what of `faint` is joined to the border."""
    parts = labelling.label(faint, corners=False)
    joined = np.zeros(parts.max(initial=0) + 1, bool)
    joined[np.unique(_border(parts))] = True
    joined[0] = False
    return joined[parts]


def _fades(distance: Float[np.ndarray, "x y z"], outside: Bool[np.ndarray, "x y z"]) -> bool:
    """Whether nearly all that is not quite the background lies close to one solid brain."""
    # Noise is no core, but specks beside it.
    core = np.asarray(ndimage.minimum_filter(~outside, size=3), bool)
    specks = np.count_nonzero(~outside & ~np.asarray(ndimage.maximum_filter(core, size=3), bool))
    left = np.where(outside, np.abs(distance), 0)
    if specks > _SPECKS * np.count_nonzero(left):
        return False
    near = np.asarray(ndimage.maximum_filter(core, size=2 * _REACH + 3), bool)
    return bool(left[~near].sum(dtype=np.float64) <= _FAR * left.sum(dtype=np.float64))


def _is_background(
    volume: Num[np.ndarray, "x y z"], border: Num[np.ndarray, "n"], background: float
) -> bool:
    """Whether half of the border is `background` or nearly so, and it is no noise around it."""
    distance = volume.astype(np.float32) - np.float32(background)
    level = level_of(distance)
    away = np.abs(border.astype(np.float32) - np.float32(background))
    if np.count_nonzero(away <= _QUIET * level) < _ZERO_BORDER * border.size:
        return False
    if np.count_nonzero(away == 0) >= _ALL_BUT * np.count_nonzero(away <= _FAINT * level):
        return True
    return _fades(distance, joined_to_border(_faint(distance, level)))


def _without_ringing(
    volume: Num[np.ndarray, "x y z"], background: float
) -> tuple[Bool[np.ndarray, "x y z"], bool]:
    """Returns the foreground, and whether there was ringing around it that was taken off."""
    exact = volume != background
    distance = volume.astype(np.float32) - np.float32(background)
    level = level_of(distance)
    faint = _faint(distance, level)
    if np.count_nonzero(faint & exact) < _RINGING * np.count_nonzero(exact):
        return exact, False
    outside = joined_to_border(faint)
    ringing = distance[outside & exact]
    inside = outside.size - np.count_nonzero(outside)
    if (
        ringing.size < _RINGING * inside
        or np.unique(ringing, return_counts=True)[1].max(initial=0) >= _ONE_VALUE * ringing.size
        or not _fades(distance, outside)
    ):
        return exact, False
    return ~outside, True
