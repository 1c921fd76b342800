"""Reading of configs: a ConfigDict, or the config.json of a run, becomes an `Experiment`.

Everything that can be wrong in a config alone is found here, before any data is read.
"""

import pathlib
from typing import Final

from ml_collections import config_dict

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment, masking
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, keys
from kdnet_jax.core import documents, typed
from kdnet_jax.data import splits
from kdnet_jax.data.scans import geometry
from kdnet_jax.data.sources import labels
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.losses import distillation, objective, segmentation
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.training import optimizers, options

CONFIG: Final = "config.json"
_BFLOAT16: Final = {"auto": None, "true": True, "false": False}


def read(config: config_dict.ConfigDict) -> experiment_lib.Experiment:
    """Returns what the config of a role says.

    Raises:
        UserError: for the first invalid value.
    """
    return of_document(config.to_dict())


def read_run(run: pathlib.Path) -> experiment_lib.Experiment:
    """Returns what the config in a run's folder says.

    Raises:
        UserError: if the folder is no run, or one of another version.
    """
    document, task = read_document(run), read_task(run)
    try:
        return of_document(document, task)
    except UserError as error:
        raise UserError(f"{run / CONFIG}: {error}") from error


def read_document(run: pathlib.Path) -> typed.Json:
    """Returns the config in a run's folder, unchecked.

    Raises:
        UserError: if the folder is no run.
    """
    path = run / CONFIG
    if not path.is_file():
        why = "it has no config.json" if run.exists() else "there is no such folder"
        raise UserError(
            f"{run} is no run of kdnet_jax: {why}. Give the folder that python -m "
            "kdnet_jax.main wrote (its --workdir), or one that python -m kdnet_jax.export wrote."
        )
    try:
        return documents.tuples(documents.read_object(path))
    except UserError as error:
        raise UserError(f"{path} is damaged: {error} Restore it or train again.") from error


def read_task(run: pathlib.Path) -> task_lib.Task:
    """Returns the task of a run's folder.

    Raises:
        UserError: its file is damaged.
    """
    path = run / dataset_json.TASK_FILE
    if not path.is_file():
        return task_lib.DEFAULT
    return dataset_json.parse(documents.read_object(path), str(path))


def of_document(
    document: typed.JsonView, task: task_lib.Task | None = None
) -> experiment_lib.Experiment:
    """Returns what a config says, given as nested dictionaries.

    Args:
        document: the config of a role.
        task: what its key `task` names, where that was read before.

    Raises:
        UserError: for the first invalid value.
    """
    flat = flat_keys.flatten(document)
    flat_keys.check(flat)
    check_choice("role", flat.get("role", ""), keys.ROLES)
    flat_keys.check_complete(flat, flat["role"])
    task = task or dataset_json.read(flat["task"])
    document = _completed(flat, task)
    data = _data(document["data"], task)
    loader = experiment_lib.Loader(**document["loader"])
    inference = experiment_lib.Inference(**document["inference"])
    network = _network(document["model"], task, data.spacing, loader.patch)
    networks.check_patch(loader.patch, network, "loader.patch")
    networks.check_patch(inference.patch, network, "inference.patch")
    loss = segmentation.LossOptions(**document["loss"])
    budget = options.TrainOptions(**document["train"])
    if budget.accumulate > 1 and loss.over_batch:
        raise UserError(
            f"train.accumulate is {budget.accumulate} and loss.over_batch is true: a Dice over the "
            "whole batch cannot be computed from its parts. Set --config.train.accumulate=1 or "
            "--config.loss.over_batch=false."
        )
    kd = document.get("distillation")
    if kd and kd["standardize_logits"] and kd["kd_form"] != "kl":
        raise UserError(
            f"distillation.standardize_logits is true, which distillation.kd_form={kd['kd_form']} "
            "does not use. Set --config.distillation.kd_form=kl."
        )
    if kd and kd["standardize_logits"] and network.head == "regions":
        raise UserError(
            "distillation.standardize_logits is true and model.head is regions: the logit of a "
            "region has no others to be standardised with. Set "
            "--config.distillation.standardize_logits=false."
        )
    if kd and kd["mixup"] and loader.batch < 2:
        raise UserError(
            f"distillation.mixup is {kd['mixup']} and loader.batch is {loader.batch}: a sample has "
            "no other to be mixed with. Set --config.loader.batch=2 or "
            "--config.distillation.mixup=0."
        )
    _check_start(document)
    if loss.reconstructs:
        _check_reconstruction(document, masking.Cubes(loss.mask_share, loss.mask_edge))
    _check_dropout(document, task)
    return experiment_lib.Experiment(
        role=document["role"],
        preset=document["preset"],
        seed=document["seed"],
        profile=document["profile"],
        task=task,
        data=data,
        split=_split(document["split"], None if data.data_dir else data.phantom.cases),
        loader=loader,
        modalities=_modalities(document, data, task),
        network=network,
        loss=loss,
        distillation=distillation.DistillationOptions(**kd) if kd else None,
        optimizer=optimizers.OptimizerOptions(**document["optimizer"]),
        augment=augment.fitted(
            augment.choose(**document["augment"]), task, data.modalities, data.spacing
        ),
        train=budget,
        inference=inference,
        mesh=experiment_lib.Mesh(**document["mesh"]),
        teacher=_teacher(document, task) if document["role"] == "student" else None,
        document=document,
    )


