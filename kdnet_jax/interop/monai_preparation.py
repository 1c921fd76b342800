"""Preparation of a scan by a MONAI bundle, before its network sees it."""

import dataclasses
from typing import Final, NoReturn

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import json_files, monai_config
from kdnet_jax.models import adapted

# Axes of a file that is stored as BraTS stores them, as MONAI's reader gives them.
_STORED: Final = "LPS"
# Transforms that change no intensity within the scan; what they crop or pad is put back.
_NEUTRAL: Final = (
    *("LoadImaged", "EnsureChannelFirstd", "AddChanneld", "AsChannelFirstd", "EnsureTyped"),
    *("ToTensord", "CastToTyped", "CropForegroundd", "SpatialPadd", "DivisiblePadd"),
    *("ConcatItemsd", "DeleteItemsd"),
)
_NORMALISE: Final = "NormalizeIntensityd"
_WINDOW: Final = "ScaleIntensityRanged"
_RESCALE: Final = "ScaleIntensityd"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What a network sees.

    Attributes:
        axes: the letters to which its array axes grow.
        spacing: voxel size in mm along these; `None`: the scan's own.
        normalisation: of each channel.
        statistics: of each channel, where they are "ct".
        is_turned: a transform turns every scan to these axes; else they are as the files have them.
    """

    axes: str
    spacing: json_files.Spacing | None
    normalisation: task_lib.Normalisation
    statistics: tuple[float, float, float, float] | None
    is_turned: bool


def read(config: monai_config.Config, *, channels: int, is_glioma: bool) -> Preparation:
    """Returns what the transforms of a bundle's configs do.

    Args:
        config: the bundle's configs.
        channels: of the network's input.
        is_glioma: only z-scores over what is not 0 are taken, as the glioma's task has them.

    Raises:
        UserError: a transform is not known to leave what is done here as it is.
    """
    path, chain = config.transforms()
    axes, spacing, normalised, is_turned = _STORED, None, None, False
    for index, each in enumerate(chain):
        name, where = monai_config.class_name(each), f"{path}: preprocessing[{index}]"
        if monai_config.is_off(each, where):
            continue
        keys = config.resolve(path, each.get("keys"), f"{where}.keys")
        if each.get("as_closest_canonical") is True:  # of LoadImaged and Orientationd
            axes, spacing, is_turned = "RAS", _turned(spacing, axes, "RAS"), True
            continue
        # Prediction has no label.
        if keys in ("label", ["label"]) or name.startswith("Rand") or name in _NEUTRAL:
            continue
        if name == "Orientationd":
            where += ", Orientationd.axcodes"
            new = json_files.axes(config.resolve(path, each.get("axcodes"), where), where)
            axes, spacing, is_turned = new, _turned(spacing, axes, new), True
        elif name == "Spacingd":
            where += ", Spacingd.pixdim"
            spacing = json_files.spacing(config.resolve(path, each.get("pixdim"), where), where)
        elif name in _READERS and (name == _NORMALISE or not is_glioma):
            where += f", {name}"
            if normalised:
                raise UserError(f"{where} comes after another normalisation; only one is taken.")
            given = config.resolve_object(path, monai_config.arguments(each), where)
            normalised = _READERS[name](given, channels, where, is_glioma)
        else:
            raise UserError(
                f"{where} is {name or each}, which has no counterpart here, so the network would "
                "see other scans than it was trained on."
            )
    if normalised is None:
        known = (_NORMALISE,) if is_glioma else tuple(_READERS)
        raise UserError(
            f"{path}: preprocessing has no {' or '.join(known)}; only such networks are taken."
        )
    return Preparation(axes, spacing, *normalised, is_turned)


def _turned(
    spacing: json_files.Spacing | None, before: str, after: str
) -> json_files.Spacing | None:
    if not isinstance(spacing, tuple):
        return spacing
    return adapted.from_spl(adapted.to_spl(spacing, before), after)


# ----------------------------------------------------------------------------- intensities

_Normalised = tuple[task_lib.Normalisation, tuple[float, float, float, float] | None]


def _zscore(given: typed.JsonView, channels: int, where: str, is_glioma: bool) -> _Normalised:
    fixed = [key for key in ("subtrahend", "divisor") if given.get(key) is not None]
    nonzero, separate = given.get("nonzero") is True, given.get("channel_wise") is True
    if is_glioma and (not nonzero or not separate or fixed):
        _refuse(
            given, where, "nonzero=true, channel_wise=true, by the scan's own mean and deviation,"
        )
    if fixed or not (separate or channels == 1):
        _refuse(given, where, "channel_wise=true, by the scan's own mean and deviation,")
    return ("zscore_nonzero" if nonzero else "zscore"), None


def _window(given: typed.JsonView, channels: int, where: str, is_glioma: bool) -> _Normalised:
    """A fixed range to another and cut: (x - mean) / deviation, the mean being what becomes 0."""
    edges = [given.get(key) for key in ("a_min", "a_max", "b_min", "b_max")]
    numbers = [float(edge) for edge in edges if type(edge) is int or type(edge) is float]
    if len(numbers) < len(edges) or given.get("clip") is not True:
        _refuse(given, where, "a_min, a_max, b_min and b_max as numbers, with clip=true,")
    low, high, bottom, top = numbers
    if not (low < high and bottom < top):
        _refuse(given, where, "a_min below a_max and b_min below b_max")
    deviation = (high - low) / (top - bottom)
    return "ct", (low, high, low - bottom * deviation, deviation)


def _rescale(given: typed.JsonView, channels: int, where: str, is_glioma: bool) -> _Normalised:
    separate = channels == 1 or given.get("channel_wise") is True
    unit = (given.get("minv", 0), given.get("maxv", 1), given.get("factor")) == (0, 1, None)
    if not separate or not unit:
        _refuse(given, where, "channel_wise=true, to 0..1,")
    return "rescale", None


_READERS: Final = {_NORMALISE: _zscore, _WINDOW: _window, _RESCALE: _rescale}


def _refuse(given: typed.JsonView, where: str, expected: str) -> NoReturn:
    shown = {key: value for key, value in given.items() if key != "keys"}
    raise UserError(f"{where} is {shown}; only {expected} can be taken here.")
