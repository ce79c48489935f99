"""Calibration, by the values that were worked out by hand and by small computations of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_bench.analyses import calibration
from finetune_bench.analyses.calibration import (
    best_temperature,
    bins_of,
    brier_score,
    classwise_error,
    equal_mass_error,
    error_if_calibrated,
    expected_calibration_error,
    line_of,
    measured,
    negative_log_likelihood,
)

FIRST = np.array([0.90, 0.85, 0.62, 0.63])  # probability of class 0
PROBABILITIES = np.stack([FIRST, 1 - FIRST], axis=1)
LABELS = np.array([0, 1, 0, 1])
LOGITS = np.log(PROBABILITIES)


def slow_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """The definition, bin by bin."""
    total = 0.0
    for index in range(15):
        inside = [i for i, c in enumerate(confidence) if index / 15 < c - 1e-12 <= (index + 1) / 15]
        if inside:
            total += len(inside) / len(confidence) * abs(hits[inside].mean() - confidence[inside].mean())
    return total


def test_the_values_that_were_worked_out_by_hand() -> None:
    hits = (PROBABILITIES.argmax(axis=1) == LABELS).astype(float)
    assert expected_calibration_error(PROBABILITIES.max(axis=1), hits) == pytest.approx(0.300)
    assert pytest.approx(0.300) == 0.025 + 0.2125 + 0.0625
    assert negative_log_likelihood(LOGITS, LABELS) == pytest.approx(0.868692, abs=5e-7)
    assert brier_score(PROBABILITIES, LABELS) == pytest.approx(0.636900)
    assert classwise_error(PROBABILITIES, LABELS) == pytest.approx(0.300)
    numbers = measured(LOGITS, LABELS)
    assert (numbers["ECE"], numbers["classwise ECE"]) == (pytest.approx(0.3), pytest.approx(0.3))
    assert numbers["ECE excess"] == pytest.approx(0.3 - numbers["ECE if calibrated"])


@pytest.mark.parametrize("k", range(1, 16))
def test_a_boundary_belongs_to_the_bin_below_it(k: int) -> None:
    """.2, .4, .6 and .8 are boundaries that float32 and float64 round to different sides."""
    values = [k / 15, float(np.float32(k / 15)) if k % 3 else round(k / 15, 12)]
    assert bins_of(np.array(values[:1])).tolist() == [k - 1]
    if k % 3 == 0:
        assert bins_of(np.array(values)).tolist() == [k - 1, k - 1]
        assert bins_of(np.array([1 - (1 - k / 15)])).tolist() == [k - 1]
    assert bins_of(np.array([k / 15 + 1e-6])).tolist() == [min(k, 14)]


def test_zero_lies_in_the_first_bin() -> None:
    assert bins_of(np.array([0.0, 1e-300, 1.0])).tolist() == [0, 0, 14]


def test_the_error_is_that_of_its_definition() -> None:
    random = np.random.default_rng(3)
    confidence = random.uniform(0.3, 1, 500)
    hits = (random.random(500) < confidence**2).astype(float)
    assert expected_calibration_error(confidence, hits) == pytest.approx(slow_error(confidence, hits), rel=1e-12)


def test_a_small_set_of_a_calibrated_model_shows_an_error_all_the_same() -> None:
    """The mean over redraws, against redraws one by one with another generator."""
    random = np.random.default_rng(4)
    confidence = random.uniform(0.5, 1, 60)
    slow = [slow_error(confidence, (random.random(60) < confidence).astype(float)) for _ in range(300)]
    assert error_if_calibrated(confidence) == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / math.sqrt(300))
    assert error_if_calibrated(confidence) == error_if_calibrated(confidence)
    assert error_if_calibrated(np.tile(confidence, 50)) < 0.25 * error_if_calibrated(confidence)


def test_redraws_in_several_chunks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = np.linspace(0.5, 1, 40)
    whole = error_if_calibrated(confidence)
    monkeypatch.setattr(calibration, "_CHUNK", 40 * 7)
    assert error_if_calibrated(confidence) == pytest.approx(whole, rel=1e-12)


def test_a_certain_model_has_no_error_by_chance() -> None:
    assert error_if_calibrated(np.ones(10)) == 0


def test_bins_of_equal_mass_keep_equal_confidences_together() -> None:
    confidence = np.full(100, 0.7)
    hits = np.r_[np.ones(70), np.zeros(30)]
    assert equal_mass_error(confidence, hits) == pytest.approx(0, abs=1e-12)


def test_the_temperature_undoes_a_scale() -> None:
    random = np.random.default_rng(5)
    logits = random.normal(size=(4000, 3)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([random.choice(3, p=share) for share in shares])
    found = best_temperature(logits * 2.5, labels)
    assert found == pytest.approx(2.5, rel=0.1)
    assert negative_log_likelihood(logits * 2.5, labels, found) < negative_log_likelihood(logits * 2.5, labels)
    assert ((logits * 2.5 / found).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_huge_logits_overflow_nothing() -> None:
    numbers = measured(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]))
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["NLL"] == pytest.approx(1e4)


def test_a_regression_has_a_line() -> None:
    x = np.array([[1.0], [2.0], [4.0]])
    assert line_of(x, 3 * x[:, 0] - 1) == {"slope": pytest.approx(3), "intercept": pytest.approx(-1)}
    assert math.isnan(line_of(np.ones((3, 1)), np.arange(3.0))["slope"])