def _completed(flat: typed.JsonView, task: task_lib.Task) -> typed.Json:
    """Returns the nested config in which what the task decides is filled in."""
    values = dict(flat)
    everything = values["data.modalities"] or ",".join(task.modalities)
    values["data.modalities"] = everything
    if "teacher.modalities" in values:
        values["teacher.modalities"] = values["teacher.modalities"] or everything
    if not values["model.modalities"]:
        of_teacher = values["role"] == "teacher"
        values["model.modalities"] = everything if of_teacher else _student_channel(task)
    if not isinstance(values["data.spacing"], (tuple, list)):
        values["data.spacing"] = float(values["data.spacing"])
    return flat_keys.nest(values)


def _student_channel(task: task_lib.Task) -> str:
    if task.student is None:
        raise UserError(
            f"model.modalities is empty, and the task {task.name} names no channel for a student. "
            f"Set --config.model.modalities to one of {', '.join(task.modalities)}."
        )
    return task.student


def _data(section: typed.JsonView, task: task_lib.Task) -> experiment_lib.Data:
    geometry.check_orientation(section["orientation"])
    convention = section["label_convention"] or None
    if convention:
        check_choice("data.label_convention", convention, labels.conventions_of(task))
    if task.unscored:
        choices = labels.cavity_choices(task)
        check_choice("data.resection_cavity", section["resection_cavity"], choices)
    read = {
        "label_convention": convention,
        "root": pathlib.Path(section["root"]),
        "modalities": task.read_modalities(section["modalities"], "data.modalities"),
        "spacing": _spacing(section["spacing"]),
        "phantom": experiment_lib.Phantom(**section["phantom"]),
    }
    return experiment_lib.Data(**{**section, **read})


def _spacing(given: float | tuple[float, ...] | list[float]) -> experiment_lib.Spacing:
    if not isinstance(given, (tuple, list)):
        return given or None
    d, h, w = map(float, given)
    if not d * h * w:
        raise UserError(
            f"data.spacing is {d:g},{h:g},{w:g}: give three numbers above 0 along depth, height "
            "and width, or 0 alone to keep each scan's own voxels."
        )
    return d if d == h == w else (d, h, w)


def _split(section: typed.JsonView, patients: int | None) -> experiment_lib.Split:
    """Reads the split; of `patients` where they are known before the data."""
    split = experiment_lib.Split(**section)
    if split.folds and not split.file:
        splits.check_folds(split.folds, split.fold, split.validation, patients)
    elif not split.file:
        splits.check_fractions((split.train, split.validation, split.test))
    return split


