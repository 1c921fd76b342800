"""Model that another tool trained, in any supported form."""

import math
import pathlib
import zipfile
from collections.abc import Sequence

from kdnet_jax.errors import UserError
from kdnet_jax.interop import described_weights, foreign_model, monai_bundle, nnunet_folder

ForeignModel = foreign_model.ForeignModel


def is_foreign(path: pathlib.Path) -> bool:
    """Returns whether this is a model of nnU-Net or MONAI, or weights of PyTorch."""
    if path.is_file():
        return bool(described_weights.find(path)) or zipfile.is_zipfile(path)
    if not path.is_dir():
        return False
    # A run may have weights in it that somebody put there.
    is_run = (path / "config.json").is_file() and not (path / described_weights.FILE).is_file()
    weights = [] if is_run else described_weights.find(path)
    return bool(nnunet_folder.find(path) or monai_bundle.find(path) or weights)


def read(path: pathlib.Path, folds: Sequence[str] = ()) -> ForeignModel:
    """Reads a model of another tool; needs PyTorch.

    Args:
        path: a folder of results of nnU-Net v2 or one above it, the zip that it exports; a bundle
            of MONAI or a folder of several; weights with `foreign.json` beside them, or their
            folder.
        folds: which are averaged; empty: all. Names as the tool has them: "0" of nnU-Net, the
            bundles' or the files' names else.

    Raises:
        UserError: it is none of these, or one that cannot be used here, with the reason.
    """
    model = _read(path, folds)
    pairs = list(zip(model.window, model.network.divisor, strict=True))
    if any(edge % by for edge, by in pairs):
        fitting = tuple(math.ceil(edge / by) * by for edge, by in pairs)
        raise UserError(
            f"{path}: its window is {model.window}, but its network needs edges divisible by "
            f"{model.network.divisor}. Write {fitting} into a copy of its file."
        )
    return model


def _read(path: pathlib.Path, folds: Sequence[str]) -> ForeignModel:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.")
    if path.is_dir():
        if (path / described_weights.FILE).is_file():
            return described_weights.read(path, folds)
        if nnunet_folder.find(path):
            return nnunet_folder.read(path, folds)
        if monai_bundle.find(path):
            return monai_bundle.read(path, folds)
    if described_weights.find(path):
        return described_weights.read(path, folds)
    if path.is_file() and zipfile.is_zipfile(path):
        return nnunet_folder.read_zip(path, folds)
    raise UserError(
        f"{path}: no model of another tool is here; expected a folder of results of nnU-Net v2 or "
        "its exported zip, a MONAI bundle (configs/metadata.json), or weights (.pt, .pth) with "
        f"{described_weights.FILE} beside them."
    )
