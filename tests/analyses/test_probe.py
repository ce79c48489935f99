"""Probes: heads by hand and by another computation, layers apart and together, and the controls."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from finetune_bench import registry
from finetune_bench.analyses.probe import (
    PENALTIES,
    Probe,
    best_penalty,
    fit,
    fitted_scores,
    folds,
    predict,
    ridge,
    shuffled_order,
    train_heads,
)
from finetune_bench.analysis import Network, Trained, measured_before
from finetune_bench.errors import DataError, UnknownName, UsageError
from finetune_bench.task import Split, Task, TaskData
from finetune_bench.testing.toys import toy_task
from tests.analyses.test_transfer import Words
from tests.tiny_run import tiny_model


def test_the_ridge_that_was_worked_out_by_hand() -> None:
    x, y = np.array([[-1.0], [0], [1]]), np.array([-2.0, 0, 2])
    weights, intercept = ridge(x, y, 1.0)
    assert weights.tolist() == [pytest.approx(4 / 3)]
    assert intercept == pytest.approx(0)


def test_ridge_is_the_same_with_more_dimensions_than_examples() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 9)), random.normal(size=5) + 3
    weights, intercept = ridge(x, y, 0.5)
    centred = x - x.mean(axis=0)
    expected = np.linalg.inv(centred.T @ centred + 0.5 * np.eye(9)) @ centred.T @ (y - y.mean())
    assert weights == pytest.approx(expected)
    assert intercept == pytest.approx(y.mean() - x.mean(axis=0) @ expected)


def test_two_separable_points_per_class_are_told_apart() -> None:
    points = np.array([[3.0, 0], [4, 0], [0, 3], [0, 4], [-3, -3], [-4, -4]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    heads = train_heads(points[None], labels, 3, lr=0.1, epochs=50)
    assert (predict(heads, points[None])[0].argmax(axis=1) == labels).all()
    assert (fit(points, labels, 1e-4, 3)(points).argmax(axis=1) == labels).all()


@pytest.mark.parametrize("outputs", [1, 3])
def test_heads_of_all_layers_at_once_are_those_of_each_alone(outputs: int) -> None:
    random = np.random.default_rng(1)
    features = (random.normal(size=(3, 40, 5)) * np.array([1, 10, 0.1])[:, None, None]).astype(np.float32)
    labels = random.normal(size=40).astype(np.float32) if outputs == 1 else random.integers(0, 3, 40)
    together = train_heads(features, labels, outputs, lr=1e-2, epochs=3)
    for layer in range(3):
        alone = train_heads(features[layer : layer + 1], labels, outputs, lr=1e-2, epochs=3)
        assert together[layer] == pytest.approx(alone[0], abs=1e-6)


def test_equal_layers_have_equal_heads() -> None:
    random = np.random.default_rng(2)
    features = np.repeat(random.normal(size=(1, 30, 4)), 2, axis=0).astype(np.float32)
    first, second = train_heads(features, random.integers(0, 2, 30), 2, lr=1e-2, epochs=2)
    assert (first == second).all()


def test_the_fitted_head_minimises_the_penalised_loss() -> None:
    """Against a general minimiser of Σ −log p + λ/2·‖W‖²."""
    random = np.random.default_rng(3)
    x, y, penalty = random.normal(size=(60, 2)), random.integers(0, 3, 60), 2.0

    def loss(flat: np.ndarray) -> float:
        weights, bias = flat[:6].reshape(2, 3), flat[6:]
        logits = x @ weights + bias
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(60), y].sum() + penalty / 2 * (weights**2).sum())

    flat = minimize(loss, np.zeros(9)).x
    logits = x @ flat[:6].reshape(2, 3) + flat[6:]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert fit(x, y, penalty, 3)(x) == pytest.approx(shares, abs=1e-3)


def test_folds_have_every_class_and_one_class_alone_is_predicted() -> None:
    labels = np.array([0] * 12 + [1] * 5)
    fold = folds(labels, 2)
    assert all(set(labels[fold == index]) == {0, 1} for index in range(5))
    assert (fit(np.ones((3, 2)), np.array([1, 1, 1]), 1.0, 3)(np.ones((2, 2))).argmax(axis=1) == 1).all()


def test_noise_gets_the_largest_penalty_and_a_clear_line_a_small_one() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(100, 20))
    assert best_penalty(x, random.normal(size=100), 1) == PENALTIES[-1]
    assert best_penalty(x, x[:, 0] * 5, 1) <= 1e-2


def test_the_check_is_blind_to_scale_and_the_plain_probe_is_not() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(1, 200, 4)).astype(np.float32)
    labels = (x[0, :, 0] > 0).astype(np.int64)
    task = dataclasses.replace(toy_task("classification"), labels=("a", "b"), metrics=("accuracy",))
    small = x * np.float32(1e-3)
    assert fitted_scores(task, x[:, :100], labels[:100], x[:, 100:], labels[100:])[0] > 0.9
    assert fitted_scores(task, small[:, :100], labels[:100], small[:, 100:], labels[100:])[0] > 0.9
    plain, starved = (train_heads(f, labels, 2, lr=1e-3, epochs=3) for f in (x, small))
    apart = [np.ptp(f[0] @ heads[0, :-1]) for heads, f in ((plain, x), (starved, small))]
    assert apart[1] < apart[0] / 50


def test_the_shuffled_order_is_an_order_and_always_the_same() -> None:
    order = shuffled_order(["a"] * 50)
    assert sorted(order) == list(range(50))
    assert (order != np.arange(50)).any()
    assert (order == shuffled_order(["a"] * 50)).all()


@dataclass(frozen=True)
class Lengths(Task):
    """The class of a text is whether it is long, which the tiny model's first token tells."""

    def load(self, data_root: Path | None) -> TaskData:
        texts = ["x" * (1 + index % 40) for index in range(60)]
        split = Split(texts, None, [int(len(text) > 20) for text in texts])
        return TaskData(split.take(range(40)), {"validation": split.take(range(40, 60))})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    tasks = {name: Lengths(name, labels=("short", "long")) for name in ("lengths", "again")}
    monkeypatch.setitem(registry._added, "tasks", tasks)
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    networks = [
        Network(one, {}, torch.device("cpu"), lambda: torch.autocast("cpu", enabled=False)) for one in (model, other)
    ]
    return Trained(
        task=toy_task("classification"), data=TaskData(Split([], None, []), {}), splits={}, predictions={},
        checkpoint="tiny", checkpoint_name="tiny", tokenizer=Words(), max_length=8, data_root=None,
        network=networks[0], untouched=lambda: networks[1],
    )  # fmt: skip


