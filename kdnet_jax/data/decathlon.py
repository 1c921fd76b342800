"""Which channel of the Decathlon's four-channel files is which sequence."""

import pathlib

from kdnet_jax import conventions, documents
from kdnet_jax.data import layouts
from kdnet_jax.errors import UserError


def read_channels(folder: pathlib.Path, notes: list[str]) -> dict[str, int]:
    """Returns modality -> channel as dataset.json has it; refuses what is not the Decathlon's."""
    path = folder / "dataset.json"
    try:
        description = documents.read_json(path)
        names = {int(channel): name for channel, name in description["modality"].items()}
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
    found = [layouts.SEQUENCES.get(str(names[channel]).lower()) for channel in sorted(names)]
    if sorted(names) != [0, 1, 2, 3] or set(found) != set(conventions.MODALITIES):
        raise UserError(
            f'{path}: "modality" is {description["modality"]}; expected the channels 0 to 3 named '
            "FLAIR, T1w, T1gd and T2w"
        )
    if edema.lower() not in ("edema", "oedema"):
        raise UserError(
            f'{path}: "labels" says that 1 is {edema!r}; expected edema, as in Task01_BrainTumour'
        )
    if found != ["flair", "t1", "t1ce", "t2"]:
        notes.append(f"{path}: the channels are {', '.join(found)}, not the published order")
    return {modality: found.index(modality) for modality in conventions.MODALITIES}
