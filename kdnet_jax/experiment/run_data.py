"""The cases of a run: built if missing, opened, and split."""

import collections
import dataclasses
import functools
import logging
import pathlib
import socket

from jax.sharding import Mesh

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.data import choices, splits
from kdnet_jax.data.loading import loader, placement
from kdnet_jax.data.records import building, skipping, store, teacher_maps
from kdnet_jax.errors import UserError, counted
from kdnet_jax.parallel import processes, sharding

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Data:
    """The cases of a run and who is in which part.

    Attributes:
        cases: the prepared cases.
        split: case ids of the parts.
        maps: a teacher's probabilities for the training cases, where it is given by them.
    """

    cases: store.CaseStore
    split: splits.Split
    maps: teacher_maps.Maps | None = None

    def indices(self, part: str) -> list[int]:
        """Returns the positions in `cases` of a part of the split, such as "train"."""
        position = {summary.case_id: i for i, summary in enumerate(self.cases.summaries)}
        return [position[case_id] for case_id in getattr(self.split, part)]


def open_data(experiment: experiment_lib.Experiment) -> Data:
    """Builds the dataset if it is missing, opens it, and splits it.

    With several processes the first builds and the others open that, or, where they do not share
    its disk, build their own.

    Raises:
        UserError: for invalid data, or data that differ between the processes.
    """
    # What is wrong with these is said before hours of building.
    if experiment.split.file:
        splits.load_split(experiment.split.file)
    if experiment.teacher and experiment.teacher.maps:
        teacher_maps.check_folder(pathlib.Path(experiment.teacher.maps))
    cases = _build(experiment)
    for note in cases.notes:
        _LOG.info(f"note: {note}")
    section = experiment.split
    split = splits.keep_labels(
        _split(section, cases), cases.summaries, section.labelled, section.labelled_seed
    )
    if split.unlabelled and not experiment.uses_unlabelled:
        _LOG.info(
            f"note: {counted(len(split.unlabelled), 'training case')} without a reference in use "
            f"({split.unlabelled[0]} among them), left out: a student alone learns from "
            "them, with loader.unlabelled_share above 0"
        )
    empty = [part for part, ids in split.parts.items() if not ids]
    if empty:
        raise UserError(
            f"the split leaves no case for {' and '.join(empty)}: a run trains, chooses its best "
            "checkpoint by validation and is scored on test. Give each a share: "
            "--config.split.train, .validation and .test, or --config.split.file."
        )
    data = Data(cases, split)
    processes.together(lambda: cases.check_files(data.indices("validation") + data.indices("test")))
    _check_alike(data)
    if experiment.teacher and experiment.teacher.maps:
        return dataclasses.replace(data, maps=_open_maps(experiment, data))
    return data


def _open_maps(experiment: experiment_lib.Experiment, data: Data) -> teacher_maps.Maps:
    assert experiment.teacher
    open_ = functools.partial(
        teacher_maps.open_maps,
        pathlib.Path(experiment.teacher.maps),
        data.cases,
        [*training_cases(experiment, data), *unlabelled_cases(experiment, data)],
        experiment.head,
        root=experiment.data.root,
        workers=experiment.data.workers,
        progress=processes.is_first(),
    )
    # The first makes what is missing; the others, where they do not share its disk, their own.
    processes.first_does(open_)
    return processes.together(open_)


def _build(experiment: experiment_lib.Experiment) -> store.CaseStore:
    opened: list[store.CaseStore] = []

    def build() -> str:
        # Files that training cases may be missing in are opened too.
        damaged = experiment.data.on_read_error == choices.SKIP
        build = _build_scans if experiment.data.data_dir else _build_phantom
        opened.append(build(experiment, damaged))
        return opened[0].fingerprint

    # The first exchange may wait for half a minute only (Gloo), a build may take half an hour.
    processes.gather("before the build")
    processes.first_does(build)
    processes.together(lambda: opened or build())
    return opened[0]


