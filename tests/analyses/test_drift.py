"""Drift: the values worked out by hand, and CKA by its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from finetune_bench.analyses.drift import distance, groups, hsic, linear_cka, unbiased_cka
from finetune_bench.testing.toys import ARCHITECTURES
from tests.tiny_run import tiny_model


def test_the_distance_that_was_worked_out_by_hand() -> None:
    moved, relative, rms = distance([(torch.tensor([3.0, 0]), torch.tensor([3.0, 4]))])
    assert (moved, relative, rms) == (4, pytest.approx(0.8), pytest.approx(4 / math.sqrt(2)))
    apart = [(torch.tensor([3.0]), torch.tensor([3.0])), (torch.tensor([0.0]), torch.tensor([4.0]))]
    assert distance(apart)[:2] == (4, pytest.approx(0.8))
    assert math.isnan(distance([(torch.ones(2), torch.zeros(2))])[1])


def test_sums_are_in_float64() -> None:
    """In float32 the square of 1e-30 is 0."""
    assert distance([(torch.full((4,), 1e-30), torch.zeros(4))])[0] == pytest.approx(2e-30)


def test_the_similarities_that_were_worked_out_by_hand() -> None:
    x, y = np.array([[1.0], [2], [3]]), np.array([[1.0], [3], [2]])
    assert linear_cka(x, y) == pytest.approx(0.25)
    plane = np.array([[1.0, 0], [0, 1], [-1, -1]])
    assert linear_cka(plane, np.array([[1.0], [0], [-1]])) == pytest.approx(5 / (math.sqrt(10) * 2), abs=1e-9)
    assert 5 / (math.sqrt(10) * 2) == pytest.approx(0.790569, abs=5e-7)


def test_rotations_scales_and_shifts_change_nothing() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 5))
    rotation, _ = np.linalg.qr(random.normal(size=(5, 5)))
    for cka in (linear_cka, unbiased_cka):
        assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1)


def test_the_unbiased_estimator_is_the_mean_over_quadruples() -> None:
    """Song et al. (2012): HSIC₁ is the U-statistic of four different examples."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(6, 3)), random.normal(size=(6, 2))
    k, m = x @ x.T, y @ y.T
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert hsic(k, m) == pytest.approx(float(np.mean(terms)))


def test_independent_features_are_alike_by_the_biased_estimator_only() -> None:
    random = np.random.default_rng(2)
    pairs = [(random.normal(size=(30, 100)), random.normal(size=(30, 100))) for _ in range(20)]
    assert np.mean([linear_cka(x, y) for x, y in pairs]) > 0.7
    assert abs(np.mean([unbiased_cka(x, y) for x, y in pairs])) < 0.05


def test_constant_features_and_too_few_texts_are_undefined() -> None:
    x = np.random.default_rng(3).normal(size=(10, 2))
    assert math.isnan(unbiased_cka(x, np.ones((10, 3))))
    assert math.isnan(linear_cka(np.ones((10, 3)), x))
    assert math.isnan(unbiased_cka(x[:3], x[:3]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_in_one_group(architecture: str) -> None:
    model = tiny_model(architecture)
    named = groups(model)
    assert named.keys() == dict(model.named_parameters()).keys()
    assert {"embeddings", "head"} <= set(named.values())
    in_layers = {group for group in named.values() if group.startswith("layer ")}
    assert in_layers == ({"layer 2"} if architecture == "albert" else {"layer 1", "layer 2"})
