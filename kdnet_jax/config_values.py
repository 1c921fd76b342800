"""The type and the range of every value of a config, in one table.

What depends on several keys is checked where it is used (`settings.py`); names to choose from, by
what knows them. A limit above is far beyond use: it tells a slip of the finger.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

from kdnet_jax.errors import UserError


class Kind(Protocol):
    """What a value must be."""

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind."""

    @property
    def words(self) -> str:
        """What to give."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind; true and false are no numbers."""
        return type(value) is int and self.low <= value <= self.high

    @property
    def words(self) -> str:
        """What to give."""
        return f"a whole number from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, perhaps without one of these themselves."""

    low: float
    high: float
    without_low: bool = False
    without_high: bool = False

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind; NaN is not."""
        if type(value) not in (int, float) or not self.low <= value <= self.high:
            return False
        at_end = (self.without_low and value == self.low) or (
            self.without_high and value == self.high
        )
        return math.isfinite(value) and not at_end

    @property
    def words(self) -> str:
        """What to give."""
        start = "above" if self.without_low else "from"
        end = "to below" if self.without_high else "to"
        return f"a number {start} {self.low:g} {end} {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Several:
    """So many values of one kind."""

    kind: Kind
    least: int
    most: int

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind."""
        if not isinstance(value, (tuple, list)) or not self.least <= len(value) <= self.most:
            return False
        return all(map(self.kind.fits, value))

    @property
    def words(self) -> str:
        """What to give."""
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{count} values with commas, each {self.kind.words}"


@dataclasses.dataclass(frozen=True)
class OneOr:
    """One value, or several of its kind."""

    several: Several

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind."""
        return self.several.kind.fits(value) or self.several.fits(value)

    @property
    def words(self) -> str:
        """What to give."""
        return f"{self.several.kind.words}, or {self.several.words}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text."""

    words: str = "a text"

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind; no file's name holds a NUL."""
        return isinstance(value, str) and "\0" not in value


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or false."""

    words: str = "true or false"

    def fits(self, value: Any) -> bool:
        """Says whether a value is of this kind."""
        return isinstance(value, bool)


_SEED: Final = Whole(0, 2**31 - 1)
_STEPS: Final = Whole(1, 10**9)
_SHARE: Final = Number(0, 1)
_EDGES: Final = Several(Whole(1, 1024), 3, 3)
_THREADS: Final = Whole(1, 1024)

KINDS: Final[dict[str, Kind]] = {
    "role": Text(),
    "preset": Text(),
    "task": Text(),
    "seed": _SEED,
    "profile": Whole(0, 10**6),
    "data.data_dir": Text(),
    "data.release": Text(),
    "data.label_convention": Text(),
    "data.root": Text(),
    "data.modalities": Text(),
    "data.spacing": OneOr(Several(Number(0, 100), 3, 3)),
    "data.orientation": Text(),
    "data.resection_cavity": Text(),
    "data.allow_skull": Switch(),
    "data.skip_bad_cases": Switch(),
    "data.workers": _THREADS,
    "data.phantom.cases": Whole(1, 10**5),
    "data.phantom.seed": _SEED,
    "split.file": Text(),
    "split.seed": _SEED,
    "split.train": _SHARE,
    "split.validation": _SHARE,
    "split.test": _SHARE,
    "split.folds": Whole(0, 1000),
    "split.fold": Whole(0, 999),
    "loader.patch": _EDGES,
    "loader.batch": Whole(1, 10**5),
    "loader.tumour_share": Number(1 / 3, 1),
    "loader.crops_per_read": Whole(1, 1000),
    "loader.threads": _THREADS,
    "loader.prefetch_batches": Whole(1, 1000),
    "model.modalities": Text(),
    "model.family": Text(),
    "model.widths": Several(Whole(1, 10**4), 2, 9),
    # No more than a level each.
    "model.strides": Several(Several(Whole(1, 2), 3, 3), 0, 8),
    "model.kernels": Several(Several(Whole(1, 3), 3, 3), 0, 9),
    "model.blocks": Whole(1, 100),
    "model.last_blocks": Whole(1, 100),
    "model.deep_supervision": Switch(),
    "model.remat": Switch(),
    "loss.over_batch": Switch(),
    "optimizer.learning_rate": Number(0, 100, without_low=True),
    "optimizer.warmup": Whole(0, 10**9),
    "optimizer.weight_decay": Number(0, 100),
    "optimizer.clip": Number(0, 1e9),
    "optimizer.plateau_factor": Number(0, 1, without_low=True, without_high=True),
    "optimizer.plateau_epochs": Whole(1, 10**6),
    "augment.flip_axes": Text(),
    "augment.scale": Number(0, 1),
    "augment.shift": Number(0, 10),
    "augment.noise": Number(0, 10),
    **{
        f"augment.{name}": Several(Number(-360, 360), 2, 2)
        for name in ("rotation", "zoom_out", "elastic", "blur", "contrast", "low_resolution")
    },
    "augment.gamma": Several(Number(0, 100), 2, 2),
    "train.steps": _STEPS,
    "train.log_every": _STEPS,
    "train.validate_every": _STEPS,
    "train.save_minutes": Number(0, 1e6, without_low=True),
    "train.save_steps": Whole(0, 10**9),
    "train.early_stop": Whole(0, 10**6),
    "train.accumulate": Whole(1, 10**5),
    "inference.patch": _EDGES,
    "inference.overlap": Number(0, 1, without_high=True),
    "inference.mirror": Switch(),
    "inference.whole": Switch(),
    "mesh.data": Whole(-1, 10**6),
    "mesh.space": Whole(1, 10**6),
    "mesh.state": Text(),
    "distillation.kd_weight": _SHARE,
    "distillation.latent_weight": Number(0, 1e6),
    "distillation.temperature": Number(0, 1000, without_low=True),
    "distillation.temper_student": Switch(),
    "distillation.scale_by_temperature": Switch(),
    "teacher.checkpoint": Text(),
    "teacher.folds": Text(),
    "teacher.modalities": Text(),
    "teacher.widths": Several(Whole(1, 10**4), 0, 9),
    "teacher.steps": _STEPS,
    "study.seeds": Whole(1, 100),
    "study.folds": Whole(0, 100),
}


_SECTIONS: Final = {key.split(".")[0] for key in KINDS if "." in key}


def check(values: Mapping[str, Any]) -> None:
    """Raises UserError for the first value that is of another type or beyond its range.

    Args:
        values: dotted key -> value. Keys that the table lacks are left to those who know them;
            a key of `augment` that is not set (`None`) has its preset's value.
    """
    for key, value in values.items():
        if key in _SECTIONS and value != {}:
            raise UserError(f"{key} is {value!r:.80}: it is a section, and has keys of its own.")
        if (above := key.rpartition(".")[0]) in KINDS:
            raise UserError(f"{above} has keys of its own: give {KINDS[above].words}.")
        unset = value is None and key.startswith("augment.")
        kind = KINDS.get(key)
        if kind and not unset and not kind.fits(value):
            raise UserError(f"{key} is {value!r:.80}: give {kind.words}.")
