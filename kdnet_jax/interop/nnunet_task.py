"""Task of an nnU-Net model: that of its dataset.json, as its plans prepared it."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Final

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import json_files, vocabulary
from kdnet_jax.models import heads

ZSCORE: Final = "ZScoreNormalization"
# Whether a z-score is over a mask or over all voxels "use_mask_for_norm" says.
SCHEMES: Final[dict[str, task_lib.Normalisation]] = {
    ZSCORE: "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
# What plans.json calls low, high, mean and deviation of a CT channel.
STATISTICS: Final = ("percentile_00_5", "percentile_99_5", "mean", "std")
PROPERTIES: Final = "foreground_intensity_properties_per_channel"


@dataclasses.dataclass(frozen=True)
class Read:
    """What a model segments, and how its channels lie; see `foreign_model.ForeignModel`.

    Attributes:
        task: what it segments.
        modalities: the task's names in the order of the model's channels.
        head: what its outputs are.
        order: for each output of that head, the model's own channel.
        notes: what was assumed.
    """

    task: task_lib.Task
    modalities: tuple[str, ...]
    head: heads.Kind
    order: tuple[int, ...]
    notes: tuple[str, ...] = ()


def read(
    dataset: typed.JsonView,
    plans: typed.JsonView,
    plan: typed.JsonView,
    folder: pathlib.Path,
    where: str,
) -> Read:
    """Returns the glioma where names and normalisation are its own, else the dataset's own task.

    Args:
        dataset: dataset.json.
        plans: plans.json.
        plan: a configuration of it.
        folder: where both lie.
        where: names the configuration in messages.

    Raises:
        UserError: dataset.json describes no task, or a normalisation has no counterpart here.
    """
    file = folder / "dataset.json"
    channels = json_files.by_number(
        dataset.get("channel_names", dataset.get("modality")), f"{file}: channel_names"
    )
    labels = json_files.need(dataset, "labels", file, dict)
    names = [name.strip().lower() for name in channels]
    normalisation = _normalisations(plan, names, where)
    note = ()
    if vocabulary.is_glioma(channels, _output_names(dataset)):
        if set(normalisation) == {"zscore_nonzero"}:
            modalities = vocabulary.modalities(channels, f"{file}: channel_names")
            head, order = vocabulary.label_table(labels, f"{file}: labels")
            return Read(task_lib.GLIOMA, modalities, head, order)
        note = (
            "its channels and labels are a glioma's, but not all intensities are z-scores over the "
            "brain: taken as a task of its own",
        )
    key = dataset_json.OWN_KEY
    own = json_files.expect(dataset.get(key, {}), dict, f"{file}: {key}")
    is_ct = [i for i, each in enumerate(normalisation) if each == "ct"]
    document = {
        **dataset,
        "name": dataset.get("name") or plans.get("dataset_name") or folder.parent.name,
        key: own
        | {
            "normalisation": dict(zip(names, normalisation, strict=True)),
            "statistics": {names[i]: _statistics(plans, i, where) for i in is_ct},
            # nnU-Net does; of a network from here its file says what it was trained on.
            "crops_zeros": own.get("crops_zeros", True),
        },
    }
    if not has_regions(dataset):
        # nnU-Net does not look at it then.
        document.pop("regions_class_order", None)
    task = dataset_json.parse(document, str(file))
    if not has_regions(dataset):
        return Read(task, task.modalities, "softmax", tuple(range(len(task.classes))), note)
    order = tuple(task.painting.index(place) for place in range(len(task.regions)))
    return Read(task, task.modalities, "regions", order, note)


def has_regions(dataset: typed.JsonView) -> bool:
    """Returns whether a dataset.json makes nnU-Net's outputs regions, as its `LabelManager`."""
    values = dataset["labels"].values()
    return any(isinstance(value, list) and len(value) > 1 for value in values)


def _output_names(dataset: typed.JsonView) -> list[str]:
    hidden = ("ignore", "background") if has_regions(dataset) else ("ignore",)
    return [name for name in dataset["labels"] if name not in hidden]


def _normalisations(
    plan: typed.JsonView, names: Sequence[str], where: str
) -> list[task_lib.Normalisation]:
    schemes = json_files.need(plan, "normalization_schemes", where, list)
    masks = json_files.need(plan, "use_mask_for_norm", where, list)
    if not len(schemes) == len(masks) == len(names):
        raise UserError(
            f"{where}: normalization_schemes has {len(schemes)} and use_mask_for_norm "
            f"{len(masks)} values; expected one for each of the {len(names)} channels "
            f"{', '.join(names)}."
        )
    unknown = [scheme for scheme in schemes if str(scheme) not in SCHEMES]
    if unknown:
        raise UserError(
            f"{where}: normalization_schemes holds {unknown[0]!r}; only {', '.join(SCHEMES)} can "
            "be taken here."
        )
    for mask in masks:
        json_files.expect(mask, bool, f"{where}: use_mask_for_norm")
    return [
        "zscore_nonzero" if scheme == ZSCORE and mask else SCHEMES[scheme]
        for scheme, mask in zip(schemes, masks, strict=True)
    ]


def _statistics(plans: typed.JsonView, channel: int, where: str) -> list[object]:
    properties = json_files.need(plans, PROPERTIES, where, dict)
    where = f"{where}: {PROPERTIES}"
    given = json_files.need(properties, str(channel), where, dict)
    return [json_files.need(given, name, f"{where}.{channel}", object) for name in STATISTICS]
