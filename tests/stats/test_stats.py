"""Estimates against hand-computed numbers and scipy, and their intervals against simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from finetune_bench import stats
from finetune_bench.stats.estimates import Estimate

A = np.array([70.0, 72.0, 71.0])
B = np.array([69.0, 70.0, 70.0])


def test_t_interval_by_hand():
    found = stats.t_interval(A)  # sd 1, t(2) = 4.3027, half width 4.3027 / √3
    assert (found.value, found.n, found.df) == (71.0, 3, 2)
    assert found.low == pytest.approx(71 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(71 + 2.48414, abs=1e-4)


def test_t_interval_leaves_out_nan_and_admits_what_it_lacks():
    assert stats.t_interval([*A, math.nan]) == stats.t_interval(A)
    one = stats.t_interval([70.0, math.nan])
    assert (one.value, one.n) == (70.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.p_value)
    assert not one.separated
    assert stats.t_interval([]).n == 0


def test_equal_values_separate_nothing():
    found = stats.t_interval([0.1, 0.1, 0.1])
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert not found.separated
    assert math.isnan(found.p_value)


def test_paired_difference_is_scipys_paired_t_test():
    found = stats.paired_difference(A, B)
    reference = scipy.stats.ttest_rel(A, B)
    low, high = reference.confidence_interval()
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, reference.pvalue))
    assert stats.paired_difference([*A, math.nan, 3.0], [*B, 1.0, math.nan]) == found


def test_two_way_contrast_by_hand():
    block = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0], [0.0, 4.0, 2.0]])
    # Method means 2, 4, 2, seed means 1, 3, 4, mean 8/3.
    variance, df = stats.residual_variance(block)
    residuals = np.array([[2, -1, -1], [-1, -4, 5], [-1, 5, -4]]) / 3
    assert variance == pytest.approx((residuals**2).sum() / 4)
    assert df == 4
    found = stats.two_way_contrast(block, [-1, 1, 0])
    assert (found.value, found.n, found.df) == (2.0, 3, 4)
    assert found.standard_error == pytest.approx(math.sqrt(2 * variance / 3))
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, 4) * found.standard_error)


def test_two_methods_make_the_two_way_interval_the_paired_one():
    two_way, paired = stats.two_way_contrast(np.stack([A, B]), [1, -1]), stats.paired_difference(A, B)
    assert two_way.df == paired.df
    assert (two_way.low, two_way.high) == pytest.approx((paired.low, paired.high))


def test_suite_mean_by_hand():
    tasks = [Estimate(1.0, 0, 0, n=5, df=4, standard_error=0.3), Estimate(3.0, 0, 0, n=3, df=2, standard_error=0.4)]
    found = stats.suite_mean(tasks)
    assert (found.value, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(0.25)  # √(0.09 + 0.16) / 2
    assert found.df == pytest.approx(0.25**2 / (0.09**2 / 4 + 0.16**2 / 2))


def test_suite_mean_is_welchs_test_for_two_groups():
    other = np.array([60.0, 66.0, 61.0, 64.0])
    tasks = [stats.t_interval(A), stats.t_interval(-other)]
    reference = scipy.stats.ttest_ind(A, other, equal_var=False)
    assert stats.suite_mean(tasks).p_value == pytest.approx(reference.pvalue)
    assert stats.suite_mean(tasks).df == pytest.approx(reference.df)


def test_suite_mean_never_averages_over_a_hole():
    assert stats.suite_mean([stats.t_interval(A), stats.NOTHING]).n == 0
    single = stats.suite_mean([stats.t_interval(A), stats.t_interval([60.0])])
    assert (single.value, single.n) == (65.5, 1)
    assert math.isnan(single.low)
    assert stats.suite_mean([]).n == 0


def test_synergy_by_hand():
    found = stats.synergy([5.0, 7.0], [3.0, 3.0], [2.0, 3.0], [1.0, 1.0])
    assert found.value == 1.5  # 1 and 2
    assert found.standard_error == pytest.approx(0.5)


def test_logit():
    assert stats.logit([0.5, 0.75]) == pytest.approx([0, math.log(3)])
    assert np.isnan(stats.logit([0.0, 1.0, -0.2, math.nan])).all()


def test_pairing_correlation():
    assert stats.pairing_correlation(A, 2 * A + 1) == pytest.approx(1)
    assert stats.pairing_correlation(A, B) == pytest.approx(np.corrcoef(A, B)[0, 1])
    assert math.isnan(stats.pairing_correlation(A[:2], B[:2]))
    assert math.isnan(stats.pairing_correlation(A, [1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("seeds", "threshold", "detectable"), [(3, 0.58, 3.3), (5, 0.31, 1.7), (10, 0.14, 1.0)])
def test_thresholds_are_those_of_the_protocol(seeds: int, threshold: float, detectable: float):
    assert stats.pairing_threshold(seeds) == pytest.approx(threshold, abs=0.005)
    found = stats.minimum_detectable_effect(1 / math.sqrt(seeds), seeds - 1)
    assert found == pytest.approx(detectable, abs=0.05)


def test_a_detectable_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(11)
    effect = stats.minimum_detectable_effect(1 / math.sqrt(5), 4)
    samples = rng.normal(effect, 1, size=(4000, 5))
    p_values = scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert (p_values < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    assert math.isnan(stats.minimum_detectable_effect(math.nan, 4))
    assert math.isnan(stats.minimum_detectable_effect(0.0, 4))


def test_clopper_pearson():
    low, high = stats.clopper_pearson(0, 5)
    assert (low, high) == pytest.approx((0, 1 - 0.025 ** (1 / 5)))
    assert stats.clopper_pearson(2, 10) == pytest.approx((0.0252107, 0.5560955), abs=1e-6)
    assert math.isnan(stats.clopper_pearson(0, 0)[0])


def test_binomial_standard_error_of_rte():
    assert 100 * stats.binomial_standard_error(0.70, 277) == pytest.approx(2.75, abs=0.01)


def test_geometric_mean_ratio():
    assert stats.geometric_mean_ratio([2.0, 8.0], [1.0, 1.0]) == pytest.approx(4)
    assert stats.geometric_mean_ratio([2.0, math.nan, 5.0], [1.0, 1.0, 0.0]) == pytest.approx(2)
    assert math.isnan(stats.geometric_mean_ratio([math.nan], [1.0]))


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]


def test_best_is_tukeys():
    clear = np.array([[9.0, 9.5, 9.2], [5.0, 5.2, 5.6], [5.1, 5.0, 5.5]])
    assert stats.best_is_separated(clear)
    assert not stats.best_is_separated(np.vstack([clear, clear[0] + [0.1, -0.1, 0.1]]))
    assert not stats.best_is_separated(np.ones((3, 3)))
    for block in np.random.default_rng(5).normal(size=(5, 2, 4)):  # with two methods it is the paired t test
        assert stats.best_is_separated(block) == (scipy.stats.ttest_rel(*block).pvalue < 0.05)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_what_they_promise(seeds: int):
    rng = np.random.default_rng(2)
    truth = np.array([0.0, 1.0, -0.5, 2.0])
    single = paired = two_way = suite = 0
    studies = 2000
    for _ in range(studies):
        blocks = [truth[:, None] + rng.normal(0, 2, seeds) + rng.normal(0, s, (4, seeds)) for s in (1, 2, 0.5)]
        interval = stats.t_interval(blocks[0][1])
        single += interval.low <= 1 <= interval.high
        interval = stats.paired_difference(blocks[0][1], blocks[0][0])
        paired += interval.low <= 1 <= interval.high
        interval = stats.two_way_contrast(blocks[0], [-1, 1, 0, 0])
        two_way += interval.low <= 1 <= interval.high
        interval = stats.suite_mean([stats.two_way_contrast(block, [-1, 1, 0, 0]) for block in blocks])
        suite += interval.low <= 1 <= interval.high
    for covered in (single, paired, two_way, suite):
        assert 0.93 <= covered / studies <= 0.97


@pytest.mark.parametrize("methods", [3, 8])
def test_best_is_rarely_bold_when_nothing_differs(methods: int):
    rng = np.random.default_rng(3)
    bold = sum(stats.best_is_separated(rng.normal(size=(methods, 3)) + rng.normal(size=3)) for _ in range(1500))
    assert bold / 1500 <= 0.05


def test_holm_keeps_the_family():
    rng = np.random.default_rng(4)
    samples = rng.normal(size=(1000, 6, 5))
    p_values = scipy.stats.ttest_1samp(samples, 0, axis=2).pvalue
    wrong = sum(min(stats.holm(list(family))) < 0.05 for family in p_values)
    assert wrong / 1000 == pytest.approx(0.05, abs=0.02)


def test_no_torch():
    code = "import sys, finetune_bench.stats; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_synergy_has_root_two_times_the_error_of_a_difference():
    block = np.random.default_rng(6).normal(size=(4, 5))
    errors = [stats.two_way_contrast(block, weights).standard_error for weights in ([1, -1, 0, 0], [1, -1, -1, 1])]
    assert errors[1] / errors[0] == pytest.approx(math.sqrt(2))


def test_benjamini_hochberg_by_hand():
    assert stats.benjamini_hochberg([0.01, 0.04, math.nan, 0.03, 0.5]) == pytest.approx(
        [0.04, 4 / 3 * 0.04, math.nan, 4 / 3 * 0.04, 0.5], nan_ok=True
    )
    assert stats.benjamini_hochberg([]) == []


def test_sign_flip_is_scipys_permutation_test():
    differences = np.random.default_rng(2).normal(0.5, 1, 8)
    reference = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert stats.sign_flip(differences) == pytest.approx(reference.pvalue)


def test_sign_flip_needs_six_pairs_and_says_no_less_than_it_can():
    assert math.isnan(stats.sign_flip([1.0] * 5))
    assert math.isnan(stats.sign_flip([1.0] * 5 + [math.nan]))
    assert stats.sign_flip([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 2 / 64
    assert stats.sign_flip([0.0] * 6) == 1
    many = stats.sign_flip(np.random.default_rng(1).normal(3, 1, 40))  # drawn: a p of 0 is never claimed
    assert many == pytest.approx(1 / 20_001)


def test_equivalence_is_two_one_sided_t_tests():
    differences = np.random.default_rng(3).normal(0.2, 0.5, 9)
    estimate = stats.t_interval(differences)
    above = scipy.stats.ttest_1samp(differences, -1.0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(differences, 1.0, alternative="less").pvalue
    assert stats.equivalence(estimate, 1.0) == pytest.approx(max(above, below))
    assert math.isnan(stats.equivalence(estimate, 0.0))
    assert math.isnan(stats.equivalence(stats.t_interval([1.0, 1.0]), 1.0))


def test_mcnemar_counts_pairs_that_disagree():
    own, reference = [True] * 6 + [False] * 4, [False] * 6 + [False] * 3 + [True]
    assert stats.mcnemar(own, reference) == pytest.approx(scipy.stats.binomtest(6, 7).pvalue)
    assert math.isnan(stats.mcnemar(own, own))


def test_noise_floor_covers_vanilla_against_itself():
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(2000):
        first, second = rng.normal(70, 2, (2, 5))
        floor = stats.noise_floor(first)
        inside += abs(second.mean() - first.mean()) <= floor.high
        assert floor.value == 0
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
    assert stats.noise_floor([1.0]) is stats.NOTHING


def test_expected_maximum_is_the_mean_over_all_subsets():
    scores = [61.0, 70.0, 58.0, 66.0, math.nan, 70.5]
    finite = [score for score in scores if not math.isnan(score)]
    for budget in range(1, 6):
        subsets = list(itertools.combinations(finite, budget))
        assert stats.expected_maximum(scores, budget) == pytest.approx(np.mean([max(one) for one in subsets]))
    for budget in (0, 6):
        with pytest.raises(ValueError, match=f"budget from 1 to 5, the number of trials; got {budget}"):
            stats.expected_maximum(scores, budget)


def test_expected_maximum_is_unbiased():
    rng = np.random.default_rng(8)
    found = np.mean([stats.expected_maximum(rng.normal(size=6), 3) for _ in range(4000)])
    assert found == pytest.approx(3 / (2 * math.sqrt(math.pi)), abs=0.03)  # of the largest of three normal draws


def test_interpolated_budgets():
    block = [[60.0, 61.0], [64.0, math.nan], [66.0, 67.0]]
    assert stats.interpolate_budget([1, 2, 4], block, 1.5) == pytest.approx([62, math.nan], nan_ok=True)
    assert list(stats.interpolate_budget([1, 2, 4], block, 4)) == [66, 67]
    assert np.isnan(stats.interpolate_budget([1, 2, 4], block, 4.1)).all()  # nothing beyond the longest run


@pytest.mark.parametrize(("seeds", "units"), [(3, 3.3), (5, 1.7), (10, 1.0), (20, 0.66)])
def test_detectable_in_units_of_the_spread(seeds: int, units: float):
    assert stats.detectable_with(seeds, 1.0) == pytest.approx(units, rel=0.03)


def test_seeds_for_is_the_fewest():
    for difference, sd in ((1.0, 1.0), (0.2, 1.5), (5.0, 0.5)):
        seeds = stats.seeds_for(difference, sd)
        assert stats.detectable_with(seeds, sd) <= difference
        assert seeds == 2 or stats.detectable_with(seeds - 1, sd) > difference
    with pytest.raises(ValueError, match="above 0; got 0 and 1"):
        stats.seeds_for(0, 1)


def test_seeds_for_is_what_a_simulation_needs():
    seeds = stats.seeds_for(1.0, 1.2)
    rng = np.random.default_rng(6)
    found = np.mean([stats.t_interval(rng.normal(1.0, 1.2, seeds)).separated for _ in range(3000)])
    assert 0.78 < found < 0.85
