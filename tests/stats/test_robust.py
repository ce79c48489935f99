"""Aggregates over tasks, against hand-computed values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from finetune_bench.stats import robust


def test_ranks_by_hand() -> None:
    scores = [[90, 80, 70], [85, 85, 60], [80, 85, 65]]  # (methods, tasks); a tie on the second task
    found = robust.rank_test(scores)
    assert found.mean == pytest.approx([(1 + 3 + 1) / 3, (2 + 1.5 + 3) / 3, (3 + 1.5 + 2) / 3])
    assert found.p == pytest.approx(scipy_stats.friedmanchisquare(*scores).pvalue)
    assert found.n == 3


def test_critical_difference_is_demsars() -> None:
    # Demšar (2006), table 5: q at 5 % is 2.343 for three methods and 2.949 for seven.
    for methods, tasks, q in ((3, 8, 2.343), (7, 14, 2.949)):
        rng = np.random.default_rng(0)
        found = robust.rank_test(rng.normal(size=(methods, tasks)))
        assert found.critical_difference == pytest.approx(
            q * math.sqrt(methods * (methods + 1) / (6 * tasks)), rel=1e-3
        )


def test_ranks_of_methods_that_all_tie_have_no_p() -> None:
    found = robust.rank_test(np.ones((3, 4)))
    assert list(found.mean) == [2, 2, 2]
    assert math.isnan(found.p)


def test_groups_are_the_largest_within_the_difference() -> None:
    assert robust.groups_within([1.0, 1.8, 2.5, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert robust.groups_within([3.0, 1.0, 2.0], 5.0) == [(1, 2, 0)]
    assert robust.groups_within([1.0, 3.0], 1.0) == []


def test_probability_of_improvement_is_mann_whitneys() -> None:
    own, other = np.array([3.0, 5.0, 7.0, 7.0]), np.array([4.0, 5.0, 6.0])
    statistic = scipy_stats.mannwhitneyu(own, other).statistic
    assert robust.probability_of_improvement([own], [other]) == pytest.approx(statistic / 12)
    assert robust.probability_of_improvement([own, [1.0]], [other, [2.0]]) == pytest.approx(statistic / 24)
    assert robust.probability_of_improvement([[math.nan, 2.0]], [[1.0]]) == 1
    assert math.isnan(robust.probability_of_improvement([own, [math.nan]], [other, [2.0]]))


def test_normalised_scores() -> None:
    assert robust.normalise([50.0, 70.0, 40.0], 50, 70) == pytest.approx([0, 1, -0.5])
    with pytest.raises(ValueError, match="best reference above the worst; got 50 and 50"):
        robust.normalise([1.0], 50, 50)


def test_interquartile_mean_by_hand() -> None:
    assert robust.interquartile_mean([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, math.nan, 2.0, 3.0]) == pytest.approx(2.5)
    assert math.isnan(robust.interquartile_mean([math.nan]))


def test_performance_profile_weighs_tasks_alike() -> None:
    block = [[0.2, 0.6, math.nan], [0.9, 0.9, 0.4]]
    assert robust.performance_profile(block, [0.0, 0.5, 0.9]) == pytest.approx([1, (1 / 2 + 2 / 3) / 2, 0])
    assert np.isnan(robust.performance_profile([[math.nan], [1.0]], [0.5])).all()