@pytest.mark.slow
def test_a_model_is_probed_beside_its_controls(trained: Trained) -> None:
    findings = Probe(on="lengths+again", checked=20, lr=0.05, epochs=20).measure(trained)
    kinds = ["", ", shuffled labels", ", standardised", ", before training", ", standardised, before training"]
    assert set(findings.layers) == {f"{name}{kind}" for name in ("lengths", "again") for kind in kinds}
    assert all(len(curve) == 3 for curve in findings.layers.values())
    assert findings.layers["lengths"] == findings.layers["again"]
    assert findings.layers["lengths"][0] == pytest.approx(findings.numbers["lengths: last layer"], abs=1)
    change = findings.layers["lengths"][-1] - findings.layers["lengths, before training"][-1]
    assert findings.numbers["lengths: change"] == pytest.approx(change)
    assert "lengths, shuffled labels" not in findings.better
    without = Probe(on="lengths", checked=0, lr=0.05, epochs=20).measure(trained)
    assert set(without.layers) == {f"lengths{kind}" for kind in ("", ", shuffled labels", ", before training")}
    assert without.layers["lengths"] == findings.layers["lengths"]


def test_fewer_examples_are_taken_when_that_is_asked_for(trained: Trained) -> None:
    facts = Probe(on="lengths", train=10, checked=0).measure(trained).facts
    assert facts["lengths"]["train"] == 10


def test_bad_input_is_told_before_any_compute(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'mrpc'"):
        Probe(on="mrcp")
    with pytest.raises(UsageError, match="each once"):
        Probe(on="cola+cola")
    assert "no other task" in str(Probe(on="cola").unsupported(registry.task("cola")))
    assert Probe().unsupported(registry.task("cola")) is None
    with pytest.raises(DataError, match="nyu-mll/glue"):
        Probe(on="rte").check(registry.task("cola"), tmp_path, "tiny")


@pytest.mark.slow
def test_the_untouched_model_is_probed_once_for_all_runs_that_begin_with_it(trained: Trained) -> None:
    loaded: list[int] = []

    def untouched() -> Network:
        loaded.append(1)
        return trained.untouched()

    anew = Probe(on="lengths", checked=0).measure(trained)
    measured_before.clear()
    given = dataclasses.replace(trained, untouched=untouched, begins_with="the same model")
    for _ in range(2):
        again = Probe(on="lengths", checked=0).measure(given)
        assert (again.layers, again.numbers) == (anew.layers, anew.numbers)
    assert len(loaded) == 1
    Probe(on="lengths", checked=0, lr=0.5).measure(given)
    Probe(on="lengths", checked=0, train=10).measure(given)
    Probe(on="lengths", checked=20).measure(given)
    Probe(on="lengths+again", checked=0).measure(given)
    Probe(on="lengths", checked=0).measure(dataclasses.replace(given, begins_with="another"))
    assert len(loaded) == 6
