from __future__ import annotations

import pytest
import torch

from finetune_bench.method.stack import Stack
from finetune_bench.methods.layerwise_lr_decay import LayerwiseLRDecay
from finetune_bench.methods.prior_decay import PriorDecay, pull_weight
from finetune_bench.training.loop import make_optimizer
from tests.tiny_run import tiny_run


def test_hand_computed_numbers() -> None:
    weight = torch.tensor([1.0, -2.0, 0.5])
    pull_weight(weight, torch.tensor([0.0, 2.0, 0.5]), 0.25)
    assert weight.tolist() == [0.75, -1.0, 0.5]
    pull_weight(weight, None, 0.5)
    assert weight.tolist() == [0.375, -0.5, 0.25]


@pytest.mark.parametrize("order", ["left", "right"])
def test_without_a_gradient_the_distance_contracts_by_exactly_its_factor(order: str) -> None:
    run = tiny_run(lr=0.5, weight_decay=0.1)
    methods = [PriorDecay(decay=0.5), LayerwiseLRDecay(decay=0.5)]
    optimizer = Stack(methods if order == "left" else methods[::-1]).optimizer(make_optimizer(run), run)
    anchors = {name: torch.zeros_like(weight) for name, weight in run.params.items()}
    with torch.no_grad():
        for name, weight in run.params.items():
            run.pretrained[name].copy_(anchors[name].fill_(2.0))
            weight.fill_(6.0)
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in run.params.items():
        if name in run.undecayed:
            expected = 6.0
        elif name == "classifier.weight":
            expected = 6.0 * (1 - 0.25)  # to zero
        else:
            power = 0 if "pooler" in name else 1 if ".layer.1." in name else 2 if ".layer.0." in name else 3
            expected = 2.0 + 4.0 * (1 - 0.25 * 0.5**power)
        assert bool((weight == expected).all()), name


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_a_step_that_overflows_pulls_nothing(overflow: float) -> None:
    """As the scaler of fp16 training tells a fused optimiser."""
    run = tiny_run(lr=0.5)
    optimizer = PriorDecay(decay=0.5).optimizer(make_optimizer(run), run)
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(4.0)
            weight.grad = torch.zeros_like(weight)
    optimizer.found_inf = torch.tensor(overflow)  # type: ignore[attr-defined]
    optimizer.step()
    weight, anchor = (source["bert.pooler.dense.weight"].detach() for source in (run.params, run.pretrained))
    torch.testing.assert_close(weight - anchor, torch.full_like(weight, 4.0 if overflow else 3.0))


def test_the_recipes_decay_is_off_for_the_same_tensors() -> None:
    run = tiny_run(weight_decay=0.1)
    optimizer = PriorDecay().optimizer(make_optimizer(run), run)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