def _build_scans(experiment: experiment_lib.Experiment, damaged: bool) -> store.CaseStore:
    data = experiment.data
    return building.build_scans(
        data.root,
        pathlib.Path(data.data_dir),
        task=experiment.task,
        release=data.release,
        modalities=data.modalities,
        spacing=data.spacing,
        orientation=data.orientation,
        allow_skull=data.allow_skull,
        label_convention=data.label_convention,
        workers=data.workers,
        progress=processes.is_first(),
        skip_bad_cases=data.skip_bad_cases,
        incomplete=data.incomplete,
        damaged=damaged,
    )


def _build_phantom(experiment: experiment_lib.Experiment, damaged: bool) -> store.CaseStore:
    data = experiment.data
    if experiment.task != task_lib.GLIOMA:
        raise UserError(
            f"data.data_dir is empty: the synthetic cohort is of the task {task_lib.GLIOMA_NAME}, "
            f"and task is {experiment.task.name}. Give the folder of its scans with "
            "--config.data.data_dir=DIR."
        )
    if experiment.preset == "brats":
        raise UserError(
            "data.data_dir is empty: the brats preset needs scans. Give the folder with "
            "--config.data.data_dir=DIR, or use the preset :phantom, which needs none."
        )
    cases = building.build_phantom(
        data.root,
        spacing=data.phantom_spacing(),
        workers=data.workers,
        progress=processes.is_first(),
        damaged=damaged,
        cases=data.phantom.cases,
        seed=data.phantom.seed,
    )
    if data.modalities != cases.modalities:
        raise UserError(
            f"data.modalities is {','.join(data.modalities)}, but every synthetic case has "
            f"{','.join(cases.modalities)}. Leave it so, and choose what a network sees with "
            "--config.model.modalities."
        )
    return cases


def _check_alike(data: Data) -> None:
    """Raises UserError if the data of the processes differ."""
    own = {
        "dataset": f"{data.cases.folder} (fingerprint {data.cases.fingerprint})",
        "fingerprint": data.cases.fingerprint,
        "number of cases": len(data.cases),
        "split": data.split.hash,
    }
    first, *others = processes.gather(own)
    for number, other in enumerate(others, start=1):
        for what in ("fingerprint", "number of cases", "split"):
            if other[what] != first[what]:
                raise UserError(
                    f"process 0 opened {first['dataset']} and process {number} "
                    f"{other['dataset']}: their {what} differs, {first[what]} and {other[what]}. "
                    "Let data.data_dir hold the same scans, data.root datasets of the same build, "
                    "and split.file the same split, wherever a process runs."
                )


def open_batches(
    experiment: experiment_lib.Experiment,
    data: Data,
    mesh: Mesh,
    *folders: pathlib.Path,
) -> loader.PatchIterator:
    """Opens the training patches, and lets the cases lie where `loader.cache` and memory say.

    Args:
        experiment: the run.
        data: the cases and their split.
        mesh: where the batches go; of several processes, each reads what its devices need.
        *folders: the run's, where skipped cases are noted; of students that train together, all.

    Raises:
        UserError: for settings that cannot be, or a place that is too small.
    """
    training, unlabelled = training_cases(experiment, data), unlabelled_cases(experiment, data)
    everything = [*training, *unlabelled]
    given = dataclasses.asdict(experiment.loader)
    crop = augment.source_patch(experiment.loader.patch, experiment.augment)
    sharding.check_batch(mesh, given["batch"], crop)
    free = _agreed_memory(placement.free_memory(mesh))
    chosen = placement.choose(
        given.pop("cache"),
        data.cases,
        everything,
        mesh=mesh,
        free=free,
        maps=data.maps.channels if data.maps else 0,
    )
    _LOG.info(chosen.sentence)
    data.cases.cache_bytes = chosen.cache_bytes
    batches = loader.make_loader(
        data.cases,
        training,
        unlabelled=unlabelled,
        mesh=mesh,
        seed=experiment.seed,
        cavity=experiment.data.resection_cavity,
        crop=crop,
        on_device=chosen.mode == "device",
        maps=data.maps,
        hidden=experiment.loss.reconstructs,
        unreadable=skipping.Unreadable(
            len(everything), experiment.data.on_read_error, folders, processes.index()
        ),
        **given,
    )
    for note in batches.notes:
        _LOG.info(f"note: {note}")
    return batches


