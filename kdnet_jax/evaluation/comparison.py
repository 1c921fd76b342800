"""Does the student beat the baseline? Reads the runs of both sides and computes what they say."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.evaluation import comparison_runs, comparison_scores
from kdnet_jax.metrics import statistics

RESAMPLES: Final = 10_000
# A difference of Dice that a reader would care about; the verdict says whether it is excluded.
RELEVANT_DICE: Final = 0.02


class Measure(NamedTuple):
    """A metric that is compared: its name in texts, which way is better, digits shown."""

    label: str
    larger_is_better: bool
    digits: int


MEASURES: Final = {
    "dice": Measure("Dice", True, 3),
    "hd95_mm": Measure("HD95 (mm)", False, 1),
    "nsd": Measure("NSD at 1 mm", True, 3),
    "nsd_2mm": Measure("NSD at 2 mm", True, 3),
    "lesion_dice": Measure("Lesion-wise Dice", True, 3),
    "lesion_hd95_mm": Measure("Lesion-wise HD95 (mm)", False, 1),
}


@dataclasses.dataclass(frozen=True)
class Level:
    """How one side scores.

    Attributes:
        interval: mean over cases with its interval over runs and cases.
        sd_runs: SD of the runs' means; NaN for one run.
        sd_cases: SD of the cases' scores, each averaged over its runs.
        median: over cases.
    """

    interval: statistics.Interval
    sd_runs: float
    sd_cases: float
    median: float


@dataclasses.dataclass(frozen=True)
class Result:
    """One metric and region.

    Attributes:
        metric: a key of `MEASURES`.
        region: one of `comparison_scores.columns`.
        cases: how many cases have a score on all sides.
        levels: side -> how it scores.
        difference: student - baseline, over runs and cases.
        p_holm: its p after Holm's correction over all metrics and regions.
        median_difference: over cases, with its interval.
        p_wilcoxon: signed-rank test over the cases of these networks.
        p_wilcoxon_holm: after Holm's correction, likewise.
        rank_biserial: effect size of the signed-rank test.
        cohen_dz: mean difference over the SD of the differences between cases.
        share: of the teacher's lead; `None` without a teacher.
    """

    metric: str
    region: str
    cases: int
    levels: Mapping[str, Level]
    difference: statistics.Interval
    p_holm: float
    median_difference: tuple[float, float, float]
    p_wilcoxon: float
    p_wilcoxon_holm: float
    rank_biserial: float
    cohen_dz: float
    share: statistics.Share | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        sides: side -> folders of its runs, in the order given; "teacher" is absent without one.
        folds: pairs of runs in each fold.
        regions: of the task.
        results: per metric and column of `comparison_scores.columns`.
        cases: what the figures show.
        differs: what makes the runs incomparable and was overruled by `force`.
        notes: what a reader has to know besides.
        postprocessed: whether these are the scores after post-processing.
        seed, resamples: of the bootstrap.
    """

    sides: Mapping[str, tuple[pathlib.Path, ...]]
    folds: tuple[int, ...]
    regions: tuple[str, ...]
    results: tuple[Result, ...]
    cases: comparison_scores.CaseScores
    differs: tuple[str, ...]
    notes: tuple[str, ...]
    postprocessed: bool
    seed: int
    resamples: int

    @property
    def pairs(self) -> int:
        """How many pairs of a baseline and a student there are."""
        return sum(self.folds)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics compared."""
        return tuple(dict.fromkeys(result.metric for result in self.results))

    @property
    def columns(self) -> tuple[str, ...]:
        """What each metric is compared for: the regions, and the mean of several."""
        return comparison_scores.columns(self.regions)

    @property
    def main(self) -> str:
        """What the verdict is about: the mean of the regions, or the only one."""
        return self.columns[-1]

    def result(self, metric: str, region: str) -> Result:
        """Returns the result of one metric and region."""
        return next(r for r in self.results if (r.metric, r.region) == (metric, region))


def compare(
    baseline: Sequence[pathlib.Path],
    student: Sequence[pathlib.Path],
    teacher: Sequence[pathlib.Path] = (),
    *,
    metrics: Sequence[str] = tuple(MEASURES),
    postprocessed: bool = False,
    force: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compares students with baselines (and their teachers) on the cases that both were tested on.

    Args:
        baseline: folders of runs, or of outputs of `kdnet_jax.evaluate`.
        student: the same.
        teacher: the students' teachers, for the share of their lead; may be empty.
        metrics: keys of `MEASURES`.
        postprocessed: compare the scores after post-processing.
        force: continue where the runs are not comparable; the result says what differs.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        UserError: a run that cannot be read, a run given twice, sides without a partner, or
            (without `force`) runs that are not comparable, with all that differs; or runs of
            different tasks.
    """
    given = {"baseline": baseline, "student": student, "teacher": teacher}
    runs = [
        comparison_runs.read_run(side, folder, postprocessed=postprocessed)
        for side, folders in given.items()
        for folder in folders
    ]
    comparison_runs.refuse_doubles(runs)
    comparison_runs.refuse_other_tasks(runs)
    regions = runs[0].regions
    differs = comparison_runs.differences(runs)
    folds, wrong, notes = comparison_runs.pair_up(runs)
    differs += wrong
    if differs and not force:
        listed = "".join(f"\n  - {line}" for line in differs)
        raise UserError(
            f"the runs are not comparable:{listed}\nGive runs that differ in the role alone, or "
            "--force to compare them all the same; the output then says what differs."
        )
    sides = [side for side, folders in given.items() if folders]
    blocks = [comparison_scores.Block(pairs, sides, metrics, regions) for pairs in folds]
    results = _corrected(
        [
            _result(blocks, sides, metric, region, seed, resamples)
            for metric in metrics
            for region in comparison_scores.columns(regions)
        ]
    )
    return Comparison(
        sides={side: tuple(given[side]) for side in sides},
        folds=tuple(len(pairs) for pairs in folds),
        regions=regions,
        results=tuple(results),
        cases=comparison_scores.case_scores(blocks, sides, metrics),
        differs=tuple(differs),
        notes=tuple(notes + _notes(runs, folds)),
        postprocessed=postprocessed,
        seed=seed,
        resamples=resamples,
    )


