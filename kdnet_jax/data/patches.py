"""The stream of training patches by index: which case, which crop.

Element i is a pure function of (seed, i), so that any number of threads and processes sees one
stream, and a position in it is one number.

The order of the cases: every epoch is a permutation by (seed, epoch). The stream is cut into
groups of `batch` cases, and each group serves `crops_per_read` batches in a row, a new crop from
each of its cases in each batch. So a case is decoded once for that many crops (as long as the
store's memory holds a group), and the patches of a batch come from different cases.

A share of the elements (a third, as in nnU-Net, https://doi.org/10.1038/s41592-020-01008-z) is
centred on a tumour voxel: of a class drawn evenly among those that the case has, so that a small
enhancing rim is met as often as a large oedema. The other elements are uniform in the volume. A
case without tumour gives a uniform crop in place of a centred one.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, Literal, TypedDict

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from kdnet_jax import conventions
from kdnet_jax.data import labels, prepare, store
from kdnet_jax.errors import UserError

DEFAULT_TUMOUR_SHARE: Final = 1 / 3
# The length of the endless stream: more than any run reads, and still a machine integer.
ENDLESS: Final = 2**53
# Tumour voxels of a class to choose centres from, per case: 4 bytes each in memory.
_CENTRES: Final = 4096
# Random streams, never mixed: one for the permutations, one for the crops.
_EPOCH_STREAM, _CROP_STREAM = 0, 1


class Patch(TypedDict):
    """A patch and its classes 0..3 (`conventions.CLASSES`)."""

    image: Float[np.ndarray, "d h w m"]
    label: UInt8[np.ndarray, "d h w"]


class PatchSource:
    """The stream by index: `source[i]` is element i, a patch without the batch axis.

    Args:
        cases: the prepared cases.
        indices: which of them take part.
        patch: size of a patch, "d h w" in voxels.
        batch: elements of a batch over all processes.
        seed: of the stream.
        tumour_share: share of the elements centred on tumour.
        crops_per_read: crops in a row from one case.
        cavity: class that a resection cavity counts as, see `labels.map_cavity`.
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
        cavity: Literal["background", "NCR"] = "background",
    ) -> None:
        self._cases = cases
        self._indices = tuple(indices)
        self._patch = tuple(patch)
        self.batch = batch
        self._seed = seed
        self._tumour_share = _as_fraction(tumour_share)
        self._crops_per_read = crops_per_read
        self._cavity = cavity
        self._centres: dict[int, list[Integer[np.ndarray, " n"]]] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Patch:
        case_index = self.case_of(index)
        case = self._cases[case_index]
        rng = np.random.default_rng([self._seed, _CROP_STREAM, index])
        start = None
        if self.is_centred(index):
            start = self._centred_start(case_index, case, rng)
        if start is None:
            start = uniform_start(case.label.shape, self._patch, rng)
        label = labels.map_cavity(crop(case.label, start, self._patch), self._cavity)
        image = crop(case.image, start, self._patch)
        return Patch(image=image.astype(np.float32), label=label)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the stream depends on, as JSON."""
        ids = "\n".join(self._cases.summaries[index].case_id for index in self._indices)
        digest = hashlib.sha256(f"{self._cases.fingerprint}\n{ids}".encode()).hexdigest()
        return {
            "training cases": f"{len(self._indices)} cases ({digest[:12]})",
            "patch": list(self._patch),
            "batch": self.batch,
            "seed": self._seed,
            "tumour_share": str(self._tumour_share),
            "crops_per_read": self._crops_per_read,
            "cavity": self._cavity,
        }

    def notes(self) -> list[str]:
        """Returns plain sentences about what the stream does otherwise than asked."""
        notes = []
        training = [self._cases.summaries[index] for index in self._indices]
        empty = [summary.case_id for summary in training if not any(summary.tumour_voxels or ())]
        if empty:
            notes.append(
                f"{len(empty)} of {len(training)} training cases hold no tumour ({empty[0]} among "
                "them): all of their patches are drawn at random"
            )
        if len(training) < self.batch:
            notes.append(
                f"{len(training)} training cases for batches of {self.batch}: a batch holds "
                "several patches of one case"
            )
        group = self.batch * max(summary.decoded_bytes for summary in training)
        if self._crops_per_read > 1 and self._cases.cache_bytes < group:
            notes.append(
                f"crops_per_read={self._crops_per_read} saves no reading: the cases of a batch "
                f"take {group} bytes, the store keeps {self._cases.cache_bytes}"
            )
        return notes

    def is_centred(self, index: int) -> bool:
        """Whether element `index` is centred on tumour: the first, and then a fixed share."""
        share = self._tumour_share
        return math.ceil((index + 1) * share) > math.ceil(index * share)

    def case_of(self, index: int) -> int:
        """Returns the index in the store of the case that element `index` is cut from."""
        batch_number, slot = divmod(index, self.batch)
        position = batch_number // self._crops_per_read * self.batch + slot
        # Whole groups per epoch: a group over two epochs could hold a case twice. The cases that
        # an epoch leaves out are others every time.
        count = len(self._indices)
        length = count - count % self.batch if count >= self.batch else count
        epoch, within = divmod(position, length)
        return self._indices[_permutation(self._seed, epoch, count)[within]]

    def _centred_start(
        self, case_index: int, case: prepare.PreparedCase, rng: np.random.Generator
    ) -> tuple[int, ...] | None:
        """Returns where a crop around a random tumour voxel begins; None without tumour."""
        if case_index not in self._centres:
            self._centres[case_index] = tumour_voxels(case.label)
        by_class = self._centres[case_index]
        if not by_class:
            return None
        voxels = by_class[rng.integers(len(by_class))]
        centre = np.unravel_index(voxels[rng.integers(len(voxels))], case.label.shape)
        return centred_start(case.label.shape, self._patch, centre)


def _as_fraction(share: float) -> Fraction:
    """Returns the share as a small fraction: 3 * (1 / 3) must be 1 for every element number."""
    fraction = Fraction(share).limit_denominator(20)
    if not Fraction(1, 3) <= fraction <= 1:
        raise UserError(f"tumour_share: {share} was given, 1/3 to 1 was expected")
    return fraction


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Integer[np.ndarray, " n"]:
    return np.random.default_rng([seed, _EPOCH_STREAM, epoch]).permutation(count)


def tumour_voxels(label: UInt8[np.ndarray, "d h w"]) -> list[Integer[np.ndarray, " n"]]:
    """Returns flat indices of tumour voxels, one array for each of NCR, ED, ET that is present.

    Of a large class evenly spaced voxels are taken, which keeps the memory of a cohort small.
    """
    tumour = np.flatnonzero(label)
    values = label.reshape(-1)[tumour]
    by_class = [tumour[values == c] for c in range(1, len(conventions.CLASSES))]
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
