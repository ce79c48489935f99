"""Seeds and examples resampled together: the multi-bootstrap, paired (Sellam et al., ICLR 2022).

It answers questions (a) and (c) at once: how far a difference may move with new seeds and new examples. Examples are
drawn as counts per example, so that a score of a resample is a weighted score, and a thousand are matrix products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_bench.stats.estimates import CONFIDENCE, Estimate

SEEDS_NEEDED = 5  # a percentile interval of fewer seeds covers far less than it promises
RESAMPLES = 1000
RESAMPLED_METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman")


def multi_bootstrap(
    metric: str,
    own: ArrayLike,
    reference: ArrayLike,
    labels: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Difference of two methods on one task, with a percentile interval over seeds × examples.

    Args:
        metric: one of `RESAMPLED_METRICS`.
        own, reference: (seeds, examples) predicted classes, or numbers; paired by seed.
        labels: (examples,).
        resamples: of both seeds and examples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        In points; n = seeds; `low` and `high` NaN below five seeds.
    """
    predictions = np.stack([np.asarray(own, dtype=np.float64), np.asarray(reference, dtype=np.float64)])
    truth = np.asarray(labels, dtype=np.float64)
    _, seeds, examples = predictions.shape
    whole = weighted_scores(metric, predictions.reshape(-1, examples), truth, np.ones((1, examples)))
    value = 100 * float((whole[:seeds] - whole[seeds:]).mean())
    if seeds < SEEDS_NEEDED:
        return Estimate(value, n=seeds)
    draws = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for start in range(0, resamples, 100):  # in blocks, so that memory stays small
        size = min(100, resamples - start)
        counts = draws.multinomial(examples, np.full(examples, 1 / examples), size=size).astype(np.float64)
        scores = weighted_scores(metric, predictions.reshape(-1, examples), truth, counts).reshape(2, seeds, size)
        chosen = draws.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).T / seeds
        drawn[start : start + size] = 100 * ((scores[0] - scores[1]) * chosen).sum(axis=0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), seeds, standard_error=float(drawn.std(ddof=1)))


def weighted_scores(
    metric: str, predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scores of runs on resamples of the examples.

    Spearman's correlation ranks the examples as they were observed, not within each resample: exact for the whole
    sample, close to it for a resample.

    Args:
        predictions: (runs, examples).
        labels: (examples,).
        counts: (resamples, examples), how often each example was drawn.

    Returns:
        (runs, resamples), as fractions.

    Raises:
        ValueError: an unknown metric.
    """
    if metric == "accuracy":
        return np.asarray((predictions == labels) @ counts.T / counts.sum(axis=1))
    if metric == "f1":
        true = ((predictions == 1) & (labels == 1)) @ counts.T
        called = (predictions == 1) @ counts.T + ((labels == 1) * counts).sum(axis=1)
        return np.asarray(np.divide(2 * true, called, out=np.zeros_like(true), where=called > 0))
    if metric == "matthews":
        return _matthews(predictions, labels, counts)
    if metric == "pearson":
        return _correlation(predictions, labels, counts)
    if metric == "spearman":
        return _correlation(_ranks(predictions), _ranks(labels[None])[0], counts)
    if metric == "pearson_spearman":
        both = [weighted_scores(name, predictions, labels, counts) for name in ("pearson", "spearman")]
        return np.asarray((both[0] + both[1]) / 2)
    raise ValueError(f"Expected one of {', '.join(RESAMPLED_METRICS)}; got '{metric}'.")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=1))


def _correlation(
    predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted Pearson correlation; 0 where predictions or labels don't vary."""
    total = counts.sum(axis=1)
    x = predictions - predictions.mean(axis=1, keepdims=True)  # centred first: sums of squares cancel otherwise
    y = labels - labels.mean()
    mean_x, mean_y = x @ counts.T / total, counts @ y / total
    covariance = (x * y) @ counts.T / total - mean_x * mean_y
    variance_x = x**2 @ counts.T / total - mean_x**2
    variance_y = counts @ y**2 / total - mean_y**2
    scale = np.sqrt(np.maximum(variance_x, 0) * np.maximum(variance_y, 0))
    return np.asarray(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12))


def _matthews(
    predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 where it is undefined."""
    total = counts.sum(axis=1)
    agreed = (predictions == labels) @ counts.T
    cross = np.zeros_like(agreed)
    own = np.zeros_like(agreed)
    truth = np.zeros(len(total))
    for value in np.union1d(np.unique(predictions), np.unique(labels)):
        called, there = (predictions == value) @ counts.T, counts @ (labels == value)
        cross, own, truth = cross + called * there, own + called**2, truth + there**2
    scale = np.sqrt((total**2 - own) * (total**2 - truth))
    return np.asarray(np.divide(agreed * total - cross, scale, out=np.zeros_like(cross), where=scale > 0))
