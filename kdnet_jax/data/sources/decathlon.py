"""Order of the sequences in the Decathlon's four-channel files."""

import pathlib
from collections.abc import Sequence

from kdnet_jax import task as task_lib
from kdnet_jax.core import documents
from kdnet_jax.data.sources import labels, names
from kdnet_jax.errors import UserError


def read_channels(folder: pathlib.Path, notes: list[str]) -> dict[str, int]:
    """Returns modality -> channel as dataset.json has it; refuses what is not the Decathlon's."""
    path = folder / "dataset.json"
    try:
        description = documents.read_json(path)
        listed = {int(channel): name for channel, name in description["modality"].items()}
        edema = str(description["labels"]["1"])
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing; it says which channel is which sequence. Copy it from the "
            "Decathlon's Task01_BrainTumour"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not the Decathlon's description ({type(error).__name__}: {error}); "
            'expected JSON with "modality" and "labels". Copy it from Task01_BrainTumour'
        ) from error
    found = [names.SEQUENCES.get(str(listed[channel]).lower()) for channel in sorted(listed)]
    if sorted(listed) != [0, 1, 2, 3] or set(found) != set(task_lib.GLIOMA.modalities):
        raise UserError(
            f'{path}: "modality" is {description["modality"]}; expected the channels 0 to 3 named '
            "FLAIR, T1w, T1gd and T2w"
        )
    if edema.lower() not in ("edema", "oedema"):
        raise UserError(
            f'{path}: "labels" says that 1 is {edema!r}; expected edema, as in Task01_BrainTumour'
        )
    if found != ["flair", "t1", "t1ce", "t2"]:
        notes.append(
            f"{path}: the channels are {', '.join(map(str, found))}, not the published order"
        )
    return {modality: found.index(modality) for modality in task_lib.GLIOMA.modalities}


def check_channels(path: pathlib.Path, shape: Sequence[int], task: task_lib.Task) -> None:
    """Refuses an image that does not have the channels that dataset.json lists.

    Args:
        path: names it in the message.
        shape: of its voxels, the channels last.
        task: what the channels are of.

    Raises:
        UserError: a copy that was cut down to one sequence, or another image.
    """
    found = shape[3] if len(shape) == 4 else 1
    expected = len(task.channels)
    if found == expected:
        return
    finding = (
        f"{path}: has {found} channel(s); dataset.json lists {expected}, so it is unknown "
        "which sequence is which"
    )
    if not labels.is_brats(task):
        raise UserError(
            f'{finding} ({", ".join(task.modalities)}). Correct the "channel_names", or replace '
            "the file"
        )
    raise UserError(
        f"{finding}. Copy the file from the Decathlon's Task01_BrainTumour, or take the cases out "
        "of its layout: CASE_SEQUENCE.nii.gz and CASE_seg.nii.gz, with the "
        "labels of decathlon (check_data, build_data: --label_convention; in a config "
        "--config.data.label_convention)"
    )