def _modalities(
    document: typed.JsonView, data: experiment_lib.Data, task: task_lib.Task
) -> tuple[str, ...]:
    asked = document["model"]["modalities"]
    if ";" in asked:
        raise UserError(
            f"model.modalities is {asked!r}: several students, with ; between their channels, are "
            "trained by python -m kdnet_jax.main with role student, from one teacher. Name the "
            "channels of one network here."
        )
    names = task.read_modalities(asked, "model.modalities")
    if absent := [name for name in names if name not in data.modalities]:
        raise UserError(
            f"model.modalities asks for {', '.join(absent)}, but data.modalities is "
            f"{document['data']['modalities']}. Add it there, or choose among those."
        )
    return names


def _check_dropout(document: typed.JsonView, task: task_lib.Task) -> None:
    """Raises UserError if sequences are to be dropped where there is no choice between several.

    Or if a teacher is to see cases without a sequence, and is never without one otherwise.
    """
    chance = document["augment"]["modality_dropout"]
    own = document["model"]["modalities"]
    if not chance:
        needs_it = document["role"] == "teacher" and document["data"]["incomplete"]
        if needs_it and len(task.read_modalities(own, "model.modalities")) > 1:
            raise UserError(
                "data.incomplete is true and augment.modality_dropout is 0: nothing would prepare "
                "the teacher for a case that lacks a sequence. Set "
                "--config.augment.modality_dropout to a probability such as 0.3, or "
                "--config.data.incomplete=false."
            )
        return
    section = document.get("teacher")
    if section and (section["checkpoint"] or section["maps"]):
        raise UserError(
            f"augment.modality_dropout is {chance}, but the teacher is trained already, and of a "
            "student no sequence is dropped. Leave it 0, and set it where the teacher is trained."
        )
    seen = section["modalities"] if section else own
    if len(task.read_modalities(seen, "modalities")) < 2:
        raise UserError(
            f"augment.modality_dropout is {chance}, but the network sees {seen} alone: nothing "
            "would be left of it. Set --config.augment.modality_dropout=0."
        )


def _check_start(document: typed.JsonView) -> None:
    """Raises UserError if a student is to start from two networks."""
    start = document["train"]["start"]
    if start and document.get("distillation", {}).get("init_from_teacher"):
        raise UserError(
            f"train.start is {start!r} and distillation.init_from_teacher is true: a student "
            "starts from one network. Set --config.distillation.init_from_teacher=false, or leave "
            "train.start empty."
        )


def _check_reconstruction(document: typed.JsonView, cubes: masking.Cubes) -> None:
    """Raises UserError for what a network that reconstructs its input has no use for."""
    if document["role"] == "student":
        raise UserError(
            "loss.form is reconstruction, which has no use for a teacher. Pretrain with "
            "configs/pretrain.py, and let the student start from that run: "
            "--config.train.start=DIR."
        )
    unused = {
        "loss.over_batch": False,
        "model.deep_supervision": False,
        "inference.thresholds": "fixed",
    }
    for key, off in unused.items():
        section, name = key.split(".")
        if document[section][name] != off:
            raise UserError(
                f"loss.form is reconstruction, which has no use for {key}. Set "
                f"--config.{key}={str(off).lower()}."
            )
    patch = document["loader"]["patch"]
    count, number = cubes.counts(patch)
    if not 0 < number < count:
        raise UserError(
            f"loss.mask_edge is {cubes.edge} and loss.mask_share {cubes.share}: of the {count} "
            f"cubes of a patch of {tuple(patch)} {number} would be hidden. Some have to be hidden, "
            "and some seen: set a smaller --config.loss.mask_edge, or another share."
        )


