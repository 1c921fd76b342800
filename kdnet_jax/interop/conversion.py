"""A model of another tool as a model of this project."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from kdnet_jax.core import devices, typed
from kdnet_jax.interop import foreign, json_files
from kdnet_jax.models import adapted
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import model_folder


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model of another tool in this project's conventions.

    Attributes:
        model: the network and how it is used.
        params: its parameters, of all its folds.
        known: cases that it was trained or chosen on, as far as its files say.
        about: what it was made of, for `model.json`.
    """

    model: model_lib.Model
    params: PyTree
    known: model_lib.KnownCases
    about: typed.Json


def convert(path: pathlib.Path, folds: Sequence[str] = ()) -> Converted:
    """Reads a model of nnU-Net or MONAI; needs PyTorch.

    Args:
        path: see `foreign.read`.
        folds: to be averaged; empty: all there are.

    Raises:
        UserError: it is none that can be used here, or JAX has no device.
    """
    devices.check()
    found = foreign.read(path, folds)
    network = adapted.AdaptedConfig(
        found.network, found.head, tuple(found.order), found.axes, len(found.members)
    )
    model = model_lib.Model(
        task=found.task,
        role="teacher",
        network=network,
        modalities=tuple(found.modalities),
        spacing=spacing_to_spl(found.spacing, found.axes),
        window=adapted.to_spl(found.window, found.axes),
        overlap=found.overlap,
        mirror=found.mirror,
    )
    params = jax.tree.map(jnp.asarray, adapted.join_members(found.members))
    about = {
        "source": source(path, folds),
        "made_by": found.source,
        "licence": found.about.get("licence", ""),
        "details": found.about,
    }
    return Converted(model, params, found.known, about)


def spacing_to_spl(spacing: json_files.Spacing | None, axes: str) -> json_files.Spacing | None:
    """Returns a voxel size along `axes` as one along superior, posterior and left."""
    return adapted.to_spl(spacing, axes) if isinstance(spacing, tuple) else spacing


def spacing_from_spl(spacing: json_files.Spacing | None, axes: str) -> json_files.Spacing | None:
    """Returns a voxel size along superior, posterior and left as one along `axes`."""
    return adapted.from_spl(spacing, axes) if isinstance(spacing, tuple) else spacing


def source(path: pathlib.Path, folds: Sequence[str]) -> typed.Json:
    """Returns where a model comes from, as `model.json` notes it."""
    return {"path": os.fspath(path.absolute()), "folds": list(folds)}


def fill(folder: pathlib.Path, converted: Converted) -> None:
    """Writes it into an empty folder as a model folder."""
    model_folder.fill(
        folder,
        converted.model,
        converted.params,
        step=0,
        known=converted.known,
        about=converted.about,
    )
