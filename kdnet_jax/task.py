"""The segmentation task: channels, classes and regions, and how regions are painted.

`dataset_json.py` reads it from nnU-Net's `dataset.json` and writes it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Integer

from kdnet_jax.data.sources import names
from kdnet_jax.errors import UserError, nearest

# The class of all voxels of a case whose reference is not used; no task has so many.
NO_LABEL: Final = 255

Normalisation = Literal["zscore_nonzero", "zscore", "ct", "rescale", "none"]
NORMALISATIONS: Final[tuple[Normalisation, ...]] = get_args(Normalisation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """An input channel: an MRI sequence, a CT, ...

    Attributes:
        name: as in `channel_names`, in lower case.
        aliases: other names that its files may have.
        normalisation: "zscore_nonzero": (x - mean) / deviation over what is not background, which
            becomes 0; "zscore": the same over all voxels; "ct": cut at the 0.5 and 99.5 percentile
            of the foreground of all training cases, then (x - mean) / deviation of that;
            "rescale": to 0..1 by the volume's own minimum and maximum; "none".
        statistics: low, high, mean and deviation of a "ct" channel; `None` until the training
            cases were measured.
    """

    name: str
    aliases: tuple[str, ...] = ()
    normalisation: Normalisation = "zscore"
    statistics: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """What is scored: a set of classes; regions may overlap.

    Attributes:
        name: as in `labels`.
        members: the classes that belong to it.
        paint: the class that a voxel of it gets where regions are decided one by one.
        fallback: the class that replaces it where it is too small to be true; `None`: it stays.
        description: what it is, for reports; may be empty.
    """

    name: str
    members: tuple[int, ...]
    paint: int
    fallback: int | None = None
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is segmented in what.

    Attributes:
        name: of the task.
        channels: the input channels, in the order of the images' last axis.
        classes: names by class number; 0 is the background.
        regions: what is scored, in the order of reports and of a regions head's outputs.
        painting: positions in `regions`, in the order in which they are painted.
        unscored: names of the stored values from `len(classes)` on that are no class.
        ignore: the stored value of unlabelled voxels; in no loss and no score.
        file_ending: of the images and labels.
        student: the channel that a student sees by default; `None`: the user must say.
        noun: what the regions are parts of, for messages and reports.
        title: what is segmented, in a sentence; the name where it is empty.
        channel_noun: what a channel is.
        crops_zeros: rows of 0 in every channel are cut off though the scans are not skull-stripped,
            as nnU-Net does; see `is_cropped`.
    """

    name: str
    channels: tuple[Channel, ...]
    classes: tuple[str, ...]
    regions: tuple[Region, ...]
    painting: tuple[int, ...]
    unscored: tuple[str, ...] = ()
    ignore: int | None = None
    file_ending: str = ".nii.gz"
    student: str | None = None
    noun: str = "foreground"
    title: str = ""
    channel_noun: str = "channel"
    crops_zeros: bool = False

    @functools.cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(channel.name for channel in self.channels)

    @functools.cached_property
    def region_names(self) -> tuple[str, ...]:
        """Names of the regions."""
        return tuple(region.name for region in self.regions)

    @functools.cached_property
    def hull(self) -> tuple[int, ...]:
        """The classes of the union of all regions."""
        return tuple(sorted({member for region in self.regions for member in region.members}))

    @functools.cached_property
    def meaning(self) -> dict[str, str]:
        """What two tasks must share for a network of one to serve the other, in words."""
        channels = [f"{each.name} ({each.normalisation})" for each in self.channels]
        regions = [f"{each.name} {'+'.join(map(str, each.members))}" for each in self.regions]
        return {
            "channels": ", ".join(channels),
            "number of classes": str(len(self.classes)),
            "regions": ", ".join(regions),
            "unscored values": ", ".join(self.unscored) or "none",
            "ignore label": str(self.ignore),
        }

    def difference(self, other: "Task") -> str:
        """Returns the first thing of `meaning` that differs, in words; empty: the tasks agree."""
        for what, own in self.meaning.items():
            if own != other.meaning[what]:
                return f"their {what} differ: {own}, and {other.meaning[what]}"
        return ""

    @property
    def statistics(self) -> dict[str, tuple[float, float, float, float]]:
        """Channel -> statistics, of those that were measured or given."""
        return {each.name: each.statistics for each in self.channels if each.statistics}

    @property
    def has_regions(self) -> bool:
        """Whether the regions are others than the classes one by one."""
        return [region.members for region in self.regions] != [
            (number,) for number in range(1, len(self.classes))
        ]

    def channel(self, name: str) -> Channel:
        """Returns the channel of that name."""
        return self.channels[self.modalities.index(name)]

    def region(self, name: str) -> Region:
        """Returns the region of that name."""
        return self.regions[self.region_names.index(name)]

    def zero_is_background(self, modalities: Iterable[str] | None = None) -> tuple[bool, ...]:
        """Returns for each channel whether 0 in the networks' input means background, exactly.

        Args:
            modalities: which of the channels; by default all.
        """
        names = self.modalities if modalities is None else modalities
        return tuple(self.channel(name).normalisation == "zscore_nonzero" for name in names)

    @property
    def is_cropped(self) -> bool:
        """Whether a case is cut down to where any of its channels has data.

        All sequences of a skull-stripped case have one brain. Of other scans each channel has its
        own rows without data: a channel alone would lie on another grid than beside the others.
        """
        return self.crops_zeros or all(self.zero_is_background())

    def mask(self, classes: Integer[np.ndarray, "*grid"], region: str) -> Bool[np.ndarray, "*grid"]:
        """Returns the voxels of `classes` that belong to a region."""
        return _among(classes, self.region(region).members)

    def hull_mask(self, classes: Integer[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
        """Returns the voxels of `classes` that belong to any region."""
        return _among(classes, self.hull)

    def read_modalities(self, text: str, key: str) -> tuple[str, ...]:
        """Returns the channels of a comma-separated text, in the task's order.

        Raises:
            UserError: for an empty text, an unknown or a repeated channel.
        """
        asked = [name.strip().lower() for name in text.split(",") if name.strip()]
        # As the files' names are understood: t1gd is near to t1, and is t1ce.
        known = {**names.SEQUENCES, **{name: name for name in self.modalities}}
        known = {name: channel for name, channel in known.items() if channel in self.modalities}
        for name in asked:
            if name not in self.modalities:
                hint = nearest(names.read(name).sequence or name, known, known)
                raise UserError(
                    f"{key} holds {name!r}{hint} (the sequences are {', '.join(self.modalities)})."
                )
        if not asked or len(set(asked)) < len(asked):
            raise UserError(f"{key} is {text!r}: name each sequence once, separated by commas.")
        return tuple(name for name in self.modalities if name in asked)


GLIOMA: Final = Task(
    name="glioma",
    channels=tuple(
        Channel(name=name, normalisation="zscore_nonzero") for name in ("t1", "t1ce", "t2", "flair")
    ),
    classes=("background", "NCR", "ED", "ET"),
    regions=(
        Region(name="ET", members=(3,), paint=3, fallback=1, description="enhancing tumour"),
        Region(name="TC", members=(1, 3), paint=1, description="tumour core"),
        Region(name="WT", members=(1, 2, 3), paint=2, description="whole tumour"),
    ),
    painting=(2, 1, 0),
    unscored=("resection cavity",),
    student="t1ce",
    noun="tumour",
    title="a glioma",
    channel_noun="MRI sequence",
)
GLIOMA_NAME: Final = GLIOMA.name
# Where no task is named.
DEFAULT: Final = GLIOMA


def _among(
    classes: Integer[np.ndarray, "*grid"], members: Sequence[int]
) -> Bool[np.ndarray, "*grid"]:
    if classes.dtype != np.uint8:
        return np.isin(classes, members)
    # A third of the time.
    table = np.zeros(256, bool)
    table[list(members)] = True
    return table[classes]