def _network(
    section: typed.JsonView,
    task: task_lib.Task,
    spacing: experiment_lib.Spacing,
    patch: tuple[int, int, int],
) -> networks.Network:
    given = {key: value for key, value in section.items() if key not in ("modalities", "family")}
    given["bfloat16"] = _BFLOAT16[section["bfloat16"]]
    outputs = len(heads.Head(task, section["head"]).outputs)
    network = unet.UNetConfig(**given, out_channels=outputs)  # checks the values for all kinds
    if network.deep_supervision and len(network.widths) < 4:
        raise UserError(
            f"model.deep_supervision is true, but model.widths has {len(network.widths)} levels: "
            "below four there is none between the finest and the coarsest to supervise. Set "
            "--config.model.deep_supervision=false."
        )
    network = networks.planned(network, spacing if isinstance(spacing, tuple) else None, patch)
    if section["family"] == networks.UNET:
        return network
    return networks.of_family(section["family"], network)


def _teacher(document: typed.JsonView, task: task_lib.Task) -> experiment_lib.Teacher:
    """Reads the teacher; one to train is the student but for role, channels, widths and budget."""
    section = document["teacher"]
    folds = tuple(filter(None, section["folds"].replace(" ", "").split(",")))
    to_train = None
    if section["maps"]:
        _check_maps(document)
    elif not section["checkpoint"]:
        if folds:
            raise UserError(
                f"teacher.folds is {section['folds']!r} and teacher.checkpoint is empty: they are "
                "folds of a teacher that is given. Give it, or leave teacher.folds empty."
            )
        to_train = of_document(teacher_document(document), task)
    teacher = experiment_lib.Teacher(
        checkpoint=section["checkpoint"],
        weights=tuple(section["weights"]),
        maps=section["maps"],
        folds=folds,
        to_train=to_train,
    )
    if teacher.weights and len(teacher.weights) != len(teacher.folders):
        raise UserError(
            f"teacher.weights has {len(teacher.weights)} numbers, and teacher.checkpoint names "
            f"{len(teacher.folders)} networks: {section['checkpoint']!r}. Give one for each, or "
            "none."
        )
    return teacher


def _check_maps(document: typed.JsonView) -> None:
    """Raises UserError for keys that ask for more of a teacher than its maps are."""
    section = document["teacher"]
    for key in ("checkpoint", "folds"):
        if section[key]:
            raise UserError(
                f"teacher.maps is {section['maps']!r} and teacher.{key} is {section[key]!r}: a "
                f"student has one teacher. Leave one of them empty."
            )
    kd = distillation.DistillationOptions(**document["distillation"])
    if kd.confidence == "agreement":
        raise UserError(
            f"teacher.maps is {section['maps']!r} and distillation.confidence is agreement: one "
            "map of a case does not say how far several teachers agree. Set "
            "--config.distillation.confidence=probability, or give their networks "
            "(--config.teacher.checkpoint)."
        )
    asked = [key for keys in objective.features_of(kd).values() for key in keys]
    if asked or kd.init_from_teacher:
        off = [f"--config.{key}=0" for key in asked]
        if kd.init_from_teacher:
            off.append("--config.distillation.init_from_teacher=false")
        raise UserError(
            f"teacher.maps is {section['maps']!r}: a folder of probabilities has no features to "
            f"compare the student's with, and no parameters. Set {' '.join(off)}, or give the "
            "teacher's network (--config.teacher.checkpoint)."
        )


def teacher_document(document: typed.JsonView) -> typed.Json:
    """Returns the config of the teacher that a student's run would have to train first."""
    section = document["teacher"]
    changes = {
        "model.modalities": section["modalities"],
        "model.widths": section["widths"] or document["model"]["widths"],
        "train.steps": section["steps"],
        "train.start": "",  # it is the student's
    }
    return of_other_role(document, "teacher", changes)


def of_other_role(document: typed.JsonView, role: str, changes: typed.JsonView) -> typed.Json:
    """Returns a config with the keys of another role, and some changes."""
    flat = {**flat_keys.flatten(document), "role": role, **changes}
    return flat_keys.nest({key: flat[key] for key in keys.of_role(role)})
