"""Ranks, P(A > B), normalised means and performance profiles are aggregates over tasks that no one score dominates.

Pure functions on arrays. Scores are higher-is-better; questions (a), (b) and (c) are those of `stats`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from finetune_bench.stats.estimates import CONFIDENCE


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over tasks.

    Attributes:
        mean: (methods,) mean rank, 1 is the best; ties share their mean rank.
        p: The p of Friedman's test that all methods are alike; NaN where every task ties.
        critical_difference: Mean ranks further apart than this are separated, by Nemenyi's test at 95 % for all pairs
            of the pool together.
        n: Number of tasks.
    """

    mean: NDArray[np.float64]
    p: float
    critical_difference: float
    n: int


def rank_test(scores: ArrayLike) -> Ranks:
    """Return mean ranks with Friedman's test and Nemenyi's critical difference over tasks (Demšar, JMLR 7, 2006).

    Question (b): the task is the unit. A method's ranks depend on who else is in the pool.

    Args:
        scores: (methods, tasks) means over seeds, complete, at least 3 × 2.
    """
    means = np.asarray(scores, dtype=np.float64)
    methods, tasks = means.shape
    ranks = distributions.rankdata(-means, axis=0)
    varied = bool((np.ptp(ranks, axis=0) > 0).any())
    p = float(distributions.friedmanchisquare(*means).pvalue) if varied else math.nan
    q = float(distributions.studentized_range.ppf(CONFIDENCE, methods, np.inf)) / math.sqrt(2)
    return Ranks(ranks.mean(axis=1), p, q * math.sqrt(methods * (methods + 1) / (6 * tasks)), tasks)


def groups_within(mean_ranks: ArrayLike, critical_difference: float) -> list[tuple[int, ...]]:
    """Return the largest groups of methods whose mean ranks lie within the critical difference of each other.

    Args:
        mean_ranks: (methods,).
        critical_difference: How far apart the ranks of a group may lie.

    Returns:
        Tuples of indices, best rank first; groups of one, and groups inside others, are left out.
    """
    ranks = np.asarray(mean_ranks, dtype=np.float64)
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    groups: list[tuple[int, ...]] = []
    for start in range(len(order)):
        inside = [i for i in order[start:] if ranks[i] - ranks[order[start]] <= critical_difference]
        if len(inside) > 1 and not any(set(inside) <= set(group) for group in groups):
            groups.append(tuple(inside))
    return groups


def probability_of_improvement(scores: Sequence[ArrayLike], reference: Sequence[ArrayLike]) -> float:
    """Return P(A > B), the chance that a run of A beats a run of B on the same task, mean over tasks; ties count half.

    Question (a). The Mann–Whitney statistic of each task, all pairs of seeds, paired or not. NaN where a task has no
    run of either.

    Args:
        scores: A's (seeds,) scores of each task, NaN for none.
        reference: B's.
    """
    shares = []
    for of_task in zip(scores, reference, strict=True):
        a, b = (np.asarray(values, dtype=np.float64) for values in of_task)
        apart = a[np.isfinite(a)][:, None] - b[np.isfinite(b)][None, :]
        shares.append(float(((apart > 0) + 0.5 * (apart == 0)).mean()) if apart.size else math.nan)
    return float(np.mean(shares)) if shares else math.nan


def normalise(scores: ArrayLike, worst: float, best: float) -> NDArray[np.float64]:
    """Return scores of one task on a scale from 0 (`worst`) to 1 (`best`); beyond the ends where they lie beyond.

    Raises:
        ValueError: The best isn't above the worst.
    """
    if not best > worst:
        raise ValueError(f"Expected the best reference above the worst; got {best:g} and {worst:g}.")
    return (np.asarray(scores, dtype=np.float64) - worst) / (best - worst)


def interquartile_mean(normalised: ArrayLike) -> float:
    """Return the mean of the middle half of all runs over tasks and seeds (Agarwal et al., NeurIPS 2021), without NaN.

    Give it normalised scores only: of raw ones it trims whole tasks.
    """
    values = np.asarray(normalised, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return float(distributions.trim_mean(finite, 0.25)) if finite.size else math.nan


def performance_profile(normalised: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Return the share of runs that score above each threshold, tasks weighted alike.

    Args:
        normalised: (tasks, seeds), NaN for none.
        thresholds: (thresholds,).

    Returns:
        (thresholds,); NaN where a task has no run.
    """
    scores = np.asarray(normalised, dtype=np.float64)
    limits = np.asarray(thresholds, dtype=np.float64)
    runs = np.isfinite(scores).sum(axis=1)
    if (runs == 0).any():
        return np.full(len(limits), np.nan)
    above = (scores[:, :, None] > limits).sum(axis=1)
    return np.asarray((above / runs[:, None]).mean(axis=0))
