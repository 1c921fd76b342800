"""From a config to checked values.

Everything that can be wrong in a config alone is found here, before any data is read.
"""

import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import config_dict

from kdnet_jax import config_values, dataset_json, documents, optimizers, sharding, steps, train
from kdnet_jax import task as task_lib
from kdnet_jax.data import augment, geometry, labels, layouts, placement, skipping, splits
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.losses import distillation
from kdnet_jax.models import heads, networks, unet

ROLES = ("teacher", "baseline", "student")
_BFLOAT16 = {"auto": None, "true": True, "false": False}
LOSS_FORMS = ("dice_ce", "dice_bce")
# mm: of all axes, or of depth, height and width; `None`: each scan's own.
Spacing = float | tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of a config that steps and loops take, each checked.

    Attributes:
        task: what is segmented.
        data_modalities: sequences that are read of each case, in order.
        modalities: sequences that the network sees.
        network: its form.
        patch: edges of a training patch, voxels.
        window: edges of the prediction window, voxels.
        loss: the loss against the reference.
        distillation: of a student; `None` for the other roles.
        optimizer: rule and schedule.
        augment: what is drawn for each patch.
        train: budget and intervals.
        spacing: working voxel size in mm, one number or one each along depth, height and width;
            `None` keeps the scan's own.
        profile: steps to profile; 0 none.
        state: how parameters and optimizer state lie on the mesh; see `sharding.state_sharding`.
    """

    task: task_lib.Task
    data_modalities: tuple[str, ...]
    modalities: tuple[str, ...]
    network: networks.Network
    patch: tuple[int, int, int]
    window: tuple[int, int, int]
    loss: steps.LossOptions
    distillation: distillation.DistillationOptions | None
    optimizer: optimizers.OptimizerOptions
    augment: augment.AugmentOptions
    train: train.TrainOptions
    spacing: Spacing
    profile: int = 0
    state: str = "replicated"

    @property
    def head(self) -> heads.Head:
        """What the network's outputs are."""
        return heads.Head(self.task, self.network.head)

    @property
    def channels(self) -> tuple[int, ...]:
        """Positions of the network's sequences among the data's."""
        return tuple(self.data_modalities.index(name) for name in self.modalities)


def completed(
    config: config_dict.ConfigDict, task: task_lib.Task | None = None
) -> config_dict.ConfigDict:
    """Returns a copy of a config in which what the task decides is filled in.

    Args:
        config: of a role or a study.
        task: what `config.task` names, where that was read before.

    Raises:
        UserError: `task` names none, or a student's channel is not given and the task has none.
    """
    values = config.to_dict()
    config_values.check(_flat(values))
    task = task or dataset_json.read(values["task"])
    data, model = values["data"], values["model"]
    data["modalities"] = data["modalities"] or ",".join(task.modalities)
    if "teacher" in values:
        teacher = values["teacher"]
        teacher["modalities"] = teacher["modalities"] or data["modalities"]
    if not model["modalities"]:
        everything = values["role"] == "teacher"
        model["modalities"] = data["modalities"] if everything else _student_channel(task)
    if not isinstance(data["spacing"], (tuple, list)):
        data["spacing"] = float(data["spacing"])
    return config_dict.ConfigDict(values)


def _student_channel(task: task_lib.Task) -> str:
    if task.student is None:
        raise UserError(
            f"model.modalities is empty, and the task {task.name} names no channel for a student. "
            f"Set --config.model.modalities to one of {', '.join(task.modalities)}."
        )
    return task.student


def read_spacing(config: config_dict.ConfigDict) -> Spacing:
    """Returns the working voxel size of a config.

    Raises:
        UserError: one of three numbers is 0.
    """
    if not isinstance(config.data.spacing, (tuple, list)):
        return config.data.spacing or None
    d, h, w = map(float, config.data.spacing)
    if not d * h * w:
        raise UserError(
            f"data.spacing is {d:g},{h:g},{w:g}: give three numbers above 0 along depth, height "
            "and width, or 0 alone to keep each scan's own voxels."
        )
    return d if d == h == w else (d, h, w)


def read_settings(config: config_dict.ConfigDict, task: task_lib.Task | None = None) -> Settings:
    """Checks a config and returns its values.

    Args:
        config: of a role.
        task: what `config.task` names, where that was read before.

    Raises:
        UserError: for the first value that cannot be.
    """
    config_values.check(_flat(config.to_dict()))
    check_choice("role", config.role, ROLES)
    task = task or dataset_json.read(config.task)
    config = completed(config, task)
    data_modalities = task.read_modalities(config.data.modalities, "data.modalities")
    modalities = task.read_modalities(config.model.modalities, "model.modalities")
    absent = [name for name in modalities if name not in data_modalities]
    if absent:
        raise UserError(
            f"model.modalities asks for {', '.join(absent)}, but data.modalities is "
            f"{config.data.modalities}. Add it there, or choose among those."
        )
    patch, window = tuple(config.loader.patch), tuple(config.inference.patch)
    network = network_config(config, task)
    networks.check_patch(patch, network, "loader.patch")
    networks.check_patch(window, network, "inference.patch")
    # Runs of before the key have none.
    check_choice("loader.cache", config.loader.get("cache", "auto"), placement.CHOICES)
    check_choice("mesh.state", config.mesh.get("state", "replicated"), sharding.STATES)
    check_choice("data.on_read_error", config.data.get("on_read_error", "stop"), skipping.CHOICES)
    _check_cavity(config.data.resection_cavity, task)
    check_choice("loss.form", config.loss.form, LOSS_FORMS)
    if config.train.get("accumulate", 1) > 1 and config.loss.over_batch:
        raise UserError(
            f"train.accumulate is {config.train.accumulate} and loss.over_batch is true: a Dice "
            "over the whole batch cannot be had from its parts. Set --config.train.accumulate=1 or "
            "--config.loss.over_batch=false."
        )
    _check_split(config)
    geometry.check_orientation(config.data.orientation)
    check_choice("data.release", config.data.release, (layouts.AUTO, *layouts.RELEASES))
    if config.data.label_convention:
        check_choice(
            "data.label_convention",
            config.data.label_convention,
            labels.conventions_of(task),
        )
    kd = config.get("distillation")
    return Settings(
        task=task,
        data_modalities=data_modalities,
        modalities=modalities,
        network=network,
        patch=patch,
        window=window,
        loss=steps.LossOptions(**config.loss),
        distillation=distillation.DistillationOptions(**kd) if kd else None,
        optimizer=optimizers.OptimizerOptions(**config.optimizer),
        augment=augment.fitted(
            augment.choose(**config.augment), task, data_modalities, read_spacing(config)
        ),
        train=train.TrainOptions(**config.train),
        spacing=read_spacing(config),
        profile=config.get("profile", 0),
        state=config.mesh.get("state", "replicated"),
    )


