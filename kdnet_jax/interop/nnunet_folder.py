"""A folder of results of nnU-Net v2, or the zip that it exports, as a `ForeignModel`.

    nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/
        plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_1/...

Its dataset.json is the model's task, except where channels and labels are those of the glioma.

What differs from nnU-Net's own prediction, all of it small on BraTS, whose scans are 1 mm,
skull-stripped and stored one way:

- Where it normalises within a mask, it takes a channel's mean and deviation over the voxels where
  any channel is not 0, holes filled; here they are over the channel's own. Here z-scores end at
  +-10.
- Both normalise before they resample, but it resamples by cubic splines, here linearly. At 1 mm
  nothing is resampled.
- It averages the logits of windows, mirror images and folds, here probabilities are averaged.
- Its plain readers take the axes as the file has them, and its files do not say how those of the
  training ran: they are taken to be stored as BraTS stores them.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import (
    archives,
    foreign_model,
    json_files,
    network_kinds,
    nnunet_plans,
    torch_files,
)
from kdnet_jax.runs import model

_PLANS: Final = "plans.json"
# As nnU-Net prefers them.
_CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth")
_WANTED: Final = re.compile(
    r"(.*/)?(plans\.json|dataset\.json|splits_final\.json|"
    r"fold_\w+/(checkpoint_(final|best)\.pth|validation/summary\.json))"
)
_ALL_AXES: Final = [0, 1, 2]


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of results at, or up to two levels below, a folder."""
    found = (plans.parent for depth in ("", "*/", "*/*/") for plans in path.glob(depth + _PLANS))
    both = sorted(folder for folder in found if (folder / "dataset.json").is_file())
    # nnU-Net copies both files beside cross-validated and predicted masks too.
    return [folder for folder in both if any(folder.glob("fold_*"))] or both


def read_zip(path: pathlib.Path, folds: Sequence[str]) -> foreign_model.ForeignModel:
    """Reads what `nnUNetv2_export_model_to_zip` wrote; see `read`."""
    with archives.unpacked(path, _WANTED) as folder:
        found = [str(each.relative_to(folder)) for each in find(folder)]
        if len(found) != 1:
            raise UserError(
                f"{path} holds several folders of results: unpack it, and give one of "
                f"{', '.join(found)}."
                if found
                else f"{path} holds no plans.json with dataset.json beside it; expected what "
                "nnUNetv2_export_model_to_zip writes."
            )
        try:
            return read(folder, folds)
        except UserError as error:
            # The temporary folder means nothing to the reader.
            raise UserError(str(error).replace(str(folder), str(path))) from error


def read(path: pathlib.Path, folds: Sequence[str]) -> foreign_model.ForeignModel:
    """Reads a folder of results.

    Args:
        path: the folder, or one above it where there is just one choice.
        folds: "0", "1", ... or "all"; empty: all that are numbered, else "all".

    Raises:
        UserError: something is missing, damaged, or cannot be used here.
    """
    folder = _choose(path)
    chosen = _folds(folder, folds)
    contents = {file: _checkpoint_content(file) for file in chosen.values()}
    first = next(iter(contents))
    configuration = _configuration(contents[first], first)
    planned = nnunet_plans.read(folder, configuration)
    members = tuple(
        network_kinds.params(
            planned.kind,
            planned.network,
            torch_files.state_dict(content, file),
            len(planned.seen.modalities),
            str(file),
        )
        for file, content in contents.items()
    )
    mirror, notes = _mirroring(contents[first])
    return foreign_model.ForeignModel(
        source=f"nnU-Net v2 results {folder.parent.name}/{folder.name}, folds {', '.join(chosen)}",
        network=planned.network,
        members=members,
        task=planned.seen.task,
        modalities=planned.seen.modalities,
        head=planned.seen.head,
        order=planned.seen.order,
        axes=planned.axes,
        spacing=planned.spacing,
        window=planned.window,
        overlap=0.5,  # nnU-Net's own
        mirror=mirror,
        known=_known_cases(folder, list(chosen)),
        about=_about(folder, configuration, contents, [*notes, *planned.seen.notes]),
    )


def _choose(path: pathlib.Path) -> pathlib.Path:
    found = find(path)
    if len(found) != 1:
        names = "\n  ".join(str(folder) for folder in found)
        raise UserError(
            f"{path}: holds several folders of results of nnU-Net; give one of\n  {names}"
            if found
            else f"{path}: no folder of results of nnU-Net (plans.json and dataset.json) is here."
        )
    return found[0]