def training_cases(experiment: experiment_lib.Experiment, data: Data) -> list[int]:
    """Returns the training cases whose reference the network learns from."""
    return _with_its_sequences(experiment, data, data.indices("train"))


def unlabelled_cases(experiment: experiment_lib.Experiment, data: Data) -> list[int]:
    """Returns the training cases without a reference that the network learns from."""
    if not experiment.uses_unlabelled:
        return []
    return _with_its_sequences(experiment, data, data.indices(splits.UNLABELLED))


def _with_its_sequences(
    experiment: experiment_lib.Experiment, data: Data, indices: list[int]
) -> list[int]:
    """Returns the cases that have all of the network's sequences; one, if sequences are dropped."""
    seen = set(experiment.modalities)
    enough = any if experiment.modality_dropout else all
    return [
        index
        for index in indices
        if enough(name not in data.cases.summaries[index].absent for name in seen)
    ]


def _agreed_memory(own: placement.Memory) -> placement.Memory:
    """Returns what is free for the process that has least, so that all choose alike.

    Processes on one machine share its memory.
    """
    found = processes.gather([socket.gethostname(), own.host, own.device])
    machines = collections.Counter(name for name, _, _ in found)
    device = [free for _, _, free in found if free is not None]
    return placement.Memory(
        min(host // machines[name] for name, host, _ in found), min(device, default=None)
    )


def _split(section: experiment_lib.Split, cases: store.CaseStore) -> splits.Split:
    if section.file:
        split = splits.load_split(pathlib.Path(section.file), cases.summaries)
        _check_references(section.file, split, cases)
        return split
    known = [each for each in cases.summaries if each.class_voxels is not None]
    incomplete = [each.case_id for each in known if each.absent]
    known = [each for each in known if not each.absent]
    if not known:
        raise UserError(
            f"no case with a reference has all of {', '.join(cases.modalities)}: none could be "
            "validated or tested on. Ask for fewer sequences (--config.data.modalities), or add "
            "cases that have them all."
        )
    if section.folds:
        split = splits.make_split(
            known,
            seed=section.seed,
            folds=section.folds,
            fold=section.fold,
            validation_fraction=section.validation,
        )
    else:
        fractions = (section.train, section.validation, section.test)
        split = splits.make_split(known, seed=section.seed, fractions=fractions)
    more = {splits.UNLABELLED: _bare(cases), "train": incomplete}
    for part, ids in more.items():
        split = splits.with_more(split, cases.summaries, part, ids)
        if left := sorted(set(ids) - set(getattr(split, part))):
            what = "without a reference" if part == splits.UNLABELLED else "that lack a sequence"
            _LOG.info(
                f"note: {len(left)} cases {what} are of patients that validate or test, and are "
                f"left out ({left[0]} among them)"
            )
    return split


def _bare(cases: store.CaseStore) -> list[str]:
    """Returns the ids of the cases that have no reference."""
    return [each.case_id for each in cases.summaries if each.class_voxels is None]


def _check_references(path: str, split: splits.Split, cases: store.CaseStore) -> None:
    bare = set(_bare(cases))
    for part in splits.PARTS:
        if found := bare.intersection(split.parts[part]):
            raise UserError(
                f"{path}: {len(found)} cases of its {part} part have no reference (such as "
                f'{min(found)}). List them as "{splits.UNLABELLED}", for a student to learn from, '
                "or remove them."
            )
    lacking = {each.case_id for each in cases.summaries if each.absent}
    for part in ("validation", "test"):
        if found := lacking.intersection(split.parts[part]):
            raise UserError(
                f"{path}: {len(found)} cases of its {part} part lack a sequence (such as "
                f'{min(found)}), and can only be trained on. Move them to "train", or remove them.'
            )
