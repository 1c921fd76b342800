"""Study: the runs over folds and seeds that its config describes."""

import dataclasses
import pathlib

from ml_collections import config_dict

from kdnet_jax import dataset_json
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, keys, reading
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a study.

    Attributes:
        fold: which fold is tested; `None` in a study with one split.
        folder: where it lies.
        experiment: the same as of the role's own config with the study's values.
    """

    fold: int | None
    folder: pathlib.Path
    experiment: experiment_lib.Experiment

    @property
    def role(self) -> str:
        """The run's role: "teacher", "baseline" or "student"."""
        return self.experiment.role


def parts(config: config_dict.ConfigDict, workdir: pathlib.Path) -> list[Part]:
    """Returns the runs of a study, in the order in which they are run.

    Raises:
        UserError: for a value that no run can have, or a number of seeds or folds.
    """
    document = config.to_dict()
    flat = flat_keys.flatten(document)
    flat_keys.check(flat)
    flat_keys.check_complete(flat, "study")
    count, seeds = flat["study.folds"], flat["study.seeds"]
    if count == 1:
        raise UserError(
            f"study.folds is {count}: give 2 or more, or 0 for the one split of --config.split."
        )
    task = dataset_json.read(flat["task"])
    return [
        Part(
            fold=fold,
            folder=folder / role,
            experiment=reading.of_document(_document(document, folder, role, fold, seed), task),
        )
        # All seeds of one fold, then the next: a study that is stopped early compares something.
        for fold in (range(count) if count else [None])
        for seed in range(flat["seed"], flat["seed"] + seeds)
        for folder in [_folder(workdir, fold, seed)]
        # The student needs its teacher.
        for role in keys.ROLES
    ]


def _folder(workdir: pathlib.Path, fold: int | None, seed: int) -> pathlib.Path:
    return (workdir if fold is None else workdir / f"fold-{fold}") / f"seed-{seed}"


def _document(
    study: typed.JsonView, folder: pathlib.Path, role: str, fold: int | None, seed: int
) -> typed.Json:
    changes = {"seed": seed, "teacher.checkpoint": str(folder / "teacher")}
    if fold is not None:
        changes |= {"split.folds": study["study"]["folds"], "split.fold": fold}
    student = reading.of_other_role(study, "student", changes)
    if role == "teacher":
        return reading.teacher_document(student)
    return student if role == "student" else reading.of_other_role(student, "baseline", {})
