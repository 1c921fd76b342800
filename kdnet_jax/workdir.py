"""A run's folder belongs to one config and one split: claimed at the start, checked ever after."""

import pathlib

from ml_collections import config_dict

from kdnet_jax import checkpoint, files, settings
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError

CONFIG, SPLIT = "config.json", "split.json"
# Settings that change how fast a run goes or how often it looks, but not what it computes.
OPERATIONAL = (
    # What these two name is guarded by the hash of its content.
    "data.data_dir",
    "teacher.checkpoint",
    "data.root",
    "data.workers",
    "loader.threads",
    "loader.prefetch_batches",
    "loader.cache",
    # Forms of one computation: equal but for rounding.
    "model.convolutions",
    "model.planes",
    "model.remat",
    "train.accumulate",
    "profile",
    "train.log_every",
    "train.save_minutes",
)


def check(folder: pathlib.Path, config: config_dict.ConfigDict) -> None:
    """Raises UserError if the folder belongs to a run of another config; writes nothing."""
    if not (folder / CONFIG).exists():
        if (folder / checkpoint.FOLDER).exists():
            raise UserError(f"{folder} has checkpoints but no {CONFIG}: give a new --workdir.")
        return
    changed = [
        (key, was, now)
        for key, was, now in settings.differences(settings.read_config(folder), config)
        if key not in OPERATIONAL
    ]
    # Role, preset and seed say most of what is different.
    changed.sort(key=lambda change: "." in change[0])
    if changed:
        listed = "; ".join(f"{key} was {was!r} and is now {now!r}" for key, was, now in changed[:5])
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{folder} holds a run of another config: {listed}{more}. Give a new --workdir, or "
            "the former values to go on with that run."
        )


def claim(folder: pathlib.Path, config: config_dict.ConfigDict, split: splits.Split) -> None:
    """Writes the run's config and split, or checks that the folder's split is still the same.

    Raises:
        UserError: for another split, or a folder that cannot be written.
    """
    if (folder / SPLIT).exists():
        splits.check_same_split(splits.load_split(folder / SPLIT), split)
    if not (folder / CONFIG).exists():
        _write(folder / CONFIG, settings.to_json(config))
    if not (folder / SPLIT).exists():
        splits.save_split(split, folder / SPLIT)


def _write(path: pathlib.Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise checkpoint.disk_error(error, path) from error
