"""Model: all that is needed to use a trained network on scans, and its form in JSON."""

import dataclasses
from typing import Final

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import keys, values
from kdnet_jax.core import typed
from kdnet_jax.data.scans import geometry
from kdnet_jax.data.sources import labels
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.models import heads, networks
from kdnet_jax.runs import calibration as calibration_lib

_KINDS: Final = {
    "spacing": values.OneOr(values.Several(values.Number(0, 100, without_low=True), 3, 3)),
    "window": keys.KEYS["inference.patch"].kind,
    "overlap": keys.KEYS["inference.overlap"].kind,
    "mirror": keys.KEYS["inference.mirror"].kind,
    "whole": keys.KEYS["inference.whole"].kind,
    "space": keys.KEYS["mesh.space"].kind,
    "orientation": keys.KEYS["data.orientation"].kind,
    "allow_skull": keys.KEYS["data.allow_skull"].kind,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, what it sees, and how whole scans go through it.

    Attributes:
        task: what is segmented.
        role: "teacher", "baseline" or "student".
        network: its form.
        modalities: the sequences that it sees, in the order of its channels.
        spacing: the working voxel size in mm, one number or one each along depth, height and
            width; `None` keeps the scan's own.
        window: edges of the prediction window, "d h w" in voxels.
        overlap: share of a window that its neighbour covers too.
        mirror: average over the 8 mirror images.
        whole: no windows: a scan in one pass.
        space: devices that shared the depth of a patch in training.
        orientation: see `prepare.prepare_case`.
        allow_skull: scans with the skull on were taken in training.
        resection_cavity: what a resection cavity counted as.
        thresholds: of the regions, in the order of the task, chosen on validation cases; empty: the
            fixed decision (`heads.Head.decide`).
        calibration: of its probabilities, measured on validation cases.
    """

    task: task_lib.Task
    role: str
    network: networks.Network
    modalities: tuple[str, ...]
    spacing: experiment_lib.Spacing
    window: tuple[int, int, int]
    overlap: float = 0.5
    mirror: bool = False
    whole: bool = False
    space: int = 1
    orientation: str = geometry.HEADER
    allow_skull: bool = False
    resection_cavity: str = "background"
    thresholds: tuple[float, ...] = ()
    calibration: calibration_lib.Calibration = calibration_lib.NONE

    @property
    def head(self) -> heads.Head:
        """What the outputs are."""
        return heads.Head(self.task, self.network.head)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: classes or regions."""
        return self.head.outputs

    @property
    def threshold_of(self) -> dict[str, float]:
        """Region -> threshold; empty: the fixed decision."""
        return dict(zip(self.task.region_names, self.thresholds, strict=False))

    @property
    def decision(self) -> str:
        """How probabilities become a mask, in words."""
        if self.thresholds:
            return ", ".join(f"{name} above {limit:g}" for name, limit in self.threshold_of.items())
        return "the most probable class" if self.head.kind == "softmax" else "each region above 0.5"


@dataclasses.dataclass(frozen=True)
class KnownCases:
    """Cases that a network, or its teacher, was trained or chosen on.

    Attributes:
        ids: of those that are noted.
        complete: there are no others.
    """

    ids: tuple[str, ...] = ()
    complete: bool = False


def of_experiment(experiment: experiment_lib.Experiment) -> Model:
    """Returns the model that an experiment trains."""
    data, inference = experiment.data, experiment.inference
    return Model(
        task=experiment.task,
        role=experiment.role,
        network=experiment.network,
        modalities=experiment.modalities,
        spacing=data.spacing,
        window=inference.patch,
        overlap=inference.overlap,
        mirror=inference.mirror,
        whole=inference.whole,
        space=experiment.mesh.space,
        orientation=data.orientation,
        allow_skull=data.allow_skull,
        resection_cavity=data.resection_cavity,
    )


def to_json(model: Model) -> typed.Json:
    """Returns the model as JSON."""
    plain = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return plain | {
        "network": networks.to_json(model.network),
        "task": dataset_json.to_json(model.task),
        "thresholds": model.threshold_of,
        "calibration": calibration_lib.to_json(model.calibration, model.head),
    }


def from_json(plain: typed.JsonView) -> Model:
    """Returns the model that `to_json` wrote.

    Raises:
        UserError: its network is of an unknown kind, or a value is invalid.
        TypeError: fields are missing, or unknown.
    """
    listed = ("modalities", "window", "spacing")
    tuples = {key: tuple(plain[key]) for key in listed if isinstance(plain.get(key), list)}
    parts = {
        "network": networks.from_json(plain["network"]),
        "task": dataset_json.from_json(plain["task"], "its task"),
    }
    if "thresholds" in plain:
        tuples["thresholds"] = read_thresholds(plain["thresholds"], parts["task"])
    parts["calibration"] = calibration_lib.NONE
    model = Model(**{**plain, **tuples, **parts})
    _check(model)
    found = calibration_lib.from_json(plain.get("calibration", {}), model.head)
    return dataclasses.replace(model, calibration=found)


def read_thresholds(given: object, task: task_lib.Task) -> tuple[float, ...]:
    """Returns the thresholds of a task's regions from region -> threshold; of {}: none.

    Raises:
        UserError: these are no thresholds of the task's regions.
    """
    kind = values.Number(0, 1, without_low=True, without_high=True)
    names = task.region_names
    if given == {}:
        return ()
    if not (isinstance(given, dict) and given.keys() == set(names)):
        raise UserError(
            f"thresholds is {given!r:.80}; expected one for each of {', '.join(names)}."
        )
    for name in names:
        values.check(f"the threshold of {name}", given[name], kind)
    return tuple(float(given[name]) for name in names)


def _check(model: Model) -> None:
    """Raises UserError for a value that no model has."""
    check_choice("role", model.role, keys.ROLES)
    if model.task.unscored:
        choices = labels.cavity_choices(model.task)
        check_choice("resection_cavity", model.resection_cavity, choices)
    names, known = model.modalities, model.task.modalities
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise UserError(f"modalities is {names}; expected each once of {', '.join(known)}.")
    if model.network.out_channels != len(model.outputs):
        raise UserError(
            f"the network has {model.network.out_channels} outputs, but its task {model.task.name} "
            f"expects {', '.join(model.outputs)}."
        )
    for key, kind in _KINDS.items():
        value = getattr(model, key)
        if not kind.fits(value) and (key, value) != ("spacing", None):
            raise UserError(f"{key} is {value!r:.80}; expected {kind.words}.")
    geometry.check_orientation(model.orientation)
