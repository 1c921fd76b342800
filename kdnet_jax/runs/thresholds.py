"""Thresholds of a run's regions, as they lie in its folder, with the parameters they belong to."""

import json
import pathlib
from collections.abc import Mapping
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, files
from kdnet_jax.errors import UserError
from kdnet_jax.runs import model as model_lib

FILE: Final = "thresholds.json"


def write(
    folder: pathlib.Path,
    model: model_lib.Model,
    params_hash: str,
    dice: Mapping[str, float],
) -> None:
    """Writes the file.

    Args:
        folder: the run's.
        model: with its thresholds.
        params_hash: of the parameters that they were chosen for.
        dice: region -> mean Dice over the validation cases.
    """
    document = {
        "thresholds": model.threshold_of,
        "parameters_sha256": params_hash,
        "validation_dice": dict(dice),
    }
    files.write_text(folder / FILE, json.dumps(document, indent=1) + "\n")


def read(folder: pathlib.Path, task: task_lib.Task, params_hash: str) -> tuple[float, ...]:
    """Returns the thresholds in the order of the task; () where none are chosen for the parameters.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        document = documents.read_object(path)
        if document["parameters_sha256"] != params_hash:
            return ()
        return model_lib.read_thresholds(document["thresholds"], task)
    except (KeyError, UserError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it and start the run's python -m kdnet_jax.main "
            "again: they are chosen anew."
        ) from error
