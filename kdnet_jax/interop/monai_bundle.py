"""A MONAI bundle, such as the model zoo's brats_mri_segmentation, as a `ForeignModel`.

    BUNDLE/configs/metadata.json     names of the input and output channels
    BUNDLE/configs/inference.json    "network_def", "preprocessing", a SlidingWindowInferer
    BUNDLE/models/model.pt           the weights

Several bundles in one folder, or several .pt in `models` where none is called model.pt, are folds.

What differs from MONAI's own prediction: bundles normalise after `Spacingd` where they have it,
here scans are normalised before they are resampled (at the scans' own spacing, as in the zoo's
bundle, it is the same); its inferer averages the logits of windows, here probabilities are
averaged; here z-scores end at +-10.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Final

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import (
    described_weights,
    foreign_model,
    json_files,
    monai_config,
    monai_preparation,
    network_kinds,
    torch_files,
    vocabulary,
)
from kdnet_jax.models import adapted, heads
from kdnet_jax.runs import model

_METADATA: Final = pathlib.Path("configs", "metadata.json")
_WEIGHTS: Final = "model.pt"
# Makes the regions TC WT ET of a label, in this order.
_TO_REGIONS: Final = "ConvertToMultiChannelBasedOnBratsClassesd"
_BACKGROUND: Final = re.compile("background|bg", re.IGNORECASE)
# The task, the modalities, the head and the order of `foreign_model.ForeignModel`.
_Seen = tuple[task_lib.Task, tuple[str, ...], heads.Kind, tuple[int, ...]]


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the bundle at a path, or the bundles in it."""
    places = [path, *sorted(each for each in path.glob("*") if each.is_dir())]
    found = [place for place in places if (place / _METADATA).is_file()]
    return found[:1] if path in found else found


def read(path: pathlib.Path, folds: Sequence[str]) -> foreign_model.ForeignModel:
    """Reads a bundle, or several of the same network as folds.

    Args:
        path: the bundle, or the folder of several.
        folds: names of the bundles in that folder, or of the .pt in one bundle's models; empty:
            all, or model.pt.

    Raises:
        UserError: something is missing, or cannot be used here.
    """
    bundles = find(path)
    if path in bundles:
        return _read(path, folds)
    names = list(dict.fromkeys(folds)) or [bundle.name for bundle in bundles]
    missing = [name for name in names if path / name not in bundles]
    if missing:
        there = ", ".join(bundle.name for bundle in bundles)
        raise UserError(f"{path}: no bundle {', '.join(missing)}; there are {there}.")
    return foreign_model.join([_read(path / name, ()) for name in names], names)


def _read(bundle: pathlib.Path, folds: Sequence[str]) -> foreign_model.ForeignModel:
    metadata = documents.read_object(bundle / _METADATA)
    config = monai_config.Config(bundle / "configs")
    inputs, outputs = _names(metadata, bundle / _METADATA)
    # The transform is of no use for other labels.
    is_glioma = vocabulary.is_glioma(inputs, outputs) or any(config.objects(_TO_REGIONS))
    where, definition = config.find("network_def")
    prepared = monai_preparation.read(config, channels=len(inputs), is_glioma=is_glioma)
    key = f"{bundle / _METADATA}: network_data_format"
    task, modalities, head, order = (
        _glioma(config, inputs, outputs, key)
        if is_glioma
        else _own(config, bundle, inputs, outputs, prepared)
    )
    definition = config.resolve(where, definition, f"{where}: network_def")
    kind, network = _network(definition, len(inputs), len(outputs), f"{where}: network_def")
    window, overlap = _window(config, bundle)
    weights = _weights(bundle, folds)
    return foreign_model.ForeignModel(
        source=f"MONAI bundle {bundle.name} {metadata.get('version', '')}".strip(),
        network=network,
        members=tuple(
            network_kinds.params(
                kind,
                network,
                torch_files.state_dict(torch_files.read(file), file),
                len(modalities),
                str(file),
            )
            for file in weights
        ),
        task=task,
        modalities=modalities,
        head=head,
        order=order,
        axes=prepared.axes,
        spacing=prepared.spacing,
        window=window,
        overlap=overlap,
        mirror=False,
        known=model.KnownCases(),  # its files do not list them
        about=_about(bundle, metadata, weights, prepared),
    )


