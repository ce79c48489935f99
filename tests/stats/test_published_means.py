"""Published means against our own: values worked out by hand, symmetry, and what can't be judged."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats as distributions

from finetune_bench.stats.estimates import Estimate, equivalence, t_interval
from finetune_bench.stats.published import (
    Summary,
    expected_largest,
    judge_level,
    judge_sign,
    judge_size,
    mean_gain,
    prediction_half_width,
    selection_bias,
    smallest_margin,
    welch,
    whole_counts,
    with_our_spread,
)

PUBLISHED = Summary(74.37, 1.64, 3)
OWN = Summary(73.00, 1.50, 10)


def test_welch_on_summaries_by_hand() -> None:
    difference = welch(OWN, PUBLISHED)
    assert difference.value == pytest.approx(-1.37)
    assert difference.standard_error == pytest.approx(1.0590, abs=5e-5)
    assert difference.value / difference.standard_error == pytest.approx(-1.2936, abs=1e-4)
    assert difference.df == pytest.approx(3.087, abs=1e-3)
    assert difference.p_value == pytest.approx(0.284, abs=1e-3)
    assert (difference.low, difference.high) == pytest.approx((-4.69, 1.95), abs=0.005)
    assert smallest_margin(difference) == pytest.approx(3.83, abs=0.005)
    assert equivalence(difference, 3) == pytest.approx(0.109, abs=1e-3)
    assert equivalence(difference, 5) == pytest.approx(0.0199, abs=1e-4)


def test_welch_is_scipys() -> None:
    theirs = distributions.ttest_ind_from_stats(73.0, 1.5, 10, 74.37, 1.64, 3, equal_var=False)
    assert welch(OWN, PUBLISHED).p_value == pytest.approx(float(theirs.pvalue), rel=1e-9)


def test_a_level_is_judged_within_its_margin() -> None:
    assert judge_level(OWN, PUBLISHED, 3).verdict == "undecided"
    assert judge_level(OWN, PUBLISHED, 5).verdict == "reproduced"
    level = judge_level(OWN, PUBLISHED, 3)
    assert level.difference.standard_error == pytest.approx(1.0590, abs=5e-5)
    assert level.new_mean == pytest.approx(4.65, abs=0.005)
    assert prediction_half_width(PUBLISHED, 10) == pytest.approx(4.65, abs=0.005)


def test_a_verdict_must_hold_for_both_kinds_of_deviation() -> None:
    """With a deviation that divides by n the margin needed is larger: between the two nothing is shown."""
    plain = smallest_margin(welch(OWN, PUBLISHED))
    wide = smallest_margin(welch(OWN, dataclasses.replace(PUBLISHED, sd=1.64 * math.sqrt(1.5))))
    assert plain < wide
    assert judge_level(OWN, PUBLISHED, (plain + wide) / 2).verdict == "undecided"
    assert judge_level(OWN, PUBLISHED, wide + 0.01).verdict == "reproduced"
    assert judge_level(OWN, PUBLISHED, 3).smallest_margin == pytest.approx(wide)


def test_different_and_within_the_margin_can_both_hold() -> None:
    own, published = Summary(70.0, 0.1, 20), Summary(70.6, 0.1, 20)
    assert judge_level(own, published, 0.3).verdict == "different"
    assert judge_level(own, published, 2.0).verdict == "different, but by less than the margin"


def test_a_judgement_is_symmetric_in_sign() -> None:
    for margin in (0.5, 3, 5):
        mirrored = judge_level(Summary(-73.0, 1.5, 10), Summary(-74.37, 1.64, 3), margin)
        level = judge_level(OWN, PUBLISHED, margin)
        assert mirrored.verdict == level.verdict
        assert mirrored.smallest_margin == pytest.approx(level.smallest_margin)
        assert mirrored.difference.low == pytest.approx(-level.difference.high)


def test_a_deviation_of_zero_counts_and_two_of_them_are_refused() -> None:
    assert welch(OWN, Summary(74.37, 0.0, 3)).df == pytest.approx(9)
    assert welch(OWN, Summary(74.37, 0.0, 3)).standard_error == pytest.approx(1.5 / math.sqrt(10))
    with pytest.raises(ValueError, match="above 0 on one side"):
        welch(Summary(73.0, 0.0, 10), Summary(74.37, 0.0, 3))


@pytest.mark.parametrize("published", [Summary(74.37, None, 3), Summary(74.37, 1.0, 1), Summary(74.37, None, 1)])
def test_welch_without_a_deviation_is_refused(published: Summary) -> None:
    with pytest.raises(ValueError, match="Expected a standard deviation of two runs or more"):
        welch(OWN, published)


def test_a_lost_deviation_is_taken_to_be_ours_and_said_so() -> None:
    lost = Summary(74.37, None, 3)
    difference = with_our_spread(OWN, lost)
    assert difference.high - difference.value == pytest.approx(2.23, abs=0.005)
    assert difference.df == 9
    level = judge_level(OWN, lost, 5)
    assert level.assumption == "assumes that the published runs vary like ours"
    assert math.isnan(level.new_mean)
    single = judge_level(OWN, Summary(74.37, None, None), 5)
    assert single.difference.standard_error == pytest.approx(1.5 * math.sqrt(1 + 1 / 10))
    assert single.assumption.endswith("and were a single one")


@pytest.mark.parametrize("own", [Summary(73.0, None, 1), Summary(73.0, 0.0, 5)])
def test_without_any_spread_there_is_no_judgement(own: Summary) -> None:
    with pytest.raises(ValueError, match="Expected two runs of our own"):
        judge_level(own, Summary(74.37, None, 3), 5)


def test_one_run_of_our_own_is_no_judgement_either() -> None:
    with pytest.raises(ValueError, match="Expected two runs of our own"):
        judge_level(Summary(73.0, None, 1), PUBLISHED, 5)


@pytest.mark.parametrize(("draws", "expected"), [(1, 0.0), (2, 0.564), (4, 1.029), (5, 1.163), (8, 1.424)])
def test_the_best_of_equal_settings(draws: int, expected: float) -> None:
    assert expected_largest(draws) == pytest.approx(expected, abs=6e-4)


def test_selection_bias_by_hand() -> None:
    assert selection_bias(4, 1.64, 3) == pytest.approx(0.97, abs=0.006)
    assert selection_bias(8, 1.64, 3) == pytest.approx(1.35, abs=0.006)
    assert expected_largest(8) - expected_largest(4) == pytest.approx(0.39, abs=0.006)


def test_mean_gains_of_the_paper_by_hand() -> None:
    from finetune_bench.papers.published import load_paper

    paper = load_paper("hype")

    def gain(model: str, method: str) -> Estimate:
        pairs = []
        for task in ("stsb", "cola", "mrpc", "rte"):
            better, other = paper.find(1, model, method, task), paper.find(1, model, "Vanilla", task)
            assert better is not None and other is not None
            pairs.append((Summary(better.mean, better.sd, 3), Summary(other.mean, other.sd, 3)))
        return mean_gain(pairs)

    bert = gain("bert-large-cased", "HyPe-N")
    assert (bert.value, bert.standard_error, bert.df) == pytest.approx((1.60, 0.596, 10.4), abs=0.05)
    assert (bert.low, bert.high) == pytest.approx((0.28, 2.92), abs=0.02)
    roberta = gain("roberta-large", "HyPe-U")
    assert (roberta.value, roberta.standard_error, roberta.df) == pytest.approx((0.89, 0.376, 4.0), abs=0.05)
    assert (roberta.low, roberta.high) == pytest.approx((-0.15, 1.93), abs=0.02)


def test_a_mean_gain_without_a_deviation_has_no_interval() -> None:
    gain = mean_gain([(Summary(2.0, None, 3), Summary(1.0, 0.5, 3))])
    assert gain.value == 1.0
    assert math.isnan(gain.low)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([1.0, 1.2, 0.9, 1.1], 1.0, "supported"),
        ([-1.0, -1.2, -0.9, -1.1], 1.0, "contradicted"),
        ([0.1, -0.1, 0.05, -0.02], 1.0, "no practical effect"),
        ([3.0, -3.0, 2.0, -1.0], 1.0, "undecided"),
        ([1.0], 1.0, "undecided"),
        ([1.0, 1.0, 1.0], 1.0, "undecided"),  # no spread proves nothing
    ],
)
def test_signs(differences: list[float], margin: float, verdict: str) -> None:
    assert judge_sign(t_interval(differences), margin) == verdict


def test_sizes() -> None:
    gain = t_interval([1.5, 1.6, 1.7, 1.6])
    theirs = Estimate(1.6, 0.28, 2.92, 3, 10.4, 0.596)
    assert judge_size(gain, theirs, 1.0) == "as claimed"
    assert judge_size(t_interval([0.0, 0.1, -0.1, 0.05]), theirs, 1.0) == "smaller"
    assert judge_size(t_interval([4.0, 4.1, 3.9, 4.05]), theirs, 1.0) == "larger"
    assert judge_size(t_interval([0.0, 3.0, -3.0, 2.0]), theirs, 1.0) == "undecided"
    assert judge_size(t_interval([0.5, 0.6, 0.4, 0.5]), Estimate(1.6), 0.5) == "smaller"
    assert judge_size(t_interval([1.0]), theirs, 1.0) == "undecided"


def test_whole_counts() -> None:
    assert whole_counts(33.03, 1420, 1) == [469]
    assert whole_counts(33.03, 148, 3) == []
    assert whole_counts(34.45, 148, 3) == [153]
    assert whole_counts(48.56, 81, 3) == [118]
