"""The scores of paired runs as arrays, fold by fold."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from kdnet_jax.evaluation import comparison_runs

MEAN: Final = "mean"


def columns(regions: Sequence[str]) -> tuple[str, ...]:
    """Returns what is compared: the regions, and where there are several, their mean per case."""
    return (*regions, MEAN) if len(regions) > 1 else tuple(regions)


def title(column: str) -> str:
    """Returns what a column is called in figures and texts."""
    return "mean of the regions" if column == MEAN else column


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """The scores of all cases, each averaged over its runs.

    Attributes:
        names: the cases, fold after fold.
        folds: number of each case's fold.
        volumes_ml: volume of the reference per case and column of `columns`; for the mean that of
            the largest region.
        largest: the region that is the largest in every case; `None`: no region is.
        values: (side, metric) -> scores per case and column.
    """

    names: tuple[str, ...]
    folds: tuple[int, ...]
    volumes_ml: Float[np.ndarray, "cases columns"]
    largest: str | None
    values: Mapping[tuple[str, str], Float[np.ndarray, "cases columns"]]


class Block:
    """The scores of one fold: its cases, and per side the array "runs cases columns metrics"."""

    def __init__(
        self,
        pairs: Sequence[comparison_runs.Pair],
        sides: Sequence[str],
        metrics: Sequence[str],
        regions: Sequence[str],
    ) -> None:
        self.names = sorted(pairs[0].student.cases)
        self.metrics = list(metrics)
        self.regions = list(regions)
        # Per pair: a teacher of several students stands there several times.
        self.runs = {side: [getattr(pair, side) for pair in pairs] for side in sides}
        self.scores = {
            side: np.stack([self._read(run) for run in runs]) for side, runs in self.runs.items()
        }

    def _read(self, run: comparison_runs.Run) -> Float[np.ndarray, "cases columns metrics"]:
        values = [
            [
                [getattr(run.scores[name, region], metric) for metric in self.metrics]
                for region in self.regions
            ]
            for name in self.names
        ]
        array = np.array(values, np.float64)
        return self._with(array, array.mean(axis=1, keepdims=True))

    def _with(
        self, values: Float[np.ndarray, "cases r ..."], mean: Float[np.ndarray, "cases 1 ..."]
    ) -> Float[np.ndarray, "cases columns ..."]:
        has_mean = len(columns(self.regions)) > len(self.regions)
        return np.concatenate([values, mean], axis=1) if has_mean else values

    def distinct(self, side: str) -> list[int]:
        """Returns the first row of each run: a teacher of several students counts once."""
        folders = [run.folder for run in self.runs[side]]
        return [folders.index(folder) for folder in dict.fromkeys(folders)]

    @property
    def volumes_ml(self) -> Float[np.ndarray, "cases columns"]:
        """Volume of the reference per case and column; for the mean that of the largest region."""
        scores = self.runs["student"][0].scores
        values = [
            [scores[name, region].volume_ref_mm3 / 1000 for region in self.regions]
            for name in self.names
        ]
        array = np.array(values, np.float64)
        return self._with(array, array.max(axis=1, keepdims=True))

    def select(
        self, metric: str, region: str, sides: Sequence[str]
    ) -> dict[str, Float[np.ndarray, "runs cases"]]:
        """Returns the scores of the cases that have one in all runs of all sides."""
        place = columns(self.regions).index(region), self.metrics.index(metric)
        values = {side: self.scores[side][:, :, place[0], place[1]] for side in sides}
        defined = np.all([~np.isnan(each).any(axis=0) for each in values.values()], axis=0)
        return {side: each[:, defined] for side, each in values.items()}


def case_scores(
    blocks: Sequence[Block], sides: Sequence[str], metrics: Sequence[str]
) -> CaseScores:
    """Returns the scores of all cases, fold after fold, each averaged over its runs."""
    volumes_ml = np.concatenate([block.volumes_ml for block in blocks])
    return CaseScores(
        names=tuple(name for block in blocks for name in block.names),
        folds=tuple(fold for fold, block in enumerate(blocks) for _ in block.names),
        volumes_ml=volumes_ml,
        largest=_largest(blocks[0].regions, volumes_ml),
        values={
            (side, metric): np.concatenate(
                [block.scores[side].mean(axis=0)[..., place] for block in blocks]
            )
            for side in sides
            for place, metric in enumerate(metrics)
        },
    )


def _largest(regions: Sequence[str], volumes_ml: Float[np.ndarray, "cases columns"]) -> str | None:
    """Returns the region that no other exceeds in any case, the last of several."""
    largest = volumes_ml.max(axis=1)
    found = [name for i, name in enumerate(regions) if (volumes_ml[:, i] == largest).all()]
    return found[-1] if found else None
