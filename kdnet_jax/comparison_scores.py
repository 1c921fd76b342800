"""The scores of paired runs as arrays, fold by fold."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from kdnet_jax import comparison_runs, conventions

MEAN: Final = "mean"
# Per case, the mean over the regions is compared too.
REGIONS: Final = (*conventions.REGIONS, MEAN)


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """The scores of all cases, each averaged over its runs.

    Attributes:
        names: the cases, fold after fold.
        folds: number of each case's fold.
        volumes_ml: volume of the reference per case and region of `REGIONS`; WT's for the mean.
        values: (side, metric) -> scores per case and region of `REGIONS`.
    """

    names: tuple[str, ...]
    folds: tuple[int, ...]
    volumes_ml: Float[np.ndarray, "cases regions"]
    values: Mapping[tuple[str, str], Float[np.ndarray, "cases regions"]]


class Block:
    """The scores of one fold: its cases, and per side the array "runs cases regions metrics"."""

    def __init__(
        self, pairs: Sequence[comparison_runs.Pair], sides: Sequence[str], metrics: Sequence[str]
    ) -> None:
        self.names = sorted(pairs[0].student.cases)
        self.metrics = list(metrics)
        # Per pair: a teacher of several students stands there several times.
        self.runs = {side: [getattr(pair, side) for pair in pairs] for side in sides}
        self.scores = {
            side: np.stack([self._read(run) for run in runs]) for side, runs in self.runs.items()
        }

    def _read(self, run: comparison_runs.Run) -> Float[np.ndarray, "cases regions metrics"]:
        values = [
            [
                [getattr(run.scores[name, region], metric) for metric in self.metrics]
                for region in conventions.REGIONS
            ]
            for name in self.names
        ]
        return _with_mean(np.array(values, np.float64), axis=1)

    def distinct(self, side: str) -> list[int]:
        """Returns the first row of each run: a teacher of several students counts once."""
        folders = [run.folder for run in self.runs[side]]
        return [folders.index(folder) for folder in dict.fromkeys(folders)]

    @property
    def volumes_ml(self) -> Float[np.ndarray, "cases regions"]:
        """Volume of the reference per case and region; WT's for the mean of the regions."""
        scores = self.runs["student"][0].scores
        values = [
            [scores[name, region].volume_ref_mm3 / 1000 for region in (*conventions.REGIONS, "WT")]
            for name in self.names
        ]
        return np.array(values, np.float64)

    def select(
        self, metric: str, region: str, sides: Sequence[str]
    ) -> dict[str, Float[np.ndarray, "runs cases"]]:
        """Returns the scores of the cases that have one in all runs of all sides."""
        place = REGIONS.index(region), self.metrics.index(metric)
        values = {side: self.scores[side][:, :, place[0], place[1]] for side in sides}
        defined = np.all([~np.isnan(each).any(axis=0) for each in values.values()], axis=0)
        return {side: each[:, defined] for side, each in values.items()}


def _with_mean(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    return np.concatenate([values, values.mean(axis=axis, keepdims=True)], axis=axis)


def case_scores(
    blocks: Sequence[Block], sides: Sequence[str], metrics: Sequence[str]
) -> CaseScores:
    """Returns the scores of all cases, fold after fold, each averaged over its runs."""
    return CaseScores(
        names=tuple(name for block in blocks for name in block.names),
        folds=tuple(fold for fold, block in enumerate(blocks) for _ in block.names),
        volumes_ml=np.concatenate([block.volumes_ml for block in blocks]),
        values={
            (side, metric): np.concatenate(
                [block.scores[side].mean(axis=0)[..., place] for block in blocks]
            )
            for side in sides
            for place, metric in enumerate(metrics)
        },
    )
