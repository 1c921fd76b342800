"""Intervals, tests and effect sizes, by hand, against SciPy, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdnet_jax.metrics import statistics

# --- The interval of a mean ----------------------------------------------------------------------


def test_one_run_gives_the_t_interval_over_cases() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.3, (1, 20))
    found = statistics.mean_interval([values])
    test = stats.ttest_1samp(values[0], 0)
    assert found.p == pytest.approx(test.pvalue)
    assert found[1:3] == pytest.approx(tuple(test.confidence_interval()))


def test_runs_and_cases_are_crossed_by_hand() -> None:
    # Run means 2 and 4; case means 2, 3, 4. Squared standard errors: 2 / 2 = 1, and 1 / 3.
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    found = statistics.mean_interval([values])
    variance, df = 4 / 3, (4 / 3) ** 2 / (1 / 1 + (1 / 3) ** 2 / 2)
    assert (found.estimate, found.se, found.df) == pytest.approx((3, math.sqrt(variance), df))
    assert found.high == pytest.approx(3 + stats.t.ppf(0.975, df) * math.sqrt(variance))


def test_folds_are_a_t_interval_over_their_means() -> None:
    blocks = [np.random.default_rng(k).normal(0.1, 0.2, (2, 10)) for k in range(5)]
    found = statistics.mean_interval(blocks)
    test = stats.ttest_1samp([block.mean() for block in blocks], 0)
    assert (found.df, found.p) == pytest.approx((4, test.pvalue))
    assert found[1:3] == pytest.approx(tuple(test.confidence_interval()))


def test_unequal_folds_weigh_by_their_cases() -> None:
    found = statistics.mean_interval([np.full((1, 3), 1.0), np.full((2, 1), 5.0)])
    assert found.estimate == pytest.approx(2)  # of all four cases
    assert found.se == pytest.approx(math.sqrt(2 * ((0.75 * 1) ** 2 + (0.25 * 3) ** 2)))


def test_what_never_varies_and_what_cannot_be_measured() -> None:
    assert statistics.mean_interval([np.zeros((3, 4))])[:6] == (0, 0, 0, 0, 2, 1)
    assert statistics.mean_interval([np.full((3, 4), 0.5)]).p == 0
    one_case = statistics.mean_interval([np.array([[0.5], [0.7]])])
    assert one_case.estimate == pytest.approx(0.6)
    assert math.isnan(one_case.low)
    assert math.isnan(one_case.p)


def _studies(
    folds: int, seeds: int, cases: int, sds: tuple[float, float, float], mean: float = 0.0
) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(7)
    sd_runs, sd_cases, sd_noise = sds

    def block() -> np.ndarray:
        effects = sd_runs * rng.standard_normal((seeds, 1)) + sd_cases * rng.standard_normal(cases)
        return mean + effects + sd_noise * rng.standard_normal((seeds, cases))

    return [[block() for _ in range(folds)] for _ in range(1000)]


@pytest.mark.parametrize(
    ("folds", "seeds", "cases", "sds"),
    [
        (1, 3, 45, (0.03, 0.3, 0.1)),
        (1, 3, 45, (0.03, 0.1, 0.1)),
        (1, 5, 40, (0.03, 0.1, 0.1)),
        (5, 1, 10, (0.03, 0.3, 0.1)),
        (1, 1, 45, (0.0, 0.3, 0.1)),
    ],
)
def test_a_difference_is_found_in_five_percent_of_nulls(
    folds: int, seeds: int, cases: int, sds: tuple[float, float, float]
) -> None:
    found = [statistics.mean_interval(blocks) for blocks in _studies(folds, seeds, cases, sds)]
    rejected = np.mean([each.p < 0.05 for each in found])
    # 1000 studies: 5 % give or take 3.5 binomial standard errors, of 0.7 % each.
    assert 0.026 < rejected < 0.074
    assert rejected == np.mean([not each.low <= 0 <= each.high for each in found])


def test_a_test_over_cases_rejects_more_often_when_seeds_vary() -> None:
    studies = _studies(1, 3, 45, (0.03, 0.1, 0.1))
    rejected = np.mean([statistics.wilcoxon(b[0].mean(axis=0)) < 0.05 for b in studies])
    assert rejected > 0.12


# --- The cases of these networks -----------------------------------------------------------------


def test_wilcoxon_by_all_signs() -> None:
    differences = np.array([0.4, -0.1, 0.3, 0.5, 0.2, -0.25])
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=6)]
    exact = 2 * min(np.mean(np.array(sums) >= observed), np.mean(np.array(sums) <= observed))
    assert statistics.wilcoxon(differences) == pytest.approx(exact)
    assert statistics.wilcoxon(np.zeros(5)) == 1.0


def test_rank_biserial_by_hand() -> None:
    # Ranks of |-1|, 2, 3, without the 0: losses 1, gains 2 + 3.
    assert statistics.rank_biserial(np.array([-1.0, 0.0, 2.0, 3.0])) == pytest.approx((5 - 1) / 6)
    assert statistics.rank_biserial(np.array([1.0, 2.0])) == 1.0
    assert statistics.rank_biserial(np.zeros(3)) == 0.0


def test_cohen_dz_by_hand() -> None:
    assert statistics.cohen_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert math.isnan(statistics.cohen_dz(np.array([1.0, 1.0])))


def test_median_interval_by_the_binomial() -> None:
    # Of 10 values the 2nd smallest and largest miss with 2 (1 + 10) / 2^10 = 2.1 %; the 3rd 11 %.
    values = np.arange(10.0)[::-1]
    assert statistics.median_interval(values) == (4.5, 1.0, 8.0)
    # Of 6 the ends miss with 2 / 64 = 3.1 %; of 5 with 6.3 %.
    assert statistics.median_interval(np.arange(6.0)) == (2.5, 0.0, 5.0)
    assert math.isnan(statistics.median_interval(np.arange(5.0))[1])


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.02 0.03 0.04 times 4 3 2 1: 0.04 0.06 0.06 0.04, then never decreasing.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


# --- The share of the lead -----------------------------------------------------------------------


def _share(
    gain: list[np.ndarray], lead: list[np.ndarray], *, larger_is_better: bool = True
) -> statistics.Share:
    return statistics.share_closed(
        gain, lead, larger_is_better=larger_is_better, seed=0, resamples=1000
    )


def test_a_student_that_closes_a_fixed_share() -> None:
    lead = [np.random.default_rng(0).normal(0.2, 0.05, (3, 30))]
    found = _share([0.25 * lead[0]], lead)
    assert found[:3] == pytest.approx((0.25, 0.25, 0.25))
    assert found.lead.estimate == pytest.approx(lead[0].mean())


def test_the_share_is_undefined_without_a_sure_lead() -> None:
    rng = np.random.default_rng(0)
    gain, lead = [rng.normal(0.01, 0.1, (3, 30))], [rng.normal(0.001, 0.1, (3, 30))]
    assert math.isnan(_share(gain, lead).estimate)
    worse = [-0.2 + 0.01 * gain[0]]
    assert math.isnan(_share(gain, worse).estimate)
    # Of a distance the lead is negative: the same scores then have a share.
    assert _share(gain, worse, larger_is_better=False).estimate == pytest.approx(
        gain[0].mean() / worse[0].mean()
    )


@pytest.mark.parametrize("folds", [1, 5])
def test_the_interval_of_the_share_covers(folds: int) -> None:
    shape = {"folds": folds, "seeds": 3 if folds == 1 else 1, "cases": 45 // folds}
    gains = _studies(**shape, sds=(0.02, 0.1, 0.1), mean=0.06)[:300]
    leads = _studies(**shape, sds=(0.02, 0.1, 0.1), mean=0.2)[300:600]
    found = [_share(gain, lead) for gain, lead in zip(gains, leads, strict=True)]
    defined = [each for each in found if not math.isnan(each.estimate)]
    assert len(defined) > 280
    # 95 % less 3.5 binomial standard errors of 300 studies.
    assert np.mean([each.low <= 0.3 <= each.high for each in defined]) > 0.905


def test_the_share_is_repeated_by_its_seed() -> None:
    rng = np.random.default_rng(0)
    gain, lead = [rng.normal(0.05, 0.1, (3, 30))], [rng.normal(0.2, 0.1, (3, 30))]
    assert _share(gain, lead) == _share(gain, lead)
    other = statistics.share_closed(gain, lead, larger_is_better=True, seed=1, resamples=1000)
    assert other.estimate == _share(gain, lead).estimate
    assert other.low == pytest.approx(_share(gain, lead).low, abs=0.08)
