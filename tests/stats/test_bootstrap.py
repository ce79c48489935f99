"""The multi-bootstrap: weighted scores are scores of the resample, and intervals are seeded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as reference

from finetune_bench.metrics import METRICS, compute
from finetune_bench.stats.bootstrap import RESAMPLED_METRICS, multi_bootstrap, weighted_scores

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 2, 60).astype(float)
CLASSES = np.where(RNG.random((3, 60)) < 0.75, LABELS, 1 - LABELS)
TARGETS = RNG.normal(size=60)
VALUES = TARGETS + RNG.normal(size=(3, 60))
COUNTS = RNG.multinomial(60, np.full(60, 1 / 60), size=4).astype(float)
# The rare class is in few resamples, and one that occurs nowhere is predicted.
THREE_LABELS = np.where(np.arange(60) < 2, 2.0, LABELS)
THREE_CLASSES = np.where(RNG.random((3, 60)) < 0.6, THREE_LABELS, RNG.integers(0, 4, (3, 60)))


@pytest.mark.parametrize("metric", [name for name in RESAMPLED_METRICS if name != "spearman" and "_sp" not in name])
def test_a_weighted_score_is_that_of_the_resample(metric: str) -> None:
    """Spearman ranks the whole sample, see below."""
    predictions, labels = CLASSES, LABELS
    if METRICS[metric].kind == "regression":
        predictions, labels = VALUES, TARGETS
    elif not METRICS[metric].binary:
        predictions, labels = THREE_CLASSES, THREE_LABELS
    scores = weighted_scores(metric, predictions, labels, COUNTS)
    for run, draw in np.ndindex(3, 4):
        drawn = np.repeat(np.arange(60), COUNTS[draw].astype(int))
        assert scores[run, draw] == pytest.approx(compute(metric, predictions[run, drawn], labels[drawn]))


def test_every_metric_is_resampled_or_known_not_to_be() -> None:
    assert set(METRICS) - set(RESAMPLED_METRICS) == {"auc"}


def test_matthews_of_three_classes() -> None:
    labels = RNG.integers(0, 3, 80).astype(float)
    predicted = np.where(RNG.random((1, 80)) < 0.6, labels, RNG.integers(0, 3, 80))
    found = weighted_scores("matthews", predicted, labels, np.ones((1, 80)))
    assert found[0, 0] == pytest.approx(reference.matthews_corrcoef(labels, predicted[0]))


def test_weighted_correlations() -> None:
    found = weighted_scores("pearson", VALUES, TARGETS, COUNTS)
    for run, draw in np.ndindex(3, 4):
        drawn = np.repeat(np.arange(60), COUNTS[draw].astype(int))
        assert found[run, draw] == pytest.approx(np.corrcoef(VALUES[run, drawn], TARGETS[drawn])[0, 1])
    whole = np.ones((1, 60))
    assert weighted_scores("spearman", VALUES, TARGETS, whole)[0, 0] == pytest.approx(
        scipy_stats.spearmanr(VALUES[0], TARGETS).statistic
    )
    both = [weighted_scores(name, VALUES, TARGETS, whole) for name in ("pearson", "spearman", "pearson_spearman")]
    assert both[2] == pytest.approx((both[0] + both[1]) / 2)


@pytest.mark.parametrize("metric", RESAMPLED_METRICS)
def test_one_prediction_for_all_scores_nothing_odd(metric: str) -> None:
    found = weighted_scores(metric, np.zeros((1, 60)), LABELS, COUNTS)
    assert np.isfinite(found).all()
    undefined = ("f1", "precision", "recall", "matthews", "pearson", "spearman", "pearson_spearman")
    if metric in undefined:
        assert (found == 0).all()


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected one of accuracy, f1, .*; got 'bleu'"):
        weighted_scores("bleu", CLASSES, LABELS, COUNTS)


def test_same_seed_same_interval_other_seed_other_interval() -> None:
    own = np.where(RNG.random((5, 60)) < 0.9, LABELS, 1 - LABELS)
    other = np.where(RNG.random((5, 60)) < 0.7, LABELS, 1 - LABELS)
    first, again = (multi_bootstrap("accuracy", own, other, LABELS, resamples=200, seed=3) for _ in range(2))
    assert first == again
    moved = multi_bootstrap("accuracy", own, other, LABELS, resamples=200, seed=4)
    assert moved.value == first.value
    assert (moved.low, moved.high) != (first.low, first.high)
    assert first.value == pytest.approx(100 * ((own == LABELS).mean() - (other == LABELS).mean()))
    assert first.low < first.value < first.high


def test_few_seeds_have_no_interval() -> None:
    found = multi_bootstrap("accuracy", CLASSES, CLASSES[::-1], LABELS)
    assert found.n == 3
    assert math.isnan(found.low)


def test_a_run_against_itself_is_zero() -> None:
    own = np.tile(CLASSES, (2, 1))
    found = multi_bootstrap("matthews", own, own, LABELS, resamples=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.separated
