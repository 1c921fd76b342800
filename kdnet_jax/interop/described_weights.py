"""Weights with a description beside them: `foreign.json`, which this project defines.

For a network that somebody trained with a script of their own, and for what is handed back:

    DIR/foreign.json
    DIR/model.pt        torch.save(network.state_dict(), ...); several .pt or .pth are folds

`EXAMPLE` is such a file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Final

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import (
    foreign_model,
    json_files,
    network_kinds,
    torch_files,
    vocabulary,
)
from kdnet_jax.models import heads, nnunet
from kdnet_jax.runs import model

FILE: Final = "foreign.json"
NORMALISATION: Final = "nonzero z-score per sequence"
_REQUIRED: Final = (*("class", "arguments", "channels", "outputs", "axes", "spacing", "window"),)
# Either says how intensities are normalised.
_NORMALISED: Final = ("normalisation", "task")
_OPTIONAL: Final = (
    *("overlap", "mirror", "known_cases", "known_cases_complete", "licence", "about"),
)
EXAMPLE: Final = """{
  "class": "DynUNet",
  "arguments": {"spatial_dims": 3, "in_channels": 4, "out_channels": 3, ...},
  "channels": ["t1", "t1ce", "t2", "flair"],
  "outputs": ["TC", "WT", "ET"],
  "axes": "RAS",
  "spacing": 1.0,
  "window": [128, 128, 128],
  "normalisation": "nonzero z-score per sequence"
}"""
HOW: Final = f"""Put a file {FILE} beside the weights, such as
{EXAMPLE}
with the class (DynUNet, SegResNet, PlainConvUNet or ResidualEncoderUNet) and its arguments by name;
the sequences in the order of its channels; its outputs (ET TC WT, or background NCR ED ET) in its
order; the letters to which its array axes grow; the voxel size in mm (one number, or one for each
axis), null for the scan's own; its window; and "overlap", "mirror", "known_cases" and "licence" if
they are known. A network that segments something else than a glioma has "task" in place of
"normalisation": the content of a dataset.json of nnU-Net, by whose names the channels and outputs
(its regions, or its classes with the background) go."""


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the weights that a path names: a file, or the files in a folder."""
    if path.is_dir():
        return [each for each in sorted(path.iterdir()) if each.suffix in torch_files.SUFFIXES]
    return [path] if path.suffix in (*torch_files.SUFFIXES, torch_files.TORCHSCRIPT) else []


def read(path: pathlib.Path, folds: Sequence[str]) -> foreign_model.ForeignModel:
    """Reads weights by the `foreign.json` beside them.

    Args:
        path: the weights, or their folder.
        folds: names of files in the folder; empty: all.

    Raises:
        UserError: something is missing, or cannot be used here.
    """
    weights = _choose(path, folds)
    contents = {file: torch_files.read(file) for file in weights}
    where = weights[0].parent / FILE
    if not where.is_file():
        raise UserError(
            f"{where} is missing, so the network of {weights[0].name} is unknown. {HOW}"
        )
    given = _checked(documents.read_object(where), where)
    kind = network_kinds.of_class(str(given["class"]), f"{where}: class")
    network, inputs = network_kinds.read(kind, given["arguments"], f"{where}: arguments")
    task, modalities, (head, order) = _segmented(given, where)
    if (inputs, network.out_channels) != (len(modalities), len(order)):
        raise UserError(
            f"{where}: arguments has {inputs} input and {network.out_channels} output channels, "
            f"but channels and outputs name {len(modalities)} and {len(order)}."
        )
    spacing = given["spacing"]
    return foreign_model.ForeignModel(
        source=f"{kind.name}, {', '.join(f'{file.parent.name}/{file.name}' for file in weights)}",
        network=network,
        members=tuple(
            network_kinds.params(
                kind, network, torch_files.state_dict(each, file), inputs, str(file)
            )
            for file, each in contents.items()
        ),
        task=task,
        modalities=modalities,
        head=head,
        order=order,
        axes=json_files.axes(given["axes"], f"{where}: axes"),
        spacing=None if spacing is None else json_files.spacing(spacing, f"{where}: spacing"),
        window=json_files.edges(given["window"], f"{where}: window"),
        overlap=json_files.share(given.get("overlap", 0.5), f"{where}: overlap"),
        mirror=given.get("mirror", False),
        known=model.KnownCases(
            tuple(given.get("known_cases", ())),
            given.get("known_cases_complete", "known_cases" in given),
        ),
        about={
            "tool": f"weights with {FILE}",
            "sha256": {file.name: files.sha256(file) for file in weights},
            "licence": given.get("licence", ""),
            **given.get("about", {}),
        },
    )


