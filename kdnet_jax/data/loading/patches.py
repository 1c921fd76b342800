"""The stream of training patches by index: which case, which crop.

Element i is a pure function of (seed, i), so that any number of threads and processes sees one
stream, and a position in it is one number.

The order of the cases: every epoch is a permutation by (seed, epoch). The stream is cut into
groups of `batch` cases, and each group serves `crops_per_read` batches in a row, a new crop from
each of its cases in each batch. So a case is decoded once for that many crops (as long as the
store's memory holds a group), and the patches of a batch come from different cases.

A share of the elements (a third, as in nnU-Net, https://doi.org/10.1038/s41592-020-01008-z) is
centred on a foreground voxel: of a class drawn evenly among those that the case has, so that a
small class is met as often as a large one. Voxels that are no class (`Task.unscored`,
`Task.ignore`) are no centres. The other elements are uniform in the volume. A case without
foreground gives a uniform crop in place of a centred one; so does one of a hidden stream, all of
which has `NO_LABEL`.

A case that cannot be read stops the stream, or its elements are cut from another case (`skipping`):
the first of the epoch's order from there on that can be read. So the stream is a function of the
set of unreadable cases too, and all other elements stay as they are.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float16, Integer, Shaped, UInt8, UInt16

from kdnet_jax import task as task_lib
from kdnet_jax.core import memory, typed
from kdnet_jax.data.records import records, skipping, store, teacher_maps
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.errors import UserError

DEFAULT_TUMOUR_SHARE: Final = 1 / 3
# The length of the endless stream: more than any run reads, and still a machine integer.
ENDLESS: Final = 2**53
# Voxels of a class to choose centres from, per case: 4 bytes each in memory.
_CENTRES: Final = 4096
# Random streams, never mixed: one for the permutations, one for the crops; a hidden stream's own.
_EPOCH_STREAM, _CROP_STREAM, _HIDDEN_STREAMS = 0, 1, 2


Classes = UInt8[np.ndarray, "d h w"]


class Patch(TypedDict):
    """A patch, its classes by the task's numbers, and a teacher's probabilities (`Maps`)."""

    image: Float16[np.ndarray, "d h w m"]
    label: UInt8[np.ndarray, "d h w"]
    teacher: NotRequired[UInt16[np.ndarray, "d h w k"]]


class Place(NamedTuple):
    """Where a patch is cut: the index of its case in the store, and its first voxel, "d h w"."""

    case: int
    start: tuple[int, ...]


class _Outline(NamedTuple):
    """What the draw of a crop needs of a case: its size, and `class_voxels`."""

    shape: tuple[int, ...]
    centres: list[Integer[np.ndarray, " _"]]


class PatchSource:
    """The stream by index: `source[i]` is element i, a patch without the batch axis.

    Args:
        cases: the prepared cases, with their task.
        indices: which of them take part.
        patch: size of a patch, "d h w" in voxels.
        batch: elements of a batch over all processes.
        seed: of the stream.
        tumour_share: share of the elements centred on the foreground.
        crops_per_read: crops in a row from one case.
        cavity: class that unscored values count as, see `labels.map_cavity`.
        crop: what is cut, with the patch in its middle; by default the patch. Which patches are
            drawn does not depend on it.
        unreadable: what is done about cases that cannot be read; by default the stream stops.
        hidden: references are not used: nothing that is drawn depends on them.
        maps: a teacher's probabilities for these cases; they do not change the stream.

    Attributes:
        maps: see above.
    """

    def __init__(
        self,
        cases: store.CaseStore,
        indices: Sequence[int],
        *,
        patch: tuple[int, int, int],
        batch: int,
        seed: int,
        tumour_share: float = DEFAULT_TUMOUR_SHARE,
        crops_per_read: int = 1,
        cavity: str = "background",
        crop: tuple[int, int, int] | None = None,
        unreadable: skipping.Unreadable | None = None,
        hidden: bool = False,
        maps: teacher_maps.Maps | None = None,
    ) -> None:
        self._cases = cases
        self.maps = maps
        self.indices = tuple(indices)
        self.patch = tuple(patch)
        self.crop = tuple(crop or patch)
        self.batch = batch
        self._seed = seed
        self._tumour_share = _as_fraction(tumour_share)
        self._crops_per_read = crops_per_read
        self._cavity = cavity
        self._task = cases.task
        self._unreadable = unreadable or skipping.Unreadable(len(self.indices))
        self._hidden = hidden
        first = _HIDDEN_STREAMS if hidden else 0
        self._epoch_stream, self._crop_stream = first + _EPOCH_STREAM, first + _CROP_STREAM
        self._outlines: dict[int, _Outline] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Patch:
        # Another case after each that turns out to be unreadable.
        while (case := self.read(case_index := self.case_of(index))) is None:
            continue
        start = self._start(index, case_index)
        label = crop(self._stored(case), start, self.crop)
        patch = Patch(image=crop(case.image, start, self.crop), label=self._trained(label))
        if self.maps is not None:
            # Read here, in a thread of the loader, not page by page where batches are joined.
            patch["teacher"] = np.ascontiguousarray(crop(self.maps[case_index], start, self.crop))
        return patch

    def cases_of(self, batch: int) -> list[str]:
        """Returns the ids of the cases of a global batch, each once."""
        elements = range(batch * self.batch, (batch + 1) * self.batch)
        return list(dict.fromkeys(map(self.case_id_of, elements)))

    def case_id_of(self, index: int) -> str:
        """Returns the id of the case that element `index` is cut from."""
        return self._cases.summaries[self.case_of(index)].case_id

    def read(self, case_index: int, *, keep: bool = True) -> prepare.PreparedCase | None:
        """Returns a case and learns where its crops may lie; `None` if it is skipped.

        Args:
            case_index: its index in the store.
            keep: let the store keep it in its memory, as far as there is room.

        Raises:
            UserError: it cannot be read, and cases are not skipped, or not so many.
        """
        try:
            case = self._cases[case_index] if keep else self._cases.read(case_index)
        except records.UnreadableCaseError as error:
            self._unreadable.add(error)
            return None
        if case_index not in self._outlines:
            label = None if self._hidden else case.label
            centres = [] if label is None else class_voxels(label, self._task)
            self._outlines[case_index] = _Outline(case.image.shape[:3], centres)
        return case

    def place_of(self, index: int) -> Place:
        """Returns where element `index` is cut, from a case that was read before."""
        case_index = self.case_of(index)
        return Place(case_index, self._start(index, case_index))

    def _start(self, index: int, case_index: int) -> tuple[int, ...]:
        outline = self._outlines[case_index]
        rng = np.random.default_rng([self._seed, self._crop_stream, index])
        if self.is_centred(index) and outline.centres:
            voxels = outline.centres[rng.integers(len(outline.centres))]
            centre = np.unravel_index(voxels[rng.integers(len(voxels))], outline.shape)
            start = centred_start(outline.shape, self.patch, centre)
        else:
            start = uniform_start(outline.shape, self.patch, rng)
        margins = ((outer - inner) // 2 for inner, outer in zip(self.patch, self.crop, strict=True))
        return tuple(first - margin for first, margin in zip(start, margins, strict=True))

    def label_of(self, case_index: int, case: prepare.PreparedCase) -> Classes:
        """Returns the classes of a whole case as this stream has them, and the ignore label."""
        del case_index
        return self._trained(self._stored(case))

    def _stored(self, case: prepare.PreparedCase) -> Classes:
        if self._hidden:
            return np.broadcast_to(np.uint8(task_lib.NO_LABEL), case.image.shape[:3])
        assert case.label is not None  # A case without a reference is of a hidden stream.
        return case.label

    def _trained(self, label: Classes) -> Classes:
        return labels.map_cavity(label, self._cavity, task=self._task)

    @property
    def settings(self) -> typed.Json:
        """All that the stream depends on, as JSON."""
        ids = "\n".join(self._cases.summaries[index].case_id for index in self.indices)
        digest = hashlib.sha256(f"{self._cases.fingerprint}\n{ids}".encode()).hexdigest()
        return {
            "training cases": f"{len(self.indices)} cases ({digest[:12]})",
            "patch": list(self.patch),
            "batch": self.batch,
            "seed": self._seed,
            "tumour_share": str(self._tumour_share),
            "crops_per_read": self._crops_per_read,
            "cavity": self._cavity,
        }

    def notes(self, *, resident: bool = False) -> list[str]:
        """Returns plain sentences about what the stream does otherwise than asked.

        Args:
            resident: the cases lie on the device, so that none is read twice.
        """
        notes = []
        training = [self._cases.summaries[index] for index in self.indices]
        empty = [each.case_id for each in training if not any(each.class_voxels or ())]
        if empty and not self._hidden:
            notes.append(
                f"{len(empty)} of {len(training)} training cases hold no {self._task.noun} "
                f"({empty[0]} among them): all of their patches are drawn at random"
            )
        if len(training) < self.batch:
            notes.append(
                f"{len(training)} training cases for batches of {self.batch}: a batch holds "
                "several patches of one case"
            )
        shapes = [summary.shape for summary in training if summary.shape]
        largest = np.max(shapes, axis=0) if len(shapes) == len(training) else self.patch
        if any(size < edge for size, edge in zip(largest, self.patch, strict=True)):
            notes.append(
                f"the patch of {_by(self.patch)} is larger along some axis than every training "
                f"case (up to {_by(largest)} voxels): what lies outside of a case is 0"
            )
        group = self.batch * max(summary.decoded_bytes for summary in training)
        if self._crops_per_read > 1 and not resident and self._cases.cache_bytes < group:
            notes.append(
                f"crops_per_read={self._crops_per_read} saves no reading: the cases of a batch "
                f"take {memory.size_text(group)}, the store keeps "
                f"{memory.size_text(self._cases.cache_bytes)}"
            )
        return notes

    def is_centred(self, index: int) -> bool:
        """Whether element `index` is centred on the foreground: the first, then a fixed share."""
        share = self._tumour_share
        return math.ceil((index + 1) * share) > math.ceil(index * share)

    def case_of(self, index: int) -> int:
        """Returns the index in the store of the case that element `index` is cut from.

        As far as is known by now: of the epoch's order from its own place on, the first case that
        is not known to be unreadable. Those at its slot of the following groups come first, so that
        a batch keeps different cases.
        """
        batch_number, slot = divmod(index, self.batch)
        position = batch_number // self._crops_per_read * self.batch + slot
        # Whole groups per epoch: a group over two epochs could hold a case twice. The cases that
        # an epoch leaves out are others every time.
        count = len(self.indices)
        length = count - count % self.batch if count >= self.batch else count
        epoch, within = divmod(position, length)
        order = _permutation(self._seed, self._epoch_stream, epoch, count)
        case_index = self.indices[order[within]]
        if case_index not in self._unreadable:
            return case_index
        order = np.roll(order, -within)
        by_slot = np.argsort(np.arange(count) % self.batch != 0, kind="stable")
        others = (self.indices[place] for place in order[by_slot])
        found = next((each for each in others if each not in self._unreadable), None)
        if found is None:
            kind = "without" if self._hidden else "with"
            raise UserError(f"none of the {count} training cases {kind} a reference can be read.")
        return found


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def _as_fraction(share: float) -> Fraction:
    """Returns the share as a small fraction: 3 * (1 / 3) must be 1 for every element number."""
    fraction = Fraction(share).limit_denominator(20)
    if not Fraction(1, 3) <= fraction <= 1:
        raise UserError(f"tumour_share: {share} was given, 1/3 to 1 was expected")
    return fraction


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, epoch: int, count: int) -> Integer[np.ndarray, " n"]:
    return np.random.default_rng([seed, stream, epoch]).permutation(count)


def class_voxels(
    label: UInt8[np.ndarray, "d h w"], task: task_lib.Task
) -> list[Integer[np.ndarray, " _"]]:
    """Returns flat indices of voxels, one array for each class but 0 that is present.

    Of a large class evenly spaced voxels are taken, which keeps the memory of a cohort small.
    """
    found = np.flatnonzero(label)
    values = label.reshape(-1)[found]
    by_class = [found[values == c] for c in range(1, len(task.classes))]
    return [_thin(voxels).astype(np.int32) for voxels in by_class if len(voxels)]


def _thin(voxels: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " k"]:
    if len(voxels) <= _CENTRES:
        return voxels
    return voxels[np.linspace(0, len(voxels) - 1, _CENTRES).astype(int)]


def uniform_start(
    shape: Sequence[int], patch: Sequence[int], rng: np.random.Generator
) -> tuple[int, ...]:
    """Returns the first voxel of a crop drawn evenly among those inside the volume.

    Along an axis shorter than the patch it is negative: the volume lies in the crop's middle.
    """
    return tuple(
        int(rng.integers(size - length + 1)) if size >= length else -((length - size) // 2)
        for size, length in zip(shape, patch, strict=True)
    )


def centred_start(
    shape: Sequence[int], patch: Sequence[int], centre: Sequence[int]
) -> tuple[int, ...]:
    """Returns the first voxel of the crop around `centre`, moved inside the volume."""
    return tuple(
        min(max(int(middle) - length // 2, 0), size - length)
        if size >= length
        else -((length - size) // 2)
        for size, length, middle in zip(shape, patch, centre, strict=True)
    )


def crop(
    volume: Shaped[np.ndarray, "d h w *m"], start: Sequence[int], patch: Sequence[int]
) -> Shaped[np.ndarray, "a b c *m"]:
    """Cuts `patch` voxels from `volume` ("d h w" or "d h w m"); what lies outside is 0."""
    ranges = [
        (max(first, 0), min(first + length, size))
        for first, length, size in zip(start, patch, volume.shape[:3], strict=True)
    ]
    inside = volume[tuple(slice(low, high) for low, high in ranges)]
    if inside.shape[:3] == tuple(patch):
        return inside
    padded = np.zeros((*patch, *volume.shape[3:]), volume.dtype)
    offsets = [low - first for (low, _), first in zip(ranges, start, strict=True)]
    where = [slice(o, o + high - low) for o, (low, high) in zip(offsets, ranges, strict=True)]
    padded[tuple(where)] = inside
    return padded
