from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.methods.child_tuning import ChildTuningD
from finetune_bench.methods.ema import EMA, scale_beta
from finetune_bench.methods.swa import SWA, counts
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from tests.tiny_run import tiny_run


def test_warm_up() -> None:
    assert [scale_beta(0.99, step, warmup=True) for step in (0, 8, 10_000)] == [0.1, 0.5, 0.99]
    assert scale_beta(0.99, 0, warmup=False) == 0.99


def walk(method: EMA | SWA, points: list[float], total: int | None = None) -> float:
    """The average of a weight that takes these values after each step, from 0 on."""
    run = tiny_run()
    run._total_steps = total or len(points)
    weight = run.params["classifier.bias"]
    with torch.no_grad():
        weight.zero_()
        method.setup(run)
        for point in points:
            weight.fill_(point)
            method.after_step(run)
    with method.evaluating(run):
        return float(weight.detach()[0])


def test_hand_computed_averages() -> None:
    assert walk(EMA(beta=0.5, warmup=False), [4.0, 8.0]) == 0.5 * 2.0 + 0.5 * 8.0
    assert walk(EMA(beta=0.99), [10.0, 0.0]) == pytest.approx(9.0 * 2 / 11)  # β 0.1, then 2/11
    assert walk(SWA(share=0.5), [1.0, 2.0, 3.0, 5.0]) == 4.0
    assert walk(SWA(share=1.0, every=2), [1.0, 2.0, 3.0, 6.0]) == 4.0
    assert walk(SWA(share=0.0), [1.0, 2.0]) == 2.0
    assert walk(SWA(share=0.5), [1.0], total=4) == 1.0  # nothing to average yet


def test_which_steps_count() -> None:
    assert [t for t in range(1, 13) if counts(t, 12, 0.5, 2)] == [8, 10, 12]
    assert [t for t in range(1, 13) if counts(t, 12, 0.0, 1)] == [12]
    assert [t for t in range(1, 13) if counts(t, 12, 1.0, 1)] == list(range(1, 13))


@pytest.mark.parametrize("method", [EMA(beta=0.9), SWA(share=1.0)], ids=lambda method: method.name)
def test_constant_weights_are_their_own_average_and_weights_come_back(method: EMA | SWA) -> None:
    run = tiny_run()
    method.setup(run)
    for _ in range(7):
        method.after_step(run)
    storage = {name: weight.data_ptr() for name, weight in run.params.items()}
    with method.evaluating(run):
        assert all(torch.equal(weight, run.pretrained[name]) for name, weight in run.params.items())
        assert {name: weight.data_ptr() for name, weight in run.params.items()} == storage
    run, stack = toys.toy_run(method)
    train(run)
    raw = {name: weight.detach().clone() for name, weight in run.params.items()}
    with pytest.raises(RuntimeError, match="inside"), stack.evaluating(run):
        assert any(not torch.equal(weight, raw[name]) for name, weight in run.params.items())
        raise RuntimeError("inside")
    assert all(torch.equal(weight, raw[name]) for name, weight in run.params.items())


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_the_run_beneath_is_vanillas(name: str) -> None:
    method: Method = registry.method_class(name)()
    run, result, predictions = toys.toy_train(method)
    twin, twin_trace, twin_predictions = toys.toy_train(Vanilla())
    assert toys.same(run, twin)
    assert np.array_equal(result.steps["loss"], twin_trace.steps["loss"])
    assert not np.array_equal(predictions, twin_predictions)


def test_conflicts_are_refused() -> None:
    assert "decide about the evaluated weights" in str(toys.unsupported([EMA(), SWA()]))
    assert "decide about the evaluated weights" in str(toys.unsupported([SWA(), EMA()]))
    for method in (EMA(), SWA()):
        assert "after the step" in str(toys.unsupported([method, ChildTuningD(strict=True)]))
        assert toys.unsupported([method, ChildTuningD()]) is None


@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("other", ["lora", "r4f"])
def test_weights_for_evaluation_are_made_from_the_average(average: str, other: str) -> None:
    """Left of such a method the average is what it starts from; right of it, it would undo its work."""
    left, right = registry.method_class(average), registry.method_class(other)
    assert f"write {average}+{other}" in str(toys.unsupported([right(), left()]))
    stacked, alone = toys.toy_train([left(), right()]), toys.toy_train([right()])
    assert toys.same(stacked[0], alone[0])
    assert not np.array_equal(stacked[2], alone[2])