def _names(metadata: typed.JsonView, path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns the names of the input and output channels, in the model's order."""
    data = json_files.need(metadata, "network_data_format", path, dict)
    key = f"{path}: network_data_format"
    tables = []
    for side in ("inputs", "outputs"):
        images = json_files.need(data, side, key, object)
        image = next(iter(images.values()), None) if isinstance(images, dict) else None
        table = image.get("channel_def") if isinstance(image, dict) else None
        names = json_files.by_number(table, f"{key}.{side}: channel_def")
        if not names:
            raise UserError(f"{key}.{side}: channel_def is empty; expected the channels' names.")
        tables.append(names)
    return tables[0], tables[1]


def _glioma(
    config: monai_config.Config, inputs: Sequence[str], outputs: Sequence[str], key: str
) -> _Seen:
    modalities = vocabulary.modalities(inputs, f"{key}.inputs: channel_def")
    head, order = vocabulary.outputs(outputs, f"{key}.outputs: channel_def")
    _check_outputs(config, head, order, f"{key}.outputs: channel_def")
    return task_lib.GLIOMA, modalities, head, order


def _check_outputs(
    config: monai_config.Config, head: heads.Kind, order: tuple[int, ...], where: str
) -> None:
    """Refuses metadata that the configs contradict."""
    for path, each in config.objects(_TO_REGIONS):
        # Of ET, TC, WT the channels in TC WT ET.
        if (head, order) != ("regions", (2, 0, 1)):
            raise UserError(
                f"{where} contradicts {path}: {monai_config.class_name(each)} makes the channels "
                "tumor core, whole tumor, enhancing tumor. Fix the wrong one in a copy."
            )
    wanted = {"regions": "sigmoid", "softmax": "softmax"}
    for path, each in config.objects("Activationsd"):
        other = wanted["softmax" if head == "regions" else "regions"]
        if each.get(other) is True:
            raise UserError(
                f"{where} names {'regions' if head == 'regions' else 'classes'}, whose activation "
                f"is a {wanted[head]}, but {path} has a {other}. Fix the wrong one in a copy."
            )


def _own(
    config: monai_config.Config,
    bundle: pathlib.Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    prepared: monai_preparation.Preparation,
) -> _Seen:
    """Returns the task that the names of the channels describe, classes by their number.

    Raises:
        UserError: they describe none, or the outputs are regions whose classes nothing names.
    """
    where = f"{bundle / _METADATA}: network_data_format.outputs: channel_def"
    softmax = _is_softmax(config, bundle)
    if softmax and not _BACKGROUND.fullmatch(outputs[0].strip()):
        raise UserError(
            f"{where} begins with {outputs[0]!r}; expected the background, which a softmax has as "
            "its first channel."
        )
    if not softmax and len(outputs) != 1:
        raise UserError(
            f"{where} has {len(outputs)} outputs with a sigmoid each ({', '.join(outputs)}), but "
            "nothing in a bundle says which classes each of them is made of. "
            f"{described_weights.HOW}"
        )
    names = [name.strip().lower() for name in inputs]
    statistics = {} if prepared.statistics is None else dict.fromkeys(names, prepared.statistics)
    document = {
        "name": bundle.name,
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": {"background": 0}
        | {name: i for i, name in enumerate(outputs[softmax:], start=1)},
        "kdnet": {
            "normalisation": dict.fromkeys(names, prepared.normalisation),
            "statistics": {name: list(values) for name, values in statistics.items()},
        },
    }
    task = dataset_json.parse(document, str(bundle / _METADATA))
    head: heads.Kind = "softmax" if softmax else "regions"
    return task, task.modalities, head, tuple(range(len(outputs)))


def _is_softmax(config: monai_config.Config, bundle: pathlib.Path) -> bool:
    """Returns whether the outputs are classes, which exclude one another."""
    for _, each in config.objects("Activationsd", "AsDiscreted"):
        for key, softmax in (("softmax", True), ("argmax", True), ("sigmoid", False)):
            if each.get(key) is True:
                return softmax
    raise UserError(
        f"{bundle}: its configs have no Activationsd with softmax or sigmoid and no AsDiscreted "
        "with argmax, so it is not known whether the outputs exclude one another. Add one to "
        'inference.json: "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": '
        "true}"
    )


def _network(
    definition: object, channels: int, outputs: int, where: str
) -> tuple[network_kinds.Kind, adapted.RawConfig]:
    if not isinstance(definition, dict) or monai_config.is_off(definition, where):
        raise UserError(f"{where} is no definition of a network.")
    target = str(json_files.need(definition, "_target_", where, object))
    kind = network_kinds.of_class(target, f"{where}._target_")
    network, inputs = network_kinds.read(kind, monai_config.arguments(definition), where)
    if (inputs, network.out_channels) != (channels, outputs):
        raise UserError(
            f"{where} has {inputs} input and {network.out_channels} output channels, but the "
            f"metadata name {channels} and {outputs}."
        )
    return kind, network


def _window(
    config: monai_config.Config, bundle: pathlib.Path
) -> tuple[tuple[int, int, int], float]:
    for path, each in config.objects("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
        where = f"{path}: {monai_config.class_name(each)}"
        given = config.resolve_object(path, monai_config.arguments(each), where)
        window = json_files.edges(given.get("roi_size"), f"{where}.roi_size")
        return window, json_files.share(given.get("overlap", 0.25), f"{where}.overlap")
    raise UserError(
        f"{bundle}: its configs have no SlidingWindowInferer, so the window is not known. Add one "
        'to inference.json: "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [128, 128, '
        '128], "overlap": 0.5}'
    )


def _weights(bundle: pathlib.Path, folds: Sequence[str]) -> list[pathlib.Path]:
    folder = bundle / "models"
    weights = [each for each in sorted(folder.glob("*")) if each.suffix in torch_files.SUFFIXES]
    there = {each.stem: each for each in weights}
    default = [pathlib.Path(_WEIGHTS).stem] if (folder / _WEIGHTS).is_file() else list(there)
    names = [pathlib.PurePath(fold).stem for fold in folds] or default
    missing = [name for name in names if name not in there]
    if missing or not names:
        scripts = ", ".join(each.name for each in folder.glob(f"*{torch_files.TORCHSCRIPT}"))
        hint = f" {scripts} is TorchScript, a program rather than weights." if scripts else ""
        raise UserError(
            f"{folder}: no {', '.join(missing) or _WEIGHTS} (there are "
            f"{', '.join(there) or 'no weights'}).{hint} Download it with the bundle: python -m "
            "monai.bundle download NAME"
        )
    return [there[name] for name in dict.fromkeys(names)]


def _about(
    bundle: pathlib.Path,
    metadata: typed.JsonView,
    weights: Sequence[pathlib.Path],
    prepared: monai_preparation.Preparation,
) -> typed.Json:
    wanted = "version monai_version pytorch_version copyright data_source intended_use eval_metrics"
    licences = sorted(each.name for each in bundle.rglob("*") if "license" in each.name.lower())
    return {
        "tool": "MONAI bundle",
        "bundle": bundle.name,
        **{key: metadata[key] for key in wanted.split() if key in metadata},
        "sha256": {file.name: files.sha256(file) for file in weights},
        "licence": str(metadata.get("license", ", ".join(licences))),
        "notes": [
            "its files do not list the cases that it was trained on",
            *["it turns no scan: files are taken to be stored as in BraTS (LPS)"]
            * (not prepared.is_turned),
        ],
    }
