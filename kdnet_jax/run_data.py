"""The cases of a run: built if missing, opened, and split."""

import dataclasses
import pathlib

from jax.sharding import Mesh
from ml_collections import config_dict

from kdnet_jax import settings, sharding
from kdnet_jax.data import augment, building, loader, placement, splits, store
from kdnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Data:
    """The cases of a run and who is in which part.

    Attributes:
        cases: the prepared cases.
        split: case ids of train, validation and test.
    """

    cases: store.CaseStore
    split: splits.Split

    def indices(self, part: str) -> list[int]:
        """Returns the positions in `cases` of the split's part ("train", "validation", "test")."""
        position = {summary.case_id: i for i, summary in enumerate(self.cases.summaries)}
        return [position[case_id] for case_id in getattr(self.split, part)]


def open_data(config: config_dict.ConfigDict, values: settings.Settings) -> Data:
    """Builds the dataset if it is missing, opens it, and splits it."""
    root = pathlib.Path(config.data.root)
    if config.data.data_dir:
        cases = building.build_brats(
            root,
            pathlib.Path(config.data.data_dir),
            release=config.data.release,
            modalities=values.data_modalities,
            spacing=values.spacing,
            orientation=config.data.orientation,
            allow_skull=config.data.allow_skull,
            label_convention=config.data.label_convention or None,
            workers=config.data.workers,
            skip_bad_cases=config.data.skip_bad_cases,
        )
    else:
        if config.preset == "brats":
            raise UserError(
                "data.data_dir is empty: the brats preset needs scans. Give the folder with "
                "--config.data.data_dir=DIR, or use the preset :phantom, which needs none."
            )
        if values.spacing is None:
            raise UserError("data.spacing is 0: synthetic scans need a voxel size in mm.")
        cases = building.build_phantom(
            root,
            spacing=values.spacing,
            workers=config.data.workers,
            **config.data.phantom,
        )
        if values.data_modalities != cases.modalities:
            raise UserError(
                f"data.modalities is {config.data.modalities}, but every synthetic case has "
                f"{','.join(cases.modalities)}. Leave it so, and choose what a network sees with "
                "--config.model.modalities."
            )
    for note in cases.notes:
        print(f"note: {note}")
    split = _split(config, cases)
    empty = [part for part, ids in split.parts.items() if not ids]
    if empty:
        raise UserError(
            f"the split leaves no case for {' and '.join(empty)}: a run trains, chooses its best "
            "checkpoint by validation and is scored on test. Give each a share: "
            "--config.split.train, .validation and .test, or --config.split.file."
        )
    return Data(cases, split)


def open_batches(
    config: config_dict.ConfigDict, values: settings.Settings, data: Data, mesh: Mesh
) -> loader.PatchIterator:
    """Opens the training patches, and lets the cases lie where `loader.cache` and memory say.

    Raises:
        UserError: for settings that cannot be, or a place that is too small.
    """
    training = data.indices("train")
    given = {**config.loader, "patch": values.patch}
    crop = augment.source_patch(values.patch, values.augment)
    sharding.check_batch(mesh, given["batch"], crop)
    asked = given.pop("cache", "auto")  # runs of before the key have none
    chosen = placement.choose(asked, data.cases, training, mesh=mesh)
    print(chosen.sentence)
    data.cases.cache_bytes = chosen.cache_bytes
    batches = loader.make_loader(
        data.cases,
        training,
        mesh=mesh,
        seed=config.seed,
        cavity=config.data.resection_cavity,
        crop=crop,
        on_device=chosen.mode == "device",
        **given,
    )
    for note in batches.notes:
        print(f"note: {note}")
    return batches


def _split(config: config_dict.ConfigDict, cases: store.CaseStore) -> splits.Split:
    section = config.split
    if section.file:
        return splits.load_split(pathlib.Path(section.file), cases.summaries)
    if section.folds:
        return splits.make_split(
            cases.summaries,
            seed=section.seed,
            folds=section.folds,
            fold=section.fold,
            validation_fraction=section.validation,
        )
    return splits.make_split(
        cases.summaries,
        seed=section.seed,
        fractions=(section.train, section.validation, section.test),
    )
