"""Calibration of a network: its temperature and biases, and the spread of its volumes.

It lies in a run's folder, with the parameters that it belongs to, and in `model.json`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from kdnet_jax.config import values
from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads

FILE: Final = "calibration.json"
_TEMPERATURE: Final = values.Number(0.04, 25)
_LOG_RATIO: Final = values.Number(-20, 20)
_DEVIATION: Final = values.Number(0, 20)
# Of 3 cases the range of a further one reaches 5 deviations to each side, further than any guess.
FEWEST_CASES: Final = 5
_KEYS: Final = ("temperature", "biases", "volume_errors")
_CASES: Final = values.Whole(FEWEST_CASES, 10**6)


class _OtherVersionError(UserError):
    """A calibration that another version of kdnet_jax wrote."""


class VolumeError(NamedTuple):
    """Of a region: ln((V + 1 ml) / (E + 1 ml)) over validation cases.

    V is the volume of the reference, E the sum of the calibrated probabilities. The 1 ml keeps
    small and missing regions from counting as large errors.

    Attributes:
        mean: over the cases.
        deviation: over the cases, with n - 1.
        cases: n.
    """

    mean: float
    deviation: float
    cases: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was found on validation cases.

    Attributes:
        temperature: T of z / T + b.
        biases: b of each output; empty: 0.
        volumes: of each region, in the order of the task; empty: too few validation cases.
    """

    temperature: float = 1.0
    biases: tuple[float, ...] = ()
    volumes: tuple[VolumeError, ...] = ()

    def apply(
        self, head: heads.Head, probs: Float[np.ndarray, "*grid k"]
    ) -> Float[np.ndarray, "*grid k"]:
        """Returns the calibrated probabilities of the head's outputs."""
        return head.calibrated(probs, self.temperature, self.biases)

    def undo(
        self, head: heads.Head, probs: Float[np.ndarray, "*grid k"]
    ) -> Float[np.ndarray, "*grid k"]:
        """Returns what `apply` was given, to rounding."""
        # One after the other: e^(-T b) may be too large for a float.
        unbiased = head.calibrated(probs, 1.0, [-bias for bias in self.biases])
        return head.calibrated(unbiased, 1 / self.temperature)


NONE: Final = Calibration()


def to_json(calibration: Calibration, head: heads.Head) -> typed.Json:
    """Returns it as JSON; {} if nothing was found."""
    if calibration == NONE:
        return {}
    errors = zip(head.task.region_names, calibration.volumes, strict=False)
    return {
        "temperature": calibration.temperature,
        "biases": dict(zip(head.outputs, calibration.biases, strict=False)),
        "volume_errors": {name: error._asdict() for name, error in errors},
    }


def from_json(given: object, head: heads.Head) -> Calibration:
    """Returns what `to_json` wrote.

    Raises:
        UserError: it is no calibration of the head's outputs and regions.
    """
    if given == {}:
        return NONE
    if not isinstance(given, dict):
        raise UserError(f"calibration is {given!r:.80}; expected {', '.join(_KEYS)}.")
    if given.keys() != set(_KEYS):
        raise _OtherVersionError(
            f"its calibration has {', '.join(given)}, where this version has {', '.join(_KEYS)}"
        )
    values.check("the temperature", given["temperature"], _TEMPERATURE)
    biases = _by_name("biases", given["biases"], head.outputs)
    for name, bias in biases.items():
        values.check(f"the bias of {name}", bias, _LOG_RATIO)
    errors = _by_name("volume_errors", given["volume_errors"], head.task.region_names)
    return Calibration(
        float(given["temperature"]),
        tuple(map(float, biases.values())),
        tuple(_error(name, error) for name, error in errors.items()),
    )


def _by_name(key: str, given: object, names: Sequence[str]) -> dict[str, Any]:
    """Returns an object with a value for each name, in their order, or an empty one."""
    if not isinstance(given, dict) or (given and given.keys() != set(names)):
        raise UserError(f"{key} is {given!r:.80}; expected one for each of {', '.join(names)}.")
    return {name: given[name] for name in names} if given else {}


def _error(region: str, given: object) -> VolumeError:
    if not (isinstance(given, dict) and given.keys() == set(VolumeError._fields)):
        raise UserError(
            f"the volume error of {region} is {given!r:.80}; expected "
            f"{', '.join(VolumeError._fields)}."
        )
    values.check(f"the mean of {region}", given["mean"], _LOG_RATIO)
    values.check(f"the deviation of {region}", given["deviation"], _DEVIATION)
    values.check(f"the number of cases of {region}", given["cases"], _CASES)
    return VolumeError(float(given["mean"]), float(given["deviation"]), int(given["cases"]))


def write(
    folder: pathlib.Path,
    calibration: Calibration,
    head: heads.Head,
    params_hash: str,
    about: Mapping[str, float],
) -> None:
    """Writes the file.

    Args:
        folder: the run's.
        calibration: what was found.
        head: what the outputs are.
        params_hash: of the parameters that it was found for.
        about: what else was measured on the validation cases.
    """
    document = {
        "parameters_sha256": params_hash,
        "calibration": to_json(calibration, head),
        "validation": dict(about),
    }
    files.write_text(folder / FILE, json.dumps(document, indent=1) + "\n")


def read(folder: pathlib.Path, head: heads.Head, params_hash: str) -> Calibration | None:
    """Returns the calibration of these parameters; `None` where there is none.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    path = folder / FILE
    remedy = "Remove it and start the run's python -m kdnet_jax.main again: it is measured anew."
    if not path.is_file():
        return None
    try:
        document = documents.read_object(path)
        if document["parameters_sha256"] != params_hash:
            return None
        return from_json(document["calibration"], head)
    except _OtherVersionError as error:
        raise UserError(f"{path} is of another version of kdnet_jax: {error}. {remedy}") from error
    except (KeyError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}). {remedy}") from error