def read_metrics(given: Sequence[str] | None) -> list[str]:
    """Returns the metrics that --metric names, all without it.

    Raises:
        UserError: for an unknown or duplicate one.
    """
    for name in given or ():
        check_choice("--metric", name, MEASURES)
    if given and len(set(given)) < len(given):
        raise UserError(f"--metric={','.join(given)}: name each metric once.")
    return list(given or MEASURES)


# --- The numbers --------------------------------------------------------------------------------


def _result(
    blocks: Sequence[comparison_scores.Block],
    sides: Sequence[str],
    metric: str,
    region: str,
    seed: int,
    resamples: int,
) -> Result:
    selected = [(block, block.select(metric, region, sides)) for block in blocks]
    selected = [(block, each) for block, each in selected if each["student"].size]
    tested = [name for block in blocks for name in block.names]
    if len(tested) < 2:
        raise UserError(
            f"the runs have one test case, {tested[0]}: a comparison needs two or more. Give runs "
            "with more test cases."
        )
    if sum(each["student"].shape[1] for _, each in selected) < 2:
        raise UserError(
            f"{metric} of {region} is defined in fewer than 2 cases of all runs: there is nothing "
            "to compare. Give runs with more test cases, or leave it out: name the others in "
            "--metric."
        )
    scores = [each for _, each in selected]
    gain = [each["student"] - each["baseline"] for each in scores]
    by_case = np.concatenate([each.mean(axis=0) for each in gain])
    share = None
    if "teacher" in sides:
        lead = [each["teacher"] - each["baseline"] for each in scores]
        share = statistics.share_closed(
            gain,
            lead,
            larger_is_better=MEASURES[metric].larger_is_better,
            seed=seed,
            resamples=resamples,
        )
    return Result(
        metric=metric,
        region=region,
        cases=len(by_case),
        levels={
            side: _level(
                [each[side][block.distinct(side)] for block, each in selected], MEASURES[metric]
            )
            for side in sides
        },
        difference=statistics.mean_interval(gain),
        p_holm=math.nan,
        median_difference=statistics.median_interval(by_case),
        p_wilcoxon=statistics.wilcoxon(by_case),
        p_wilcoxon_holm=math.nan,
        rank_biserial=statistics.rank_biserial(by_case),
        cohen_dz=statistics.cohen_dz(by_case),
        share=share,
    )


def _level(blocks: Sequence[statistics.Block], measure: Measure) -> Level:
    runs = np.concatenate([block.mean(axis=1) for block in blocks])
    cases = np.concatenate([block.mean(axis=0) for block in blocks])
    return Level(
        interval=_within(statistics.mean_interval(blocks), measure),
        sd_runs=float(runs.std(ddof=1)) if len(runs) > 1 else math.nan,
        sd_cases=float(cases.std(ddof=1)),
        median=float(np.median(cases)),
    )


def _within(interval: statistics.Interval, measure: Measure) -> statistics.Interval:
    """Cuts an interval of a mean at the scores that there can be: 0 to 1, or 0 mm and more."""
    most = 1.0 if measure.larger_is_better else math.inf
    # What is NaN stays NaN.
    low, high = (float(np.clip(end, 0.0, most)) for end in interval[1:3])
    return interval._replace(low=low, high=high)


def _corrected(results: Sequence[Result]) -> list[Result]:
    """Fills in Holm's correction over all metrics and regions, of each kind of p separately."""
    method = statistics.holm([result.difference.p for result in results])
    networks = statistics.holm([result.p_wilcoxon for result in results])
    return [
        dataclasses.replace(result, p_holm=p, p_wilcoxon_holm=q)
        for result, p, q in zip(results, method, networks, strict=True)
    ]


# --- What a reader has to know ------------------------------------------------------------------


def _notes(
    runs: Sequence[comparison_runs.Run], folds: Sequence[Sequence[comparison_runs.Pair]]
) -> list[str]:
    notes = []
    unknown = [str(run.folder) for run in runs if run.config is None]
    if unknown:
        notes.append(
            f"Without a config.json the training is unknown (cases, split, budget): "
            f"{', '.join(unknown)}. That the comparison is fair is not checked there."
        )
    if len(folds) > 1:
        notes.append(
            "The training sets of the folds overlap, so their results are not fully independent "
            "and the intervals may be somewhat too narrow (Bengio and Grandvalet 2004)."
        )
    taught = [pair.student.teacher_hash for pairs in folds for pair in pairs]
    if len(taught) > 1 and None not in taught and len(set(taught)) == 1:
        notes.append(
            "All students learned from one teacher: what another teacher would change is in no "
            "interval."
        )
    return notes
