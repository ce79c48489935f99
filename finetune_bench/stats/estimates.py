"""Compute estimates and intervals for method × task × seed comparisons: pure functions on arrays, never torch.

A number answers one of three questions, and each docstring says which:
    (a) this suite: these tasks and these examples, new seeds: the seed is the unit;
    (b) new tasks: the task is the unit;
    (c) new examples: the example is the unit.
Intervals are built on Student's t: a bootstrap of three to five seeds covers far less than it promises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy import stats as distributions

CONFIDENCE = 0.95
# Below this many seeds no p-value is worth printing: three can't reject anything by sign flips.
SEEDS_FOR_P = 5
# The smallest p of S pairs by sign flips is 2/2^S.
SEEDS_FOR_SIGN_FLIP = 6
# Up to so many pairs all sign patterns are tried.
_ENUMERATED_PAIRS = 16


@dataclass(frozen=True)
class Estimate:
    """An estimate is a mean with its interval.

    Attributes:
        value: The mean; NaN where there is nothing to estimate from.
        low: Lower end of the 95 % interval; NaN where n is below 2.
        high: Upper end of the 95 % interval; NaN where n is below 2.
        n: Units (seeds, pairs or tasks) behind it.
        df: Degrees of freedom of the t quantile; 0 where there is no interval.
        standard_error: Standard error of `value`; NaN where there is no interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    df: float = 0.0
    standard_error: float = math.nan

    @property
    def separated(self) -> bool:
        """Return whether the interval excludes 0; one without width (every unit the same) proves nothing."""
        return self.standard_error > 0 and (self.low > 0 or self.high < 0)

    @property
    def p_value(self) -> float:
        """Return the two-sided p of the t test that the true value is 0; NaN where there is no spread."""
        if not self.standard_error > 0:
            return math.nan
        return float(2 * distributions.t.sf(abs(self.value) / self.standard_error, self.df))


NOTHING = Estimate(math.nan)


@cache
def _quantile(df: float) -> float:
    return float(distributions.t.ppf((1 + CONFIDENCE) / 2, df))


def _estimate(value: float, standard_error: float, n: int, df: float) -> Estimate:
    # So little is the rounding of equal numbers, not spread.
    if standard_error <= 1e-12 * max(1.0, abs(value)):
        standard_error = 0.0
    half = _quantile(df) * standard_error
    return Estimate(value, value - half, value + half, n, df, standard_error)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def t_interval(values: ArrayLike) -> Estimate:
    """Return the mean of `values` with a t interval.

    Question (a) where the values are one method's scores over seeds, (b) where they are task means.
    n = finite values, df = n − 1; the standard deviation has ddof 1.
    """
    finite = _finite(values)
    if len(finite) == 0:
        return NOTHING
    mean = float(finite.mean())
    if len(finite) == 1:
        return Estimate(mean, n=1)
    return _estimate(mean, float(finite.std(ddof=1)) / math.sqrt(len(finite)), len(finite), len(finite) - 1)


def paired_difference(scores: ArrayLike, reference: ArrayLike) -> Estimate:
    """Return the mean of scores − reference over pairs, with a t interval on the differences.

    Question (a), one task. Both (seeds,), NaN where there is none; n = complete pairs, df = n − 1.
    """
    return t_interval(np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64))


def residual_variance(scores: ArrayLike) -> tuple[float, int]:
    """Return the variance left in a complete (methods, seeds) block without method and seed means, and its df.

    df = (M − 1)(S − 1). The interval of any contrast between the block's methods is built on it, which
    assumes that methods scatter equally.
    """
    block = np.asarray(scores, dtype=np.float64)
    methods, seeds = block.shape
    residuals = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0, keepdims=True) + block.mean()
    df = (methods - 1) * (seeds - 1)
    return float((residuals**2).sum() / df), df


def two_way_contrast(scores: ArrayLike, weights: ArrayLike) -> Estimate:
    """Return a contrast of method means, its interval from the two-way (method + seed) residual variance.

    Question (a), one task. n = S seeds, df = (M − 1)(S − 1). With two methods it is the paired t interval.

    Args:
        scores: Complete block (methods, seeds), at least 2 × 2.
        weights: (methods,), summing to 0: 1 and −1 for a difference, 1, −1, −1, 1 for a synergy.
    """
    block = np.asarray(scores, dtype=np.float64)
    weight = np.asarray(weights, dtype=np.float64)
    variance, df = residual_variance(block)
    seeds = block.shape[1]
    value = float(weight @ block.mean(axis=1))
    return _estimate(value, math.sqrt(variance * float(weight @ weight) / seeds), seeds, df)


