"""The paired multi-bootstrap resamples seeds and examples together (Sellam et al., ICLR 2022).

It answers questions (a) and (c) at once: how far a difference may move with new seeds and new examples. Examples are
drawn as counts per example, so that a score of a resample is a weighted score, and a thousand are matrix products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from finetune_bench.stats.estimates import CONFIDENCE, Estimate

# A percentile interval of fewer seeds covers far less than it promises.
SEEDS_NEEDED = 5
RESAMPLES = 1000
# Metrics of which resamples can be scored from predicted classes or numbers: all but the area under a curve, which
# takes logits, and those that name a class.
RESAMPLED_METRICS = (
    "accuracy",
    *(f"{name}{average}" for name in ("f1", "precision", "recall") for average in ("", "_macro", "_weighted")),
    "balanced_accuracy",
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",
    "neg_rmse",
    "neg_mae",
)


def multi_bootstrap(
    metric: str,
    predictions: ArrayLike,
    reference: ArrayLike,
    labels: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the difference of two methods on one task, with a percentile interval over seeds × examples.

    Args:
        metric: One of `RESAMPLED_METRICS`.
        predictions: (seeds, examples) classes or numbers that the method predicted.
        reference: (seeds, examples) those that the reference predicted; paired by seed.
        labels: (examples,).
        resamples: How often both seeds and examples are resampled.
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        The difference in points; n = seeds; `low` and `high` are NaN below five seeds.
    """
    both = np.stack([np.asarray(predictions, dtype=np.float64), np.asarray(reference, dtype=np.float64)])
    truth = np.asarray(labels, dtype=np.float64)
    _, seeds, examples = both.shape
    runs = both.reshape(-1, examples)
    whole = weighted_scores(metric, runs, truth, np.ones((1, examples)))
    value = 100 * float((whole[:seeds] - whole[seeds:]).mean())
    if seeds < SEEDS_NEEDED:
        return Estimate(value, n=seeds)
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    # In batches, so that memory stays small.
    for start in range(0, resamples, 100):
        size = min(100, resamples - start)
        counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=size).astype(np.float64)
        scores = weighted_scores(metric, runs, truth, counts).reshape(2, seeds, size)
        chosen = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).T / seeds
        drawn[start : start + size] = 100 * ((scores[0] - scores[1]) * chosen).sum(axis=0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), seeds, standard_error=float(drawn.std(ddof=1)))


def weighted_scores(
    metric: str, predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the scores of runs on resamples of the examples.

    Spearman's correlation ranks the examples as they were observed, not within each resample: exact for the whole
    sample, close to it for a resample.

    Args:
        metric: One of `RESAMPLED_METRICS`.
        predictions: (runs, examples).
        labels: (examples,).
        counts: (resamples, examples), how often each example was drawn.

    Returns:
        (runs, resamples) scores as fractions.

    Raises:
        ValueError: The metric is none of these.
    """
    if metric == "accuracy":
        return np.asarray((predictions == labels) @ counts.T / counts.sum(axis=1))
    if metric.startswith(("f1", "precision", "recall", "balanced")):
        return _of_classes(metric, predictions, labels, counts)
    if metric.startswith("neg_"):
        error = predictions - labels
        mean = (error**2 if metric == "neg_rmse" else np.abs(error)) @ counts.T / counts.sum(axis=1)
        return np.asarray(-np.sqrt(mean) if metric == "neg_rmse" else -mean)
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


def _of_classes(
    metric: str, predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return F1, precision or recall of class 1, or their mean over the classes of each resample.

    As in `metrics.compute`, what divides by nothing is 0; a macro mean is over the classes that occur or are predicted,
    balanced accuracy over those that occur, and a weighted mean weighs by how often a class occurs.
    """
    name, _, average = "recall_balanced".partition("_") if metric == "balanced_accuracy" else metric.partition("_")
    score, weight = np.zeros((len(predictions), len(counts))), np.zeros((len(predictions), len(counts)))
    for value in np.union1d(predictions, labels) if average else [1.0]:
        called, labelled = (predictions == value) @ counts.T, counts @ (labels == value)
        true = ((predictions == value) & (labels == value)) @ counts.T
        parts, whole = {
            "f1": (2 * true, called + labelled),
            "precision": (true, called),
            "recall": (true, np.broadcast_to(labelled, true.shape)),
        }[name]
        weights = {
            "": np.ones_like(true),
            "macro": 1.0 * (called + labelled > 0),
            "weighted": np.broadcast_to(labelled, true.shape),
            "balanced": np.broadcast_to(1.0 * (labelled > 0), true.shape),
        }[average]
        score += weights * np.divide(parts, whole, out=np.zeros_like(true), where=whole > 0)
        weight += weights
    return score / weight


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rankdata(values, axis=1))


def _correlation(
    predictions: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted Pearson correlation; 0 where predictions or labels don't vary."""
    total = counts.sum(axis=1)
    # Centred first, since sums of squares cancel otherwise.
    x = predictions - predictions.mean(axis=1, keepdims=True)
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
    """Return the Matthews correlation of any number of classes (Gorodkin 2004); 0 where it is undefined."""
    total = counts.sum(axis=1)
    agreed = (predictions == labels) @ counts.T
    cross = np.zeros_like(agreed)
    predicted = np.zeros_like(agreed)
    truth = np.zeros(len(total))
    for value in np.union1d(np.unique(predictions), np.unique(labels)):
        called, labelled = (predictions == value) @ counts.T, counts @ (labels == value)
        cross, predicted, truth = cross + called * labelled, predicted + called**2, truth + labelled**2
    scale = np.sqrt((total**2 - predicted) * (total**2 - truth))
    return np.asarray(np.divide(agreed * total - cross, scale, out=np.zeros_like(cross), where=scale > 0))
