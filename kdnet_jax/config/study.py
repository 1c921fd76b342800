"""Study: the runs over folds and seeds that its config describes."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from ml_collections import config_dict

from kdnet_jax import dataset_json
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, check_choice


class Arm(NamedTuple):
    """What the parts of a fold and seed differ in.

    Attributes:
        folder: the name of its runs' folders.
        role: of its runs.
        taught_by: the arm whose run is the teacher; "" for none.
        all_labels: the references of all training cases are used, whatever `split.labelled` says.
    """

    folder: str
    role: str
    taught_by: str = ""
    all_labels: bool = False


_USUAL: Final = {
    "teacher": Arm("teacher", "teacher"),
    "baseline": Arm("baseline", "baseline"),
    "student": Arm("student", "student", "teacher"),
}
# Of a study of few labels.
ARMS: Final = {
    "E": Arm("E-teacher", "teacher"),
    "A": Arm("A-baseline", "baseline"),
    "D": Arm("D-all-labels", "baseline", all_labels=True),
    "B": Arm("B-self-training", "student", "A"),
    "C": Arm("C-student", "student", "E"),
}
# Differences that such a study reports: the first arm less the second.
CONTRASTS: Final = ("C-A", "C-B", "B-A", "D-A")


class Endpoint(NamedTuple):
    """What a study is to decide: a difference of arms, in a metric, of a region or their mean."""

    contrast: str
    metric: str
    region: str

    def __str__(self) -> str:
        """Returns it as `study.primary` has it."""
        return ":".join(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a study.

    Attributes:
        fold: which fold is tested; `None` in a study with one split.
        arm: a key of `ARMS`, or in the usual study the role.
        folder: where it lies.
        experiment: the same as of the role's own config with the study's values.
    """

    fold: int | None
    arm: str
    folder: pathlib.Path
    experiment: experiment_lib.Experiment

    @property
    def role(self) -> str:
        """The run's role: "teacher", "baseline" or "student"."""
        return self.experiment.role


def parts(config: config_dict.ConfigDict, workdir: pathlib.Path) -> list[Part]:
    """Returns the runs of a study, in the order in which they are run.

    Raises:
        UserError: for a value that no run can have, a number of seeds or folds, or arms that do
            not make a study.
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
    if flat["loss.form"] == "reconstruction":
        raise UserError(
            "loss.form is reconstruction, and a study compares networks that segment. Pretrain "
            "with configs/pretrain.py, and let the study's networks start from that run: "
            "--config.train.start=DIR."
        )
    if count and flat["split.file"]:
        raise UserError(
            f"study.folds is {count} and split.file is {flat['split.file']!r}: a file has one "
            "split, which every fold would repeat. Set --config.study.folds=0, or leave "
            "split.file empty."
        )
    for key in ("teacher.checkpoint", "teacher.maps", "teacher.weights", "teacher.folds"):
        if flat[key]:
            raise UserError(
                f"{key} is {flat[key]!r}, and a study trains the teacher of each seed and fold "
                "itself. Leave it empty; runs of a given teacher (configs/student.py) are "
                "compared by python -m kdnet_jax.compare."
            )
    arms = _arms(flat)
    task = dataset_json.read(flat["task"])
    planned = [
        Part(
            fold=fold,
            arm=arm,
            folder=folder / arms[arm].folder,
            experiment=reading.of_document(
                _document(document, folder, arms, arm, fold, seed), task
            ),
        )
        # All seeds of one fold, then the next: a study that is stopped early compares something.
        for fold in (range(count) if count else [None])
        for seed in range(flat["seed"], flat["seed"] + seeds)
        for folder in [_folder(workdir, fold, seed)]
        # A student comes after its teacher.
        for arm in arms
    ]
    if flat["study.arms"]:
        # Whether there is room is known before a student is trained.
        planned.sort(key=lambda part: part.role == "student")
    return planned


def primary(config: config_dict.ConfigDict) -> Endpoint | None:
    """Returns the primary endpoint of a study of few labels, `None` of the usual study.

    Raises:
        UserError: for one that such a study does not have. Whether the metric and the region exist
            is not known here.
    """
    flat = flat_keys.flatten(config.to_dict())
    if not flat["study.arms"]:
        return None
    words = flat["study.primary"].split(":")
    if len(words) != len(Endpoint._fields):
        raise UserError(
            f"study.primary is {flat['study.primary']!r}: give a difference of arms, a metric and "
            "a region (or mean) with colons, such as C-A:dice:mean."
        )
    endpoint = Endpoint(*words)
    check_choice("study.primary: the difference", endpoint.contrast, CONTRASTS)
    return endpoint


def contrasts(arms: Collection[str]) -> list[str]:
    """Returns the differences that there are between some of the arms."""
    return [name for name in CONTRASTS if set(name.split("-")) <= set(arms)]


def _arms(flat: typed.JsonView) -> dict[str, Arm]:
    """Returns the arms of a study in the order in which they are run."""
    if not flat["study.arms"]:
        return _USUAL
    named = flat["study.arms"].replace(" ", "").split(",")
    for name in named:
        check_choice("study.arms", name, ARMS)
    arms = {name: arm for name, arm in ARMS.items() if name in named}
    for name, arm in arms.items():
        if arm.taught_by and arm.taught_by not in arms:
            raise UserError(
                f"study.arms is {flat['study.arms']}: the teacher of {name} is {arm.taught_by}, "
                "which is not named. Add it; a finished one is not repeated."
            )
    if not contrasts(arms):
        raise UserError(
            f"study.arms is {flat['study.arms']}: there is nothing to compare. A study of few "
            f"labels reports {', '.join(CONTRASTS)}: name both arms of one of them."
        )
    if not flat["split.labelled"] and any(arm.all_labels for arm in arms.values()):
        raise UserError(
            "split.labelled is 0, so that all labels are used, and arm D would repeat arm A. Give "
            "the number of labelled training cases with --config.split.labelled=N, or leave D out "
            "of --config.study.arms."
        )
    return arms


def _folder(workdir: pathlib.Path, fold: int | None, seed: int) -> pathlib.Path:
    return (workdir if fold is None else workdir / f"fold-{fold}") / f"seed-{seed}"


def _document(
    study: typed.JsonView,
    folder: pathlib.Path,
    arms: Mapping[str, Arm],
    name: str,
    fold: int | None,
    seed: int,
) -> typed.Json:
    arm = arms[name]
    changes: typed.Json = {"seed": seed}
    if arm.taught_by:
        changes["teacher.checkpoint"] = str(folder / arms[arm.taught_by].folder)
    if name in ARMS:
        # Drawn anew for each seed, the same for all arms.
        changes["split.labelled_seed"] = seed
    if arm.all_labels:
        changes["split.labelled"] = 0
    if arm.role != "teacher" and study["augment"]["modality_dropout"]:
        changes["augment.modality_dropout"] = 0.0  # it is the teacher's
    if fold is not None:
        changes |= {"split.folds": study["study"]["folds"], "split.fold": fold}
    student = reading.of_other_role(study, "student", changes)
    if arm.role == "teacher":
        return reading.teacher_document(student)
    return student if arm.role == "student" else reading.of_other_role(student, "baseline", {})