def suite_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over tasks of one estimate per task.

    The variance is Σ se_t² / T², with degrees of freedom by Welch and Satterthwaite.

    Question (a): these tasks, new seeds. n = the fewest seeds behind any task. Tasks are not pooled: the spread between
    them is no noise here. NOTHING where a task has no estimate; no interval where a task has none.
    """
    if not estimates or any(math.isnan(estimate.value) for estimate in estimates):
        return NOTHING
    value = float(np.mean([estimate.value for estimate in estimates]))
    n = min(estimate.n for estimate in estimates)
    variances = np.array([estimate.standard_error**2 for estimate in estimates])
    if np.isnan(variances).any():
        return Estimate(value, n=n)
    degrees = np.array([estimate.df for estimate in estimates])
    total = float(variances.sum())
    df = total**2 / float((variances**2 / degrees).sum()) if total > 0 else float(degrees.sum())
    return _estimate(value, math.sqrt(total) / len(estimates), n, df)


def synergy(stacked: ArrayLike, first: ArrayLike, second: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Return the mean over seeds of y_AB − y_A − y_B + y_0: what a stack gains over the sum of its parts.

    Question (a), one task, with a t interval. All are (seeds,), NaN where there is none; n = complete quadruples,
    df = n − 1. The standard error is √2 that of a simple difference.
    """
    ab, a, b, none = (np.asarray(scores, dtype=np.float64) for scores in (stacked, first, second, baseline))
    return t_interval(ab - a - b + none)


