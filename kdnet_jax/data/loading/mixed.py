"""A stream of patches of cases with a reference and of cases without one, in a fixed pattern.

Element i is one or the other by the share alone, and each kind counts its own elements: either is a
stream of its own (`patches.PatchSource`), with its own order of cases and its own share of patches
on tumour, and every element is still a pure function of (seed, i).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from kdnet_jax.core import typed
from kdnet_jax.data.loading import patches
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import prepare


class MixedSource:
    """The stream by index, as `patches.PatchSource` is one.

    Args:
        labelled: the stream of cases with a reference, of a batch of its own (`make_source`).
        unlabelled: the stream of cases without one, likewise.
        batch: elements of a batch over all processes.
        share: of the elements, those without a reference.
    """

    def __init__(
        self,
        labelled: patches.PatchSource,
        unlabelled: patches.PatchSource,
        *,
        batch: int,
        share: Fraction,
    ) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled
        self._without_reference = frozenset(unlabelled.indices)
        self._share = share
        self.batch = batch
        self.indices = (*labelled.indices, *unlabelled.indices)
        self.crop, self.maps = labelled.crop, labelled.maps

    def __len__(self) -> int:
        return patches.ENDLESS

    def __getitem__(self, index: int) -> patches.Patch:
        source, own = self._own(index)
        return source[own]

    def is_unlabelled(self, index: int) -> bool:
        """Whether element `index` has no reference."""
        return math.floor((index + 1) * self._share) > math.floor(index * self._share)

    def _own(self, index: int) -> tuple[patches.PatchSource, int]:
        """Returns the stream that an element belongs to, and its number there."""
        before = math.floor(index * self._share)
        if self.is_unlabelled(index):
            return self._unlabelled, before
        return self._labelled, index - before

    def cases_of(self, batch: int) -> list[str]:
        """Returns the ids of the cases of a global batch, each once."""
        elements = range(batch * self.batch, (batch + 1) * self.batch)
        names = (source.case_id_of(own) for source, own in map(self._own, elements))
        return list(dict.fromkeys(names))

    def read(self, case_index: int, *, keep: bool = True) -> prepare.PreparedCase | None:
        """See `patches.PatchSource.read`."""
        return self._source_of(case_index).read(case_index, keep=keep)

    def place_of(self, index: int) -> patches.Place:
        """Returns where element `index` is cut, from a case that was read before."""
        source, own = self._own(index)
        return source.place_of(own)

    def label_of(self, case_index: int, case: prepare.PreparedCase) -> patches.Classes:
        """Returns the classes of a whole case as this stream has them."""
        return self._source_of(case_index).label_of(case_index, case)

    def _source_of(self, case_index: int) -> patches.PatchSource:
        return self._unlabelled if case_index in self._without_reference else self._labelled

    @property
    def settings(self) -> typed.Json:
        """All that the stream depends on, as JSON."""
        return self._labelled.settings | {
            "batch": self.batch,
            "unlabelled cases": self._unlabelled.settings["training cases"],
            "unlabelled_share": str(self._share),
        }

    def notes(self, *, resident: bool = False) -> list[str]:
        """See `patches.PatchSource.notes`."""
        return [
            *self._labelled.notes(resident=resident),
            f"{len(self._unlabelled.indices)} training cases without a reference in use: a share "
            f"of {self._share} of the patches, which the teacher labels",
        ]


Source = patches.PatchSource | MixedSource


def make_source(
    cases: store.CaseStore,
    indices: Sequence[int],
    unlabelled: Sequence[int],
    share: float,
    *,
    batch: int,
    hidden: bool = False,
    **options: Any,
) -> Source:
    """Returns the stream of a run's training cases.

    Args:
        cases: the prepared cases, with their task.
        indices: which of them train with their reference.
        unlabelled: which of them train without one.
        share: of the elements, those without a reference; taken as a fraction of up to 1000ths.
        batch: elements of a batch over all processes.
        hidden: all cases train without their reference, in one stream.
        **options: see `patches.PatchSource`.
    """
    if hidden or not unlabelled:
        every = [*indices, *unlabelled]
        return patches.PatchSource(cases, every, batch=batch, hidden=hidden, **options)
    fraction = Fraction(share).limit_denominator(1000)
    # So many cases of a kind a batch holds at most.
    own = max(1, math.ceil(batch * (1 - fraction)))
    others = max(1, math.ceil(batch * fraction))
    return MixedSource(
        patches.PatchSource(cases, indices, batch=own, **options),
        patches.PatchSource(cases, unlabelled, batch=others, hidden=True, **options),
        batch=batch,
        share=fraction,
    )
