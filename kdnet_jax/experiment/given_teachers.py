"""The given teacher of a student: a run, an exported model, or what another tool has trained.

The last is kept as a model folder within the run's own, so that a resumed run needs neither
the tool's files nor PyTorch.
"""

import dataclasses
import logging
import pathlib

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import checksums, files
from kdnet_jax.errors import UserError
from kdnet_jax.interop import conversion, foreign
from kdnet_jax.models import adapted, mean, networks
from kdnet_jax.parallel import processes
from kdnet_jax.runs import calibration, model_folder, teachers, trained

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Given:
    """A given teacher.

    Attributes:
        run: as it is used.
        converted: of another tool, and not yet kept in the run's folder; else `None`.
        members: of an average of several, each.
    """

    run: trained.Run
    converted: conversion.Converted | None = None
    members: tuple[trained.Run, ...] = ()


def load(teacher: experiment_lib.Teacher, workdir: pathlib.Path) -> Given:
    """Reads the teacher that is given; writes nothing.

    Raises:
        UserError: it is no teacher that can be read.
    """
    if len(teacher.folders) > 1:
        return _several(teacher)
    path, folds = pathlib.Path(teacher.checkpoint), teacher.folds
    kept = workdir / teachers.CONVERTED
    if model_folder.is_model(kept):
        about = model_folder.read(kept)
        was = about.document.get("source")
        # It may lie elsewhere now.
        if was == conversion.source(path, folds) or _params_hash(path, folds) == about.params_hash:
            return Given(trained.load_run(kept))
        raise UserError(
            f"{workdir} was begun with another teacher: {was}. Give a new --workdir, or the former "
            "--config.teacher.checkpoint and --config.teacher.folds."
        )
    if model_folder.is_model(path) or not foreign.is_foreign(path):
        if folds:
            raise UserError(
                f"teacher.folds is {','.join(folds)!r}, but {path} is not of another tool: "
                "leave it empty."
            )
        return Given(trained.load_given("teacher.checkpoint", path))
    if processes.count() > 1:
        # Orbax writes nothing in one process while the others wait for it.
        chosen = f" --folds={','.join(folds)}" if folds else ""
        raise UserError(
            f"{path} was trained by another tool, which a run of several processes cannot keep. "
            "Make a model folder of it first, and give that as --config.teacher.checkpoint: python "
            f"-m kdnet_jax.export --checkpoint={path}{chosen} --output=DIR"
        )
    found = conversion.convert(path, folds)
    network = found.model.network
    assert isinstance(network, adapted.AdaptedConfig)
    _LOG.info(
        f"{path}: {found.about['made_by']}; {network.members} network(s) of "
        f"{', '.join(found.model.modalities)}, kept in {kept}"
    )
    digest = checksums.content_hash(found.params)
    return Given(trained.Run(path, found.model, found.params, 0, digest), found)


def _several(teacher: experiment_lib.Teacher) -> Given:
    """Reads several networks as one, the weighted mean of their probabilities.

    Raises:
        UserError: one cannot be read, or they cannot be averaged.
    """
    if teacher.folds:
        raise UserError(
            f"teacher.folds is {','.join(teacher.folds)!r}, and teacher.checkpoint names "
            f"{len(teacher.folders)} networks: leave it empty."
        )
    members = tuple(trained.load_given("teacher.checkpoint", folder) for folder in teacher.folders)
    first, *others = members
    for other in others:
        _check_agreement(first, other)
    trained.check_distinct(members, "Name each once; teacher.weights says what it counts.")
    task = first.model.task
    seen = {name for each in members for name in each.model.modalities}
    modalities = tuple(name for name in task.modalities if name in seen)
    kinds = [each.model.network for each in members]
    # No run or model holds a mean itself.
    network = mean.MeanConfig(
        tuple(kind for kind in kinds if not isinstance(kind, mean.MeanConfig)),
        tuple(tuple(map(modalities.index, each.model.modalities)) for each in members),
        teacher.weights or (1.0,) * len(members),
    )
    params = adapted.join_members(tuple(each.params for each in members))
    model = dataclasses.replace(
        first.model,
        network=network,
        modalities=modalities,
        # The first one's, as far as all networks can have it.
        window=networks.rounded_up(network.divisor, first.model.window),
        # Both were measured on one network, and not on their mean.
        thresholds=(),
        calibration=calibration.NONE,
    )
    digest = checksums.content_hash(params)
    run = trained.Run(pathlib.Path(teacher.checkpoint), model, params, 0, digest)
    return Given(run, members=members)


def _check_agreement(first: trained.Run, other: trained.Run) -> None:
    for key in ("task", "outputs", "spacing", "orientation", "resection_cavity"):
        ours, theirs = getattr(first.model, key), getattr(other.model, key)
        if ours != theirs:
            if key == "task":
                ours, theirs = first.model.task.name, other.model.task.name
            raise UserError(
                f"{first.folder} and {other.folder} cannot teach together: their {key} is {ours} "
                f"and {theirs}. Name networks that were trained alike, or one of them."
            )


def _params_hash(path: pathlib.Path, folds: tuple[str, ...]) -> str:
    """Returns the hash of the parameters that lie at a path; "" if none do."""
    if model_folder.is_model(path):
        return model_folder.read(path).params_hash
    if not foreign.is_foreign(path):
        return ""
    return checksums.content_hash(conversion.convert(path, folds).params)


def keep(given: Given, workdir: pathlib.Path) -> trained.Run:
    """Keeps a converted teacher in the run's folder; returns the teacher, wherever it lies."""
    if given.converted is None:
        return given.run
    folder = workdir / teachers.CONVERTED
    if not model_folder.is_model(folder):
        with files.new_folder(folder) as beside:
            conversion.fill(beside, given.converted)
    return dataclasses.replace(given.run, folder=folder)