def _check_cavity(choice: str, task: task_lib.Task) -> None:
    if task.unscored:
        check_choice("data.resection_cavity", choice, labels.cavity_choices(task))


def _check_split(config: config_dict.ConfigDict) -> None:
    """Refuses a split that cannot be, as far as the config tells: before any data is read."""
    section = config.split
    if section.file:
        return
    if section.folds:
        patients = None if config.data.data_dir else config.data.phantom.cases
        splits.check_folds(section.folds, section.fold, section.validation, patients)
    else:
        splits.check_fractions((section.train, section.validation, section.test))


def network_config(config: config_dict.ConfigDict, task: task_lib.Task) -> networks.Network:
    """Returns the network that the `model` section of a config describes, for a task and voxels."""
    model, spacing = config.model, read_spacing(config)
    # "planes" was the choice of the convolutions' form in runs of before "convolutions".
    others = ("modalities", "planes", "family")
    values = {key: value for key, value in model.items() if key not in others}
    chosen = str(model.bfloat16).lower()
    check_choice("model.bfloat16", chosen, _BFLOAT16)
    values["bfloat16"] = _BFLOAT16[chosen]
    family = model.get("family", networks.UNET)
    check_choice("model.family", family, (networks.UNET, *networks.FAMILIES))
    outputs = len(heads.Head(task, values["head"]).outputs)
    network = unet.UNetConfig(**values, out_channels=outputs)  # checks the values for all kinds
    if network.deep_supervision and len(network.widths) < 4:
        raise UserError(
            f"model.deep_supervision is true, but model.widths has {len(network.widths)} levels: "
            "below four there is none between the finest and the coarsest to supervise. Set "
            "--config.model.deep_supervision=false."
        )
    edges = spacing if isinstance(spacing, tuple) else None
    network = networks.planned(network, edges, tuple(config.loader.patch))
    if family == networks.UNET:
        return network
    return networks.of_family(family, network)


def teacher_config(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns the config of the teacher that a student's run has to train first.

    It is the student's own, but for the role, the sequences, the widths and the budget.
    """
    teacher = config_dict.ConfigDict(config.to_dict())
    del teacher["distillation"]
    del teacher["teacher"]
    teacher.role = "teacher"
    teacher.model.modalities = config.teacher.modalities
    teacher.model.widths = config.teacher.widths or config.model.widths
    teacher.train.steps = config.teacher.steps
    return teacher


def to_json(config: config_dict.ConfigDict) -> str:
    """Returns the config as JSON text with a stable order."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_config(run: pathlib.Path) -> config_dict.ConfigDict:
    """Reads the config of a run's folder.

    Raises:
        UserError: if the folder is no run.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run} is no run of kdnet_jax: it has no config.json. Give the folder that python -m "
            "kdnet_jax.main wrote (its --workdir), or one that python -m kdnet_jax.export wrote."
        )
    try:
        values = documents.read_json(path)
        return config_dict.ConfigDict(_tuples(values))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Restore it or train again.") from error


def read_task(run: pathlib.Path) -> task_lib.Task:
    """Returns the task of a run's folder.

    Raises:
        UserError: its file is damaged.
    """
    path = run / dataset_json.TASK_FILE
    if not path.is_file():
        return task_lib.DEFAULT
    return dataset_json.parse(documents.read_object(path), str(path))


def read_run(run: pathlib.Path) -> tuple[config_dict.ConfigDict, Settings]:
    """Reads the config of a run's folder, and its values.

    Raises:
        UserError: if the folder is no run, or one of another version.
    """
    config = read_config(run)
    try:
        return config, read_settings(config, read_task(run))
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{run / 'config.json'} is not of this version of kdnet_jax ({error}). Use the "
            "version that wrote it, or train again."
        ) from error


def _tuples(values: Any) -> Any:
    # JSON has no tuples; configs have no lists.
    if isinstance(values, dict):
        return {key: _tuples(value) for key, value in values.items()}
    return tuple(map(_tuples, values)) if isinstance(values, list) else values


def differences(
    ours: config_dict.ConfigDict, theirs: config_dict.ConfigDict
) -> list[tuple[str, Any, Any]]:
    """Returns (dotted key, ours, theirs) wherever two configs differ."""
    left, right = flatten(ours), flatten(theirs)
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def flatten(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns dotted key -> value of all that a config says."""
    return _flat(_explicit(config.to_dict()))


def _explicit(values: dict[str, Any]) -> dict[str, Any]:
    # What is drawn counts, not whether a preset or a key of its own says so.
    chosen = augment.choose(**values.get("augment", {}))
    return values | {"augment": dataclasses.asdict(chosen)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
