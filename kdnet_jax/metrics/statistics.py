"""Statistics of paired scores of several trained networks: intervals, tests, effect sizes.

Scores lie in *blocks*, one per fold (one in all where there are no folds): an array "runs cases" of
the runs (seeds) that were tested on the same cases. `docs/statistics.md` explains each number and
shows by simulation how far it can be trusted.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE: Final = 0.95
_UPPER: Final = 1 - (1 - CONFIDENCE) / 2
# Named dimensions would have to agree between folds, which have different numbers of cases.
Block = Float[np.ndarray, "_ _"]


class Interval(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
        estimate: the mean over all cases.
        low, high: ends of the interval; NaN where nothing varies that could be measured.
        se: standard error.
        df: degrees of freedom of Student's t.
        p: two-sided, of the hypothesis that the mean over all runs and cases there could be is 0.
    """

    estimate: float
    low: float
    high: float
    se: float
    df: float
    p: float


def mean_interval(blocks: Sequence[Block]) -> Interval:
    """Returns the mean over cases with an interval for other runs (seeds) and other cases.

    One block: runs and cases are crossed random effects. The squared standard error is the sum of
    that of the mean of the runs' means and that of the mean of the cases' means, which counts the
    run-by-case noise twice and so errs on the wide side (as Owen's pigeonhole bootstrap does, Ann.
    Appl. Stat. 2007); degrees of freedom after Satterthwaite (Biometrics 1946). With one run a
    block it is the t interval over cases, and says nothing about other runs.

    Several blocks: the folds' means are what varies, between them runs and cases both do; the
    interval is Student's with (folds - 1) degrees of freedom, folds weighted by their cases.
    """
    if len(blocks) > 1:
        return _over_folds(blocks)
    runs, cases = blocks[0].mean(axis=1), blocks[0].mean(axis=0)
    variances, dfs = [], []
    for means in (runs, cases):
        if len(means) > 1:
            variances.append(means.var(ddof=1) / len(means))
            dfs.append(len(means) - 1)
    if len(cases) < 2:
        return _t_interval(float(cases.mean()), math.nan, math.nan)
    variance = float(np.sum(variances))
    if variance == 0:
        return _t_interval(float(cases.mean()), 0.0, float(min(dfs)))
    df = variance**2 / float(np.sum(np.square(variances) / np.asarray(dfs)))
    return _t_interval(float(cases.mean()), math.sqrt(variance), df)


def _over_folds(blocks: Sequence[Block]) -> Interval:
    weights = np.array([block.shape[1] for block in blocks], np.float64)
    weights /= weights.sum()
    means = np.array([block.mean() for block in blocks])
    estimate = float(weights @ means)
    folds = len(blocks)
    # For equal folds this is the sample variance of their means over their number.
    variance = folds / (folds - 1) * float(np.sum((weights * (means - estimate)) ** 2))
    return _t_interval(estimate, math.sqrt(variance), float(folds - 1))


def _t_interval(estimate: float, se: float, df: float) -> Interval:
    if se == 0:
        return Interval(estimate, estimate, estimate, se, df, 1.0 if estimate == 0 else 0.0)
    margin = float(stats.t.ppf(_UPPER, df)) * se
    p = float(2 * stats.t.sf(abs(estimate) / se, df))
    return Interval(estimate, estimate - margin, estimate + margin, se, df, p)


# --- The cases of these networks ----------------------------------------------------------------