def logit(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the log-odds of shares in (0, 1), NaN outside; on that scale gains near the ceiling count for more."""
    share = np.asarray(scores, dtype=np.float64)
    inside = np.where((share > 0) & (share < 1), share, np.nan)
    return np.log(inside) - np.log1p(-inside)


def pairing_correlation(scores: ArrayLike, reference: ArrayLike) -> float:
    """Return the correlation of two methods across seeds: how much pairing by seed takes out of the noise.

    n = complete pairs; NaN below three (two points always lie on a line) and where one of them doesn't vary.
    """
    both = np.stack([np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)])
    both = both[:, np.isfinite(both).all(axis=0)]
    if both.shape[1] < 3 or (np.ptp(both, axis=1) <= 1e-12).any():
        return math.nan
    return float(np.asarray(np.corrcoef(both))[0, 1])


def pairing_threshold(seeds: int) -> float:
    """Return the correlation above which a paired t interval is narrower than an unpaired one, in expectation.

    From (1 − rho) · t(S − 1)² = t(2S − 2)²: pairing halves the degrees of freedom, and has to earn that back.
    """
    return 1 - (_quantile(2 * seeds - 2) / _quantile(seeds - 1)) ** 2


def best_is_separated(scores: ArrayLike) -> bool:
    """Return whether the best method's mean stands clear of every other's, by Tukey's honest significant difference.

    Question (a), one task. n = S seeds, df = (M − 1)(S − 1), family: all pairs of the M methods at 95 % together, for
    the best was picked after looking.

    Args:
        scores: Complete block (methods, seeds), at least 2 × 2.
    """
    block = np.asarray(scores, dtype=np.float64)
    variance, df = residual_variance(block)
    means = sorted(float(row.mean()) for row in block)
    if variance <= 1e-24:
        return False
    return bool(means[-1] - means[-2] > _range_quantile(block.shape[0], df) * math.sqrt(variance / block.shape[1]))


@cache
def _range_quantile(methods: int, df: int) -> float:
    return float(distributions.studentized_range.ppf(CONFIDENCE, methods, df))


def minimum_detectable_effect(standard_error: float, df: float, power: float = 0.8) -> float:
    """Return the true difference that a two-sided 5 % t test with this standard error finds with probability `power`.

    Question (a). What is smaller could not be seen, more often than one time in five. NaN without an interval.
    """
    if not (standard_error > 0 and df >= 1):
        return math.nan
    return standard_error * _noncentrality(df, power)


@cache
def _noncentrality(df: float, power: float) -> float:
    critical = _quantile(df)
    return float(
        optimize.brentq(lambda shift: float(distributions.nct.sf(critical, df, shift)) - power, 0.1, 10 * critical)
    )


def clopper_pearson(count: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a rate, from `count` of n independent runs; (NaN, NaN) where n is 0."""
    if n == 0:
        return math.nan, math.nan
    interval = distributions.binomtest(count, n).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def binomial_standard_error(share: float, examples: int) -> float:
    """Return the standard error of an accuracy from drawing the examples anew: question (c), n = examples."""
    return math.sqrt(share * (1 - share) / examples)


def geometric_mean_ratio(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the geometric mean over pairs of value / reference; NaN without a pair of positive numbers."""
    value, other = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    usable = (value > 0) & (other > 0)
    return float(np.exp(np.mean(np.log(value[usable] / other[usable])))) if usable.any() else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down rule within the family; NaN entries are no part of it."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(tested) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that one in twenty of those below 5 % is expected to be false; NaN stays NaN."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    if tested:
        controlled = distributions.false_discovery_control([p_values[i] for i in tested])
        for i, p in zip(tested, controlled, strict=True):
            adjusted[i] = float(p)
    return adjusted


def sign_flip(differences: ArrayLike) -> float:
    """Return the exact two-sided p of paired differences by flipping their signs; symmetry around 0 is all it assumes.

    Question (a). The mean is compared with that of all 2^S sign patterns, from 6 pairs; above 16 pairs with 20,000
    seeded draws. NaN below 6 pairs.
    """
    finite = _finite(differences)
    if len(finite) < SEEDS_FOR_SIGN_FLIP:
        return math.nan
    signs = _signs(len(finite))
    # Sums of the same numbers differ by rounding.
    reached = np.abs(signs @ finite) >= abs(finite.sum()) * (1 - 1e-12)
    drawn = len(finite) > _ENUMERATED_PAIRS
    return float((reached.sum() + drawn) / (len(signs) + drawn))


@cache
def _signs(pairs: int) -> NDArray[np.float64]:
    """Return (patterns, pairs) of 1 and −1: all there are, or 20,000 seeded draws."""
    if pairs <= _ENUMERATED_PAIRS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=pairs)))
    return np.random.default_rng(0).choice((1.0, -1.0), size=(20_000, pairs))


def equivalence(estimate: Estimate, margin: float) -> float:
    """Return the p of the two one-sided t tests that the true difference lies outside ±margin; small means equal.

    Question (a), with the estimate's own df. NaN where it has no spread or the margin isn't above 0.
    """
    if not (estimate.standard_error > 0 and margin > 0):
        return math.nan
    distances = (margin - estimate.value, margin + estimate.value)
    return max(float(distributions.t.sf(distance / estimate.standard_error, estimate.df)) for distance in distances)


def mcnemar(failed: ArrayLike, reference_failed: ArrayLike) -> float:
    """Return the exact two-sided p that two methods fail equally often; NaN where no pair of runs disagrees.

    Args:
        failed: (pairs,) whether each run of the method failed.
        reference_failed: (pairs,) whether each run of the reference failed.
    """
    a, b = np.asarray(failed, dtype=bool), np.asarray(reference_failed, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return math.nan
    return float(distributions.binomtest(only_a, only_a + only_b).pvalue)


def noise_floor(scores: ArrayLike) -> Estimate:
    """Return how far apart the means of two fresh sets of seeds of one method lie: 0 with its 95 % interval.

    Question (a), one task. n = finite values S, df = S − 1, standard error s·√(2/S): a method against itself.
    """
    finite = _finite(scores)
    if len(finite) < 2:
        return NOTHING
    return _estimate(0.0, float(finite.std(ddof=1)) * math.sqrt(2 / len(finite)), len(finite), len(finite) - 1)


def expected_maximum(scores: ArrayLike, budget: int) -> float:
    """Return the expected best of `budget` settings drawn without replacement from those tried, unbiased.

    The mean over all subsets of that size of their largest score, from the order statistics: the i-th smallest of n is
    the largest of C(i − 1, k − 1) of the C(n, k) subsets. NaN entries are no trials.

    Raises:
        ValueError: The budget is below 1 or above the number of trials.
    """
    ordered = np.sort(_finite(scores))
    n = len(ordered)
    if not 1 <= budget <= n:
        raise ValueError(f"Expected a budget from 1 to {n}, the number of trials; got {budget}.")
    weights = [math.comb(i, budget - 1) / math.comb(n, budget) for i in range(n)]
    return float(ordered @ np.array(weights))


def interpolate_budget(budgets: Sequence[float], scores: ArrayLike, at: float) -> NDArray[np.float64]:
    """Return scores at a budget between measured ones, linear, seed by seed.

    Args:
        budgets: Measured budgets, ascending.
        scores: (budgets, seeds); NaN where there is none.
        at: The budget asked for.

    Returns:
        (seeds,); NaN outside the measured budgets, and where a neighbouring score is NaN.
    """
    block: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    if not budgets[0] <= at <= budgets[-1]:
        return np.full(block.shape[1], math.nan)
    right = next(i for i, budget in enumerate(budgets) if budget >= at)
    if budgets[right] == at:
        return np.array(block[right])
    share = (at - budgets[right - 1]) / (budgets[right] - budgets[right - 1])
    return np.array((1 - share) * block[right - 1] + share * block[right])


def detectable_with(seeds: int, sd: float, power: float = 0.8) -> float:
    """Return the true difference that a paired t test of that many seeds finds with probability `power`.

    Question (a), one task. `sd` is that of the paired differences; in its units 3.3 at 3 seeds, 1.7 at 5, 1.0 at 10.
    """
    return minimum_detectable_effect(sd / math.sqrt(seeds), seeds - 1, power)


def seeds_for(difference: float, sd: float, power: float = 0.8) -> int:
    """Return the fewest seeds with which a paired t test finds a true difference with probability `power`; at least 2.

    Raises:
        ValueError: The difference or the standard deviation isn't above 0.
    """
    if not (difference > 0 and sd > 0):
        raise ValueError(f"Expected a difference and a standard deviation above 0; got {difference:g} and {sd:g}.")
    low, high = 1, 2
    while detectable_with(high, sd, power) > difference:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable_with(middle, sd, power) <= difference else (middle, high)
    return high
