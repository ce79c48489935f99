"""`calibration` tells how far the probabilities of a classifier can be believed, from the predictions of every run.

All of it is computed in float64 from the logits. Confidence is the largest probability; the expected calibration error
(ECE) is the mean over bins of |accuracy − confidence|, weighted by the bins' shares, with 15 bins (lo, hi] of equal
width. Small sets raise it: the ECE that a perfectly calibrated model of these confidences would show stands beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from finetune_bench.analysis import Analysis, Better, Findings, Trained
from finetune_bench.task import HELD_OUT

BINS = 15
REDRAWS = 1000
_SEED = 15
_CHUNK = 2**22  # numbers that are drawn at once
# So little a probability may lie above the boundary of its bin by rounding: k/15 is no binary fraction.
_ROUNDING = 1e-12


def bins_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the bin, from 0 to 14, of each probability; the bins are (lo, hi], and 0 lies in the first."""
    bins = np.ceil(BINS * (np.asarray(probabilities, dtype=np.float64) - _ROUNDING)).astype(np.int64) - 1
    return np.clip(bins, 0, BINS - 1)


def expected_calibration_error(confidence: np.ndarray, hits: np.ndarray, bins: np.ndarray | None = None) -> float:
    """Return Σ_b (n_b/N)·|share of hits − mean confidence|; each argument is (examples,).

    Args:
        confidence: the probability that was predicted.
        hits: whether it came true.
        bins: the bin of each example; None for those of equal width.
    """
    bins = bins_of(confidence) if bins is None else bins
    gaps = np.bincount(bins, weights=hits - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def classwise_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the calibration error of that class's probability, (examples, classes)."""
    classes = probabilities.shape[1]
    errors = [expected_calibration_error(probabilities[:, k], (labels == k).astype(float)) for k in range(classes)]
    return float(np.mean(errors))


def equal_mass_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """Return the ECE with 15 bins of equally many examples, those of equal confidence in the same bin."""
    ranks = np.searchsorted(np.sort(confidence), confidence, side="left")
    return expected_calibration_error(confidence, hits, ranks * BINS // len(confidence))


def error_if_calibrated(confidence: np.ndarray) -> float:
    """Return the mean ECE of 1,000 redraws of the outcomes from the model's own confidence."""
    order = np.argsort(bins_of(confidence), kind="stable")
    sorted_confidence = confidence[order]
    bins = bins_of(sorted_confidence)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    expected = np.add.reduceat(sorted_confidence, starts)
    random = np.random.default_rng(_SEED)
    per_chunk = max(1, _CHUNK // len(confidence))
    total = 0.0
    for begin in range(0, REDRAWS, per_chunk):
        hits = random.random((min(per_chunk, REDRAWS - begin), len(confidence))) < sorted_confidence
        counts = np.add.reduceat(hits, starts, axis=1, dtype=np.int64)
        total += float(np.abs(counts - expected).sum())
    return total / (REDRAWS * len(confidence))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean of −log p of the true class, in nats, with the logits divided by a temperature."""
    logs = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of Σ_k (p_k − 1[y = k])², in [0, 2]."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean())


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in [e⁻³, e³] that makes the true labels likeliest."""
    found: Any = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t))),
        bounds=(-3.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def measured(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return every number of one split, from its logits (examples, classes) and labels (examples,)."""
    probabilities = np.exp(log_softmax(np.asarray(logits, dtype=np.float64), axis=1))
    confidence = probabilities.max(axis=1)
    hits = (probabilities.argmax(axis=1) == labels).astype(float)
    error, calibrated = expected_calibration_error(confidence, hits), error_if_calibrated(confidence)
    return {
        "NLL": negative_log_likelihood(logits, labels),
        "Brier": brier_score(probabilities, labels),
        "ECE": error,
        "ECE if calibrated": calibrated,
        "ECE excess": error - calibrated,
        "classwise ECE": classwise_error(probabilities, labels),
        "equal-mass ECE": equal_mass_error(confidence, hits),
    }


def line_of(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return slope and intercept of the least-squares line of a regression's labels on its predictions."""
    x, y = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (predictions, labels))
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else float("nan")
    return {"slope": slope, "intercept": float(y.mean()) - slope * float(x.mean())}


class Calibration(Analysis):
    """Measure how far a classifier's probabilities can be believed."""

    name = "calibration"
    title = "Calibration"
    needs_model = False
    about = (
        "NLL: mean negative log-likelihood in nats. Brier: from 0 to 2. ECE: expected calibration error in 15 bins of "
        "equal width; “if calibrated” is the ECE that a perfectly calibrated model of these confidences would show "
        "on a set of this size (1,000 redraws), and “excess” what goes beyond it. Lower is better. The "
        "temperature is fitted on held-out training examples, which only a search sets aside. Of a regression: slope "
        "and intercept of the labels on the predictions; 1 and 0 are calibrated."
    )

    def measure(self, trained: Trained) -> Findings:
        """Measure every evaluation split."""
        numbers: dict[str, float] = {}
        notes: list[str] = []
        labels = {name: split.labels.numpy() for name, split in trained.splits.items()}
        is_regression = trained.task.kind == "regression"
        for name, values in trained.predictions.items():
            of_split = line_of(values, labels[name]) if is_regression else measured(values, labels[name])
            numbers |= {f"{name}: {key}": value for key, value in of_split.items()}
        if is_regression:
            undefined = [key for key, value in numbers.items() if np.isnan(value)]
            notes += ["Slope and intercept are undefined where all predictions are equal."] if undefined else []
            return Findings(numbers=numbers, notes=notes)
        if HELD_OUT in trained.predictions:
            temperature = best_temperature(trained.predictions[HELD_OUT], labels[HELD_OUT])
            numbers["temperature"] = temperature
            for name in trained.predictions:
                if name != HELD_OUT:
                    scaled = np.asarray(trained.predictions[name], dtype=np.float64) / temperature
                    after = measured(scaled, labels[name])
                    numbers |= {f"{name}: {key} after scaling": after[key] for key in ("NLL", "ECE")}
        better: dict[str, Better] = {
            key: "lower" for key in numbers if key != "temperature" and not key.endswith(("if calibrated", "excess"))
        }
        return Findings(numbers=numbers, better=better, notes=notes)