def _choose(path: pathlib.Path, folds: Sequence[str]) -> list[pathlib.Path]:
    there = {file.stem: file for file in find(path)}
    names = [pathlib.PurePath(fold).stem for fold in folds] or list(there)
    missing = [name for name in names if name not in there]
    if missing or not names:
        raise UserError(
            f"{path}: no weights {', '.join(missing)} (.pt, .pth); there are "
            f"{', '.join(there) or 'none'}."
        )
    return [there[name] for name in dict.fromkeys(names)]


def _segmented(
    given: typed.JsonView, where: pathlib.Path
) -> tuple[task_lib.Task, tuple[str, ...], vocabulary.Outputs]:
    """Returns the task, the modalities by its names, and the outputs."""
    keys = f"{where}: channels", f"{where}: outputs"
    if "task" not in given:
        return (
            task_lib.GLIOMA,
            vocabulary.modalities(given["channels"], keys[0]),
            vocabulary.outputs(given["outputs"], keys[1]),
        )
    task = dataset_json.parse(given["task"], f"{where}: task")
    return (
        task,
        vocabulary.channels_of(task, given["channels"], keys[0]),
        vocabulary.outputs_of(task, given["outputs"], keys[1]),
    )


def _checked(given: typed.JsonView, where: pathlib.Path) -> typed.JsonView:
    missing = [key for key in _REQUIRED if key not in given]
    if not any(key in given for key in _NORMALISED):
        missing.append("normalisation or task")
    unknown = [key for key in given if key not in (*_REQUIRED, *_NORMALISED, *_OPTIONAL)]
    if missing or unknown:
        raise UserError(
            f"{where}: {'missing ' + ', '.join(missing) if missing else ''}"
            f"{'; ' if missing and unknown else ''}"
            f"{'unknown ' + ', '.join(unknown) if unknown else ''}. {HOW}"
        )
    kinds = {"arguments": dict, "channels": list, "outputs": list, "mirror": bool, "about": dict}
    kinds |= {"known_cases": list, "known_cases_complete": bool, "licence": str, "task": dict}
    for key, kind in kinds.items():
        if key in given:
            json_files.expect(given[key], kind, f"{where}: {key}")
    for index, case in enumerate(given.get("known_cases", ())):
        json_files.expect(case, str, f"{where}: known_cases[{index}]")
    if "task" in given and "normalisation" in given:
        raise UserError(
            f"{where}: both task and normalisation; expected the task alone, whose channels say "
            "how they are normalised."
        )
    if "task" not in given and given["normalisation"] != NORMALISATION:
        raise UserError(
            f"{where}: normalisation is {given['normalisation']!r}; only {NORMALISATION!r} can be "
            "taken: (x - mean) / deviation of each sequence over its voxels that are not 0."
        )
    return given


def describe(given: foreign_model.ForeignModel) -> str:
    """Returns the text of a `foreign.json`.

    Raises:
        UserError: there is no PyTorch class for the network.
    """
    network, kind = given.network, network_kinds.of_config(given.network)
    if isinstance(network, nnunet.PlainConvConfig):
        # Its class then answers with the finest level alone, as a mask needs it; the weights are
        # the same.
        network = dataclasses.replace(network, deep_supervision=False)
    ours = heads.Head(given.task, given.head).outputs
    about = dict(given.about)
    normalised: typed.Json = {"normalisation": NORMALISATION}
    if given.task != task_lib.GLIOMA:
        normalised = {"task": dataset_json.describe(given.task)}
    values = {
        "class": f"{kind.module}.{kind.name}",
        "arguments": kind.write(network, len(given.modalities)),
        "channels": given.modalities,
        "outputs": [ours[given.order.index(channel)] for channel in range(len(ours))],
        "axes": given.axes,
        "spacing": given.spacing,
        "window": given.window,
        **normalised,
        "overlap": given.overlap,
        "mirror": given.mirror,
        "known_cases": given.known.ids,
        "known_cases_complete": given.known.complete,
        "licence": about.pop("licence", ""),
        "about": about,
    }
    return json.dumps(values, indent=1) + "\n"
