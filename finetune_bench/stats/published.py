"""Means that were published are held here against our own: on summary statistics, since nothing else of them is known.

A published mean is of a few runs, often three, whose spread may be lost. It is never taken for exact. All numbers are
in one unit, points as a rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import integrate
from scipy import stats as distributions

from finetune_bench.stats.estimates import CONFIDENCE, Estimate

LevelVerdict = Literal["reproduced", "different", "different, but by less than the margin", "undecided"]
SignVerdict = Literal["supported", "contradicted", "no practical effect", "undecided"]
SizeVerdict = Literal["as claimed", "smaller", "larger", "undecided"]


@dataclass(frozen=True)
class Summary:
    """A summary holds all that is known of some runs.

    Attributes:
        mean: their mean.
        sd: their standard deviation; None where it isn't known.
        n: how many they are; None where that isn't known.
    """

    mean: float
    sd: float | None
    n: int | None


@dataclass(frozen=True)
class Level:
    """A level says how our mean lies to a published one.

    Attributes:
        verdict: what can be said of it at 5 %.
        difference: ours minus theirs, with its 95 % interval.
        margin: the margin that it was judged by.
        smallest_margin: the smallest margin by which it would have been reproduced.
        new_mean: how far a new mean of as many published runs as ours may lie from theirs; NaN where their spread is
            not known.
        assumption: what the interval rests on beside the published numbers; "" for nothing.
    """

    verdict: LevelVerdict
    difference: Estimate
    margin: float
    smallest_margin: float
    new_mean: float
    assumption: str = ""


def welch(own: Summary, published: Summary) -> Estimate:
    """Return own − published with Welch's 95 % interval from means, deviations and numbers of runs.

    Question (a). se² = s₀²/n₀ + s²/n, df by Welch and Satterthwaite. One of the deviations may be 0.

    Raises:
        ValueError: a deviation isn't known, or is of fewer than two runs, or both are 0.
    """
    variances, degrees = [], []
    for summary in (own, published):
        if summary.sd is None or summary.n is None or summary.n < 2:
            raise ValueError("Expected a standard deviation of two runs or more on both sides; got one without.")
        variances.append(summary.sd**2 / summary.n)
        degrees.append(summary.n - 1)
    total = sum(variances)
    if total == 0:
        raise ValueError("Expected a standard deviation above 0 on one side at least; got 0 on both.")
    runs = min(own.n or 0, published.n or 0)
    return _estimate(own.mean - published.mean, math.sqrt(total), runs, _satterthwaite(variances, degrees))


def with_our_spread(own: Summary, published: Summary) -> Estimate:
    """Return own − published where the published deviation is lost: it is taken to be ours.

    Question (a). se² = s²·(1/n₀ + 1/n), df = n − 1; n₀ is 1 where it isn't known.

    Raises:
        ValueError: our own runs have no spread either.
    """
    if own.sd is None or own.n is None or own.n < 2 or own.sd == 0:
        raise ValueError("Expected two runs of our own or more that differ, in place of a lost deviation; got none.")
    error = own.sd * math.sqrt(1 / (published.n or 1) + 1 / own.n)
    return _estimate(own.mean - published.mean, error, own.n, own.n - 1)


def judge_level(own: Summary, published: Summary, margin: float) -> Level:
    """Hold our mean against a published one, within a margin that was fixed before.

    *reproduced*: the 90 % interval of the difference lies within ±margin, two one-sided 5 % tests. *different*: the
    95 % interval excludes 0. Whether a published deviation divides by n or by n − 1 isn't known: a verdict holds for
    both.

    Raises:
        ValueError: nothing is known of the spread on either side.
    """
    if published.sd is None or published.n is None or published.n < 2:
        readings = [with_our_spread(own, published)]
        assumption = "assumes that the published runs vary like ours"
        assumption += "" if published.n else ", and were a single one"
        new_mean = math.nan
    else:
        wider = published.sd * math.sqrt(published.n / (published.n - 1))
        if own.sd is None or own.n is None or own.n < 2:
            raise ValueError("Expected two runs of our own or more; got one, of which no spread is known.")
        readings = [welch(own, published), welch(own, replace(published, sd=wider))]
        assumption = ""
        new_mean = prediction_half_width(published, own.n)
    margins = [smallest_margin(reading) for reading in readings]
    reproduced = all(needed < margin for needed in margins)
    different = all(reading.separated for reading in readings)
    verdict: LevelVerdict = "undecided"
    if reproduced and different:
        verdict = "different, but by less than the margin"
    elif reproduced:
        verdict = "reproduced"
    elif different:
        verdict = "different"
    return Level(verdict, readings[0], margin, max(margins), new_mean, assumption)


def smallest_margin(difference: Estimate) -> float:
    """Return the smallest margin within which two one-sided 5 % tests would have shown a difference to lie."""
    return abs(difference.value) + float(distributions.t.ppf(CONFIDENCE, difference.df)) * difference.standard_error


def prediction_half_width(published: Summary, runs: int) -> float:
    """Return how far from a published mean a new mean of that many of the same runs lies, 19 times in 20.

    t·s₀·√(1/n₀ + 1/n) with n₀ − 1 degrees of freedom. NaN where the deviation isn't known.
    """
    if published.sd is None or published.n is None or published.n < 2:
        return math.nan
    quantile = float(distributions.t.ppf((1 + CONFIDENCE) / 2, published.n - 1))
    return quantile * published.sd * math.sqrt(1 / published.n + 1 / runs)


def selection_bias(settings: int, sd: float, runs: int) -> float:
    """Return how much too high the best of several equal settings comes out, where it is chosen by its own mean.

    The expected largest of that many standard normal draws, in standard errors of a mean of `runs`.
    """
    return expected_largest(settings) * sd / math.sqrt(runs)


def expected_largest(draws: int) -> float:
    """Return the expected largest of that many independent standard normal draws; 0 for one."""

    def density(value: float) -> float:
        largest = float(distributions.norm.cdf(value)) ** (draws - 1)
        return value * draws * float(distributions.norm.pdf(value)) * largest

    return float(integrate.quad(density, -12, 12)[0])


def mean_gain(pairs: Sequence[tuple[Summary, Summary]]) -> Estimate:
    """Return the mean over tasks of a published gain, with its interval; of runs of which no pairing is known.

    se² = Σ (s_A²/n_A + s_B²/n_B)/T², df by Welch and Satterthwaite. No interval where a deviation is lost.

    Args:
        pairs: of each task the better method and the other.
    """
    value = sum(better.mean - other.mean for better, other in pairs) / len(pairs)
    known = [(s.sd, s.n) for pair in pairs for s in pair if s.sd is not None and s.n is not None and s.n > 1]
    runs = min([n for _, n in known], default=0)
    variances = [sd**2 / n for sd, n in known]
    if len(known) < 2 * len(pairs) or sum(variances) == 0:
        return Estimate(value, n=runs)
    df = _satterthwaite(variances, [n - 1 for _, n in known])
    return _estimate(value, math.sqrt(sum(variances)) / len(pairs), runs, df)


def judge_sign(gain: Estimate, margin: float) -> SignVerdict:
    """Tell whether a gain of our own has the sign that was claimed; a claimed gain is above 0."""
    if not gain.standard_error > 0:
        return "undecided"
    if gain.low > 0:
        return "supported"
    if gain.high < 0:
        return "contradicted"
    return "no practical effect" if smallest_margin(gain) < margin else "undecided"


def judge_size(gain: Estimate, claimed: Estimate, margin: float) -> SizeVerdict:
    """Tell whether a gain of our own is as large as was claimed.

    Args:
        gain: ours.
        claimed: theirs; its interval may be missing.
        margin: within which they count as equal.
    """
    if not gain.standard_error > 0:
        return "undecided"
    if smallest_margin(replace(gain, value=gain.value - claimed.value)) < margin:
        return "as claimed"
    low = claimed.value if math.isnan(claimed.low) else claimed.low
    high = claimed.value if math.isnan(claimed.high) else claimed.high
    if gain.high < low:
        return "smaller"
    return "larger" if gain.low > high else "undecided"


def whole_counts(percentage: float, rows: int, runs: int) -> list[int]:
    """Return the numbers of right answers, over all runs, that would be printed as a percentage of two decimals.

    Printed numbers are rounded, or cut.

    Args:
        percentage: as printed.
        rows: examples of the set.
        runs: runs that were averaged.
    """
    total = rows * runs
    nearest = round(percentage * total / 100)
    near = range(nearest - 2, nearest + 3)
    return [count for count in near if -0.005001 <= 100 * count / total - percentage < 0.01]


def _satterthwaite(variances: Sequence[float], degrees: Sequence[int]) -> float:
    """Return the degrees of freedom of a sum of variances of means (Satterthwaite, 1946)."""
    return float(sum(variances) ** 2 / sum(v**2 / number for v, number in zip(variances, degrees, strict=True)))


def _estimate(value: float, standard_error: float, n: int, df: float) -> Estimate:
    half = float(distributions.t.ppf((1 + CONFIDENCE) / 2, df)) * standard_error
    return Estimate(value, value - half, value + half, n, df, standard_error)
