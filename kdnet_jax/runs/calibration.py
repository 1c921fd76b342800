"""Calibration of a network: its temperature, and how far its volumes were off on validation cases.

It lies in a run's folder, with the parameters that it belongs to, and in `model.json`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from kdnet_jax import task as task_lib
from kdnet_jax.config import values
from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError

FILE: Final = "calibration.json"
_POSITIVE: Final = values.Number(0, 100, without_low=True)
_LOG_RATIO: Final = values.Number(-20, 20)
_DEVIATION: Final = values.Number(0, 20)
# A deviation of two cases says nothing.
FEWEST_CASES: Final = 3
_CASES: Final = values.Whole(FEWEST_CASES, 10**6)


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
        temperature: T; 1 leaves the probabilities as they are.
        volumes: of each region, in the order of the task; empty: too few validation cases.
    """

    temperature: float = 1.0
    volumes: tuple[VolumeError, ...] = ()


NONE: Final = Calibration()


def to_json(calibration: Calibration, task: task_lib.Task) -> typed.Json:
    """Returns it as JSON; {} if nothing was found."""
    if calibration == NONE:
        return {}
    errors = zip(task.region_names, calibration.volumes, strict=False)
    return {
        "temperature": calibration.temperature,
        "volume_errors": {name: error._asdict() for name, error in errors},
    }


def from_json(given: object, task: task_lib.Task) -> Calibration:
    """Returns what `to_json` wrote.

    Raises:
        UserError: it is no calibration of the task's regions.
    """
    if given == {}:
        return NONE
    if not (isinstance(given, dict) and given.keys() == {"temperature", "volume_errors"}):
        raise UserError(f"calibration is {given!r:.80}; expected temperature and volume_errors.")
    values.check("the temperature", given["temperature"], _POSITIVE)
    errors = given["volume_errors"]
    if not isinstance(errors, dict) or (errors and errors.keys() != set(task.region_names)):
        raise UserError(
            f"volume_errors is {errors!r:.80}; expected one for each of "
            f"{', '.join(task.region_names)}."
        )
    found = [_error(name, errors[name]) for name in task.region_names] if errors else []
    return Calibration(float(given["temperature"]), tuple(found))


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
    task: task_lib.Task,
    params_hash: str,
    about: Mapping[str, float],
) -> None:
    """Writes the file.

    Args:
        folder: the run's.
        calibration: what was found.
        task: what is segmented.
        params_hash: of the parameters that it was found for.
        about: what else was measured on the validation cases.
    """
    document = {
        "parameters_sha256": params_hash,
        "calibration": to_json(calibration, task),
        "validation": dict(about),
    }
    files.write_text(folder / FILE, json.dumps(document, indent=1) + "\n")


def read(folder: pathlib.Path, task: task_lib.Task, params_hash: str) -> Calibration | None:
    """Returns the calibration of these parameters; `None` where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        document = documents.read_object(path)
        if document["parameters_sha256"] != params_hash:
            return None
        return from_json(document["calibration"], task)
    except (KeyError, UserError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it and start the run's python -m kdnet_jax.main "
            "again: it is measured anew."
        ) from error