def _folds(folder: pathlib.Path, asked: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns fold -> checkpoint, of the requested folds or of all."""
    there = {
        each.name.removeprefix("fold_"): file
        for each in sorted(folder.glob("fold_*"))
        if (file := _checkpoint(each))
    }
    numbered = [name for name in there if name != "all"]
    wanted = [name.removeprefix("fold_") for name in asked] or numbered or list(there)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise UserError(
            f"{folder}: {'no fold ' + ', '.join(missing) if missing else 'no fold'} with a "
            f"{' or '.join(_CHECKPOINTS)}; there are {', '.join(there) or 'none'}."
        )
    return {name: there[name] for name in dict.fromkeys(wanted)}


def _checkpoint(fold: pathlib.Path) -> pathlib.Path | None:
    return next((fold / name for name in _CHECKPOINTS if (fold / name).is_file()), None)


def _checkpoint_content(file: pathlib.Path) -> typed.Json:
    content = torch_files.read(file)
    if not isinstance(content, dict) or "trainer_name" not in content:
        raise UserError(f"{file} is no checkpoint of nnU-Net v2: trainer_name is missing.")
    # As large as the weights, and of no use here.
    content.pop("optimizer_state", None)
    return content


def _configuration(content: typed.JsonView, file: pathlib.Path) -> str:
    try:
        return str(content["init_args"]["configuration"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no checkpoint of nnU-Net v2: init_args.configuration is missing."
        ) from error


def _mirroring(content: typed.JsonView) -> tuple[bool, list[str]]:
    """Returns whether nnU-Net mirrors along all axes, and a note where along some only."""
    axes = content.get("inference_allowed_mirroring_axes")
    if not axes or sorted(axes) == _ALL_AXES:
        return bool(axes), []
    return False, [f"nnU-Net mirrors along its axes {list(axes)} only; here no mirroring is done"]


def _known_cases(folder: pathlib.Path, folds: Sequence[str]) -> model.KnownCases:
    """Returns the cases of the folds' training and validation, as far as they are known."""
    dataset = documents.read_object(folder / "dataset.json")
    for place in (folder, folder.parent):
        if (path := place / "splits_final.json").is_file():
            return _known(_of_splits(path, folds))
    listed = dataset.get("dataset") or dataset.get("training")
    if isinstance(listed, Mapping):
        return _known(map(str, listed))
    if isinstance(listed, list):
        ending = str(dataset.get("file_ending", ".nii.gz"))
        paths = [each.get("label", "") if isinstance(each, Mapping) else each for each in listed]
        names = [pathlib.PurePath(str(each)).name for each in paths]
        return _known(name.removesuffix(ending) for name in names)
    cases = _of_validations(folder, str(dataset.get("file_ending", ".nii.gz")))
    return _known(cases, complete=len(cases) == dataset.get("numTraining"))


def _known(cases: Iterable[str], complete: bool = True) -> model.KnownCases:
    ids = tuple(sorted(cases))
    return model.KnownCases(ids, complete and bool(ids))


def _of_splits(path: pathlib.Path, folds: Sequence[str]) -> set[str]:
    try:
        splits = documents.read_json(path)
        # What one fold validates, it was chosen on; "all" trains on everything.
        chosen = splits if "all" in folds else [splits[int(fold)] for fold in folds]
        return {str(case) for each in chosen for part in each.values() for case in part}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as nnU-Net's splits ({error!r}). Put the right one there, or "
            "remove it."
        ) from error


def _of_validations(folder: pathlib.Path, ending: str) -> set[str]:
    """Returns the cases that the folds were validated on."""
    cases = set()
    for path in folder.glob("fold_*/validation/summary.json"):
        for case in json_files.need(documents.read_object(path), "metric_per_case", path, list):
            json_files.expect(case, dict, f"{path}: metric_per_case")
            name = re.split(r"[/\\]", str(case.get("prediction_file")))[-1]
            cases.add(name.removesuffix(ending))
    return cases


def _about(
    folder: pathlib.Path,
    configuration: str,
    contents: Mapping[pathlib.Path, typed.JsonView],
    notes: list[str],
) -> typed.Json:
    dataset = documents.read_object(folder / "dataset.json")
    first = next(iter(contents.values()))
    return {
        "tool": "nnU-Net v2",
        "dataset": folder.parent.name,
        "configuration": configuration,
        "trainer": first.get("trainer_name"),
        "epochs": [content.get("current_epoch") for content in contents.values()],
        "sha256": {f"{file.parent.name}/{file.name}": files.sha256(file) for file in contents},
        "licence": str(dataset.get("licence", dataset.get("license", ""))),
        "notes": [
            *notes,
            "its files do not say how the axes of the training's files ran: as in BraTS (LPS)",
            "a trainer of one's own may use another activation, which its weights do not show",
        ],
    }
