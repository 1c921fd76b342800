"""Folders of runs, from the words on a command line."""

import glob
import pathlib
from collections.abc import Sequence

from kdnet_jax.errors import UserError


def expand(flag: str, words: Sequence[str]) -> list[pathlib.Path]:
    """Returns the folders that the values of a flag name: paths, with commas, or patterns.

    Shells leave a pattern within --flag=runs/seed-* as it is, so it is expanded here. Of what it
    matches, runs and outputs of `kdnet_jax.evaluate` are taken, sorted by name.

    Raises:
        UserError: for a missing or duplicate folder, or a pattern without a match.
    """
    folders = [folder for word in words for folder in _named(flag, word)]
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if resolved.count(folder.resolve()) > 1:
            raise UserError(f"--{flag} names {folder} twice: it would count twice.")
    return folders


def refuse_run(output: pathlib.Path) -> None:
    """Raises UserError if what a command writes would lie among the files of a run."""
    if (output / "config.json").exists():
        raise UserError(
            f"--output={output}: is a run's folder, with its own files. Choose another --output"
        )


def _named(flag: str, word: str) -> list[pathlib.Path]:
    # A name that exists is taken as it is, whatever signs it holds.
    parts = [word] if pathlib.Path(word).is_dir() else word.split(",")
    return [folder for part in parts for folder in _matches(flag, part.strip())]


def _matches(flag: str, pattern: str) -> list[pathlib.Path]:
    if pattern and pathlib.Path(pattern).is_dir():
        return [pathlib.Path(pattern)]
    found = [folder for folder in map(pathlib.Path, sorted(glob.glob(pattern))) if _is_run(folder)]
    if not found:
        raise UserError(
            f"--{flag}={pattern}: no such folder, and no run matches it as a pattern. Give the "
            "folder of a run, or a pattern such as 'runs/seed-*/student'."
        )
    return found


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "evaluation").is_dir()
