"""A model that was handed over: `model.json` beside its parameters, and nothing else is needed.

    DIR/model.json          what it is and how it is used, where it comes from, its scores
    DIR/params/             its parameters, an Orbax checkpoint
    DIR/training_data.json  what the intensities of its training cases look like, where it is known

`export` writes one of a run, and a teacher of another tool becomes one. The parameters go onto any
mesh; to read them neither a config nor the tool that trained them is needed.
"""

import dataclasses
import json
import pathlib

from jaxtyping import PyTree

from kdnet_jax import dataset_json
from kdnet_jax.core import checksums, documents, files, typed
from kdnet_jax.data.scans import familiarity, intensities
from kdnet_jax.errors import UserError
from kdnet_jax.models import layers
from kdnet_jax.runs import model as model_lib
from kdnet_jax.training import saved_checkpoints

FILE, PARAMS = dataset_json.MODEL_FILE, "params"
_FORMAT, _VERSION = "kdnet_jax model", 1
_AXES = "b d h w m: depth grows to superior, height to posterior, width to the left"
_INTENSITIES = {
    "zscore_nonzero": "each sequence separately: (x - mean) / standard deviation over its voxels "
    f"that are not background, cut at +-{intensities.MAX_Z:g}; 0 in the background",
    "zscore": "(x - mean) / standard deviation over all voxels of the box that holds what is not "
    f"0, cut at +-{intensities.MAX_Z:g}",
    "ct": "cut at low and high, then (x - mean) / deviation, of the task's statistics",
    "rescale": "to 0..1 by its smallest and largest value",
    "none": "as stored",
}


def _input(model: model_lib.Model) -> typed.Json:
    """Returns what the network expects of its input, in words."""
    kinds = {name: model.task.channel(name).normalisation for name in model.modalities}
    words = {name: _INTENSITIES[kind] for name, kind in kinds.items()}
    alike = len(set(kinds.values())) == 1
    return {"axes": _AXES, "intensities": next(iter(words.values())) if alike else words}


@dataclasses.dataclass(frozen=True)
class About:
    """What `model.json` says.

    Attributes:
        model: the network and how it is used.
        step: of the training, that the parameters come from.
        params_hash: SHA-256 of their content.
        known: cases that it, or its teacher, was trained or chosen on.
        document: all of it.
    """

    model: model_lib.Model
    step: int
    params_hash: str
    known: model_lib.KnownCases
    document: typed.Json


def is_model(folder: pathlib.Path) -> bool:
    """Returns whether this is a model folder."""
    return (folder / FILE).is_file()


def fill(
    folder: pathlib.Path,
    model: model_lib.Model,
    params: PyTree,
    *,
    step: int,
    known: model_lib.KnownCases,
    about: typed.JsonView,
    training_data: typed.JsonView | None = None,
) -> None:
    """Writes a model into an empty folder (see `files.new_folder`).

    Args:
        folder: where.
        model: the network and how it is used.
        params: its parameters.
        step: of the training, that they come from.
        known: cases that it, or its teacher, was trained or chosen on.
        about: what else `model.json` is to say: scores, licence, provenance.
        training_data: see `familiarity.measure`.
    """
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        **model_lib.to_json(model),
        "outputs": model.outputs,
        "classes": model.task.classes,
        "region_classes": {each.name: each.members for each in model.task.regions},
        "input": _input(model),
        "parameters": layers.parameter_count(params),
        "parameters_sha256": checksums.content_hash(params),
        "step": step,
        "known_cases": known.ids,
        "known_cases_complete": known.complete,
        **about,
    }
    saved_checkpoints.save_params(folder / PARAMS, params)
    if training_data is not None:
        familiarity.write(folder, training_data)
    files.write_text(folder / FILE, json.dumps(document, indent=1) + "\n")


def read(folder: pathlib.Path) -> About:
    """Reads `model.json`.

    Raises:
        UserError: it is damaged, or of a newer version.
    """
    path = folder / FILE
    try:
        # Older models decide by the most probable class, and were not calibrated.
        document = {"thresholds": {}, "calibration": {}, **documents.read_json(path)}
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise UserError(
                f"it is of the format {document['format']!r}, version {document['version']!r}; "
                f"expected {_FORMAT!r}, {_VERSION}. Use the version of kdnet_jax that wrote it."
            )
        names = [field.name for field in dataclasses.fields(model_lib.Model)]
        known = model_lib.KnownCases(
            tuple(map(str, document["known_cases"])), bool(document["known_cases_complete"])
        )
        return About(
            model_lib.from_json({name: document[name] for name in names}),
            int(document["step"]),
            str(document["parameters_sha256"]),
            known,
            document,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Export the model again.") from error


def read_params(folder: pathlib.Path, about: About, like: PyTree) -> PyTree:
    """Reads the parameters, onto this process's first device.

    Args:
        folder: the model folder.
        about: what its `model.json` says.
        like: their shapes (`trained.expected_params`).

    Raises:
        UserError: they cannot be read, or are not those that were written.
    """
    params = saved_checkpoints.read_params(folder / PARAMS, like)
    if checksums.content_hash(params) != about.params_hash:
        raise UserError(
            f"{folder / PARAMS}: its content is not what {FILE} says (parameters_sha256). It was "
            "damaged or mixed up: export the model again."
        )
    return params