def wilcoxon(differences: Float[np.ndarray, " n"]) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test; cases without difference drop out."""
    return float(np.asarray(stats.wilcoxon(differences))[1]) if np.any(differences) else 1.0


def rank_biserial(differences: Float[np.ndarray, " n"]) -> float:
    """Returns the matched-pairs rank-biserial correlation, -1 to 1 (Kerby 2014); 0 if all are 0.

    It is the rank sum of the gains less that of the losses, over the sum of both.
    """
    moved = differences[differences != 0]
    if not moved.size:
        return 0.0
    ranks = stats.rankdata(np.abs(moved))
    return float(np.sum(np.sign(moved) * ranks) / np.sum(ranks))


def cohen_dz(differences: Float[np.ndarray, " n"]) -> float:
    """Returns the mean difference over the SD of the differences (Cohen 1988); NaN without SD."""
    sd = differences.std(ddof=1) if differences.size > 1 else 0.0
    return float(differences.mean() / sd) if sd else math.nan


def median_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Returns the median over cases and its 95 % interval by order statistics.

    The ends are the k-th smallest and k-th largest value, with the largest k for which the
    binomial chance to miss is at most 5 % (Conover 1999, 3.2); NaN for fewer than six cases.
    """
    ordered = np.sort(values)
    reach = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    median = float(np.median(ordered))
    if reach < 1:
        return median, math.nan, math.nan
    return median, float(ordered[reach - 1]), float(ordered[-reach])


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values (Scand. J. Stat. 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


# --- The teacher's lead -------------------------------------------------------------------------


class Share(NamedTuple):
    """The share of the teacher's lead that the student closes.

    Attributes:
        estimate: (student - baseline) / (teacher - baseline); NaN where it is undefined.
        low, high: its 95 % interval.
        lead: teacher - baseline.
    """

    estimate: float
    low: float
    high: float
    lead: Interval


def share_closed(
    gain: Sequence[Block],
    lead: Sequence[Block],
    *,
    larger_is_better: bool,
    seed: int,
    resamples: int,
) -> Share:
    """Returns the share of the teacher's lead that the student closes.

    A ratio has no sense where its denominator may be 0 (Fieller): unless the lead's own interval
    lies on the better side of 0, the share is undefined. Its interval comes from a hierarchical
    bootstrap: runs and, independently, cases are drawn with replacement (Owen's pigeonhole
    bootstrap; of folds, whole folds: Davison and Hinkley 1997, 3.8). With three seeds a bootstrap
    is too narrow, so the drawn deviations of gain and lead are stretched by one factor until the
    linearised ratio, gain - share x lead, has the standard error and the t quantile of
    `mean_interval`.

    Args:
        gain: student - baseline, per block "runs cases".
        lead: teacher - baseline, of the same runs and cases.
        larger_is_better: whether a larger score is the better one.
        seed: of the resampling.
        resamples: how many are drawn.
    """
    whole = mean_interval(lead)
    undefined = Share(math.nan, math.nan, math.nan, whole)
    sure = whole.low > 0 if larger_is_better else whole.high < 0
    if not sure:
        return undefined
    top = mean_interval(gain).estimate
    share = top / whole.estimate
    linear = mean_interval([g - share * b for g, b in zip(gain, lead, strict=True)])
    tops, bottoms = _resample(gain, lead, np.random.default_rng(seed), resamples)
    spread = float(np.std(tops - share * bottoms))
    if not spread or not linear.se:
        return Share(share, share, share, whole)
    wanted = linear.se * float(stats.t.ppf(_UPPER, linear.df) / stats.norm.ppf(_UPPER))
    tops, bottoms = (
        each + (drawn - each) * wanted / spread
        for each, drawn in ((top, tops), (whole.estimate, bottoms))
    )
    if np.mean(bottoms / whole.estimate <= 0) > 1 - _UPPER:
        return undefined
    low, high = np.quantile(tops / bottoms, [1 - _UPPER, _UPPER])
    return Share(share, float(low), float(high), whole)


def _resample(
    gain: Sequence[Block], lead: Sequence[Block], rng: np.random.Generator, resamples: int
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Returns the means of gain and lead in each resample."""
    if len(gain) > 1:
        sizes = np.array([block.shape[1] for block in gain], np.float64)
        weights = _draw(rng, resamples, len(gain)) * sizes
        weights /= weights.sum(axis=1, keepdims=True)
        tops, bottoms = (
            weights @ np.array([block.mean() for block in blocks]) for blocks in (gain, lead)
        )
        return tops, bottoms
    runs, cases = gain[0].shape
    rows, columns = _draw(rng, resamples, runs), _draw(rng, resamples, cases)
    tops, bottoms = (np.sum((rows @ blocks[0]) * columns, axis=1) for blocks in (gain, lead))
    return tops, bottoms


def _draw(rng: np.random.Generator, resamples: int, n: int) -> Float[np.ndarray, "r n"]:
    """Returns the weight of each of n things in each resample with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), resamples) / n
