"""How often the intervals of `metrics.statistics` cover, and how often a null is rejected.

    python -m benchmarks.statistics_simulation [REPETITIONS]

Prints the tables of docs/statistics.md. Scores are drawn from the model that the intervals assume
(normal effects of runs and cases, noise), once more with skewed, heavy-tailed cases.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from scipy import stats

from kdnet_jax.metrics import statistics


class Setting(NamedTuple):
    """A study: folds, seeds in each, cases in all, and the SDs of the paired difference."""

    folds: int
    seeds: int
    cases: int
    sd_seeds: float
    sd_cases: float
    sd_noise: float
    skewed: bool = False


SETTINGS = (
    Setting(1, 3, 45, 0.03, 0.3, 0.1),
    Setting(1, 3, 45, 0.03, 0.3, 0.1, skewed=True),
    Setting(1, 3, 45, 0.03, 0.1, 0.1),
    Setting(1, 3, 45, 0.03, 0.03, 0.03),
    Setting(1, 3, 45, 0.0, 0.1, 0.1),
    Setting(1, 3, 12, 0.03, 0.1, 0.1),
    Setting(1, 2, 45, 0.03, 0.1, 0.1),
    Setting(1, 5, 45, 0.03, 0.1, 0.1),
    Setting(5, 1, 50, 0.03, 0.3, 0.1),
    Setting(5, 1, 50, 0.03, 0.1, 0.1),
    Setting(5, 3, 250, 0.03, 0.1, 0.1),
    Setting(1, 1, 45, 0.03, 0.3, 0.1),
    Setting(1, 1, 45, 0.03, 0.1, 0.1),
)


def draw(setting: Setting, rng: np.random.Generator, mean: float) -> list[statistics.Block]:
    """Returns paired differences with the given mean, a block per fold."""
    blocks = []
    for _ in range(setting.folds):
        cases = setting.cases // setting.folds
        runs = setting.sd_seeds * rng.standard_normal((setting.seeds, 1))
        noise = setting.sd_noise * rng.standard_normal((setting.seeds, cases))
        effects = rng.standard_normal((1, cases))
        if setting.skewed:
            # Mean 0 and SD 1, with skewness 2: an exponential.
            effects = rng.standard_exponential((1, cases)) - 1
        blocks.append(mean + runs + noise + setting.sd_cases * effects)
    return blocks


class Rates(NamedTuple):
    """How often the interval covers, and how often three ways reject a true null at 5 %."""

    coverage: float
    wilcoxon: float
    pooled: float
    bootstrap: float
    half_width: float


def null_rates(setting: Setting, repetitions: int, resamples: int = 400) -> Rates:
    """Simulates a difference of 0: ours, Wilcoxon over cases, and two usual ways."""
    rng = np.random.default_rng(0)
    ours, wilcoxon, pooled, bootstrap, widths = [], [], [], [], []
    for _ in range(repetitions):
        blocks = draw(setting, rng, 0.0)
        found = statistics.mean_interval(blocks)
        ours.append(found.low <= 0 <= found.high)
        widths.append((found.high - found.low) / 2)
        by_case = np.concatenate([block.mean(axis=0) for block in blocks])
        wilcoxon.append(statistics.wilcoxon(by_case) < 0.05)
        every = np.concatenate([block.ravel() for block in blocks])
        pooled.append(stats.ttest_1samp(every, 0).pvalue < 0.05)
        low, high = _percentiles(blocks, rng, resamples)
        bootstrap.append(not low <= 0 <= high)
    rates = (np.mean(each) for each in (ours, wilcoxon, pooled, bootstrap))
    return Rates(*map(float, rates), float(np.median(widths)))


def _percentiles(
    blocks: Sequence[statistics.Block], rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """Returns the plain percentile interval: runs and cases drawn in each fold, no correction."""
    sums = np.zeros(resamples)
    for block in blocks:
        runs, cases = (rng.multinomial(n, np.full(n, 1 / n), resamples) for n in block.shape)
        sums += np.sum((runs / block.shape[0]) @ block * cases, axis=1)
    total = sum(block.shape[1] for block in blocks)
    low, high = np.quantile(sums / total, [0.025, 0.975])
    return float(low), float(high)


def share_rates(
    setting: Setting, lead: float, share: float, repetitions: int, resamples: int = 1000
) -> tuple[float, float, float]:
    """Returns how often the share is undefined, its coverage where defined, and median width."""
    rng = np.random.default_rng(0)
    undefined, covered, widths = 0, [], []
    for number in range(repetitions):
        gains, leads = draw(setting, rng, share * lead), draw(setting, rng, lead)
        found = statistics.share_closed(
            gains, leads, larger_is_better=True, seed=number, resamples=resamples
        )
        if np.isnan(found.estimate):
            undefined += 1
            continue
        covered.append(found.low <= share <= found.high)
        widths.append(found.high - found.low)
    coverage = float(np.mean(covered)) if covered else float("nan")
    return undefined / repetitions, coverage, float(np.median(widths)) if widths else float("nan")


def _label(setting: Setting) -> str:
    design = f"{setting.folds} x {setting.seeds} | {setting.cases}"
    sds = f"{setting.sd_seeds:g} / {setting.sd_cases:g} / {setting.sd_noise:g}"
    return f"{design} | {sds}{' skewed' if setting.skewed else ''}"


def _print(title: str, lines: Sequence[Callable[[], str]]) -> None:
    print(title)
    for line in tqdm.tqdm(lines, desc="settings"):
        tqdm.tqdm.write(line())


def main(repetitions: int) -> None:
    """Prints both tables."""

    def null_line(setting: Setting) -> str:
        rates = null_rates(setting, repetitions)
        cells = " | ".join(f"{100 * rate:.1f} %" for rate in rates[:4])
        return f"| {_label(setting)} | {cells} | {rates.half_width:.3f} |"

    def share_line(setting: Setting, lead: float, share: float) -> str:
        undefined, coverage, width = share_rates(setting, lead, share, repetitions // 4)
        return (
            f"| {_label(setting)} | {lead:g} | {share:g} | {100 * undefined:.1f} % | "
            f"{100 * coverage:.1f} % | {width:.2f} |"
        )

    _print(
        "| folds x seeds | cases | SD seeds / cases / noise | interval covers | Wilcoxon rejects | "
        "t over all rejects | percentile bootstrap rejects | half width |\n" + "|---" * 8 + "|",
        [lambda setting=setting: null_line(setting) for setting in SETTINGS],
    )
    shares = [(SETTINGS[number], 0.15, 0.3) for number in (0, 2, 4, 9, 12)]
    shares += [(SETTINGS[2], 0.3, 0.3), (SETTINGS[2], 0.05, 0.3)]
    _print(
        "\n| folds x seeds | cases | SD seeds / cases / noise | lead | share | undefined | "
        "interval covers | width |\n" + "|---" * 8 + "|",
        [lambda each=each: share_line(*each) for each in shares],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
