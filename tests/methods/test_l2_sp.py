from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_bench.methods.l2_sp import L2SP, squared_distance
from finetune_bench.methods.prior_decay import PriorDecay
from finetune_bench.methods.rdrop import RDrop
from finetune_bench.model.dropout import Dropout
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer
from finetune_bench.training.run import TrainingStep
from tests.tiny_run import tiny_run


def test_hand_computed_numbers() -> None:
    weights = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    distance = squared_distance(weights, [torch.tensor([0.0, 4.0]), None])
    assert float(distance.detach()) == 1 + 4 + 9
    first, second = torch.autograd.grad(0.5 * distance, weights)
    assert first.tolist() == [1.0, -2.0]
    assert second.tolist() == [[3.0]]


@pytest.mark.parametrize("stack", ["alone", "rdrop+l2_sp", "l2_sp+rdrop"])
def test_gradient_is_alpha_times_the_distance_once(stack: str) -> None:
    method, rdrop = L2SP(alpha=0.3, beta=0.7), RDrop()
    methods = {"alone": [method], "rdrop+l2_sp": [rdrop, method], "l2_sp+rdrop": [method, rdrop]}[stack]
    run = tiny_run(*methods, dropout=Dropout.ALL_OFF)
    run.method.optimizer(make_optimizer(run), run)
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(0.25)
    run.model.train()
    step = TrainingStep(run, next(run.batches("test")))
    weights = list(run.params.values())
    got = run.grad(step.objective().loss, weights)
    plain = run.grad(run.loss(step.batch), weights)
    for name, with_penalty, without in zip(run.params, got, plain, strict=True):
        in_body = name.startswith("bert.")
        expected = 0.3 * (run.params[name] - run.pretrained[name]) if in_body else 0.7 * run.params[name]
        torch.testing.assert_close(with_penalty - without, expected.detach(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "spared"), [(L2SP(), set()), (L2SP(alpha=0.0), {"bert."}), (L2SP(beta=0.0), {"classifier"})]
)
def test_what_is_penalised_does_not_decay_to_zero(method: L2SP, spared: set[str]) -> None:
    run = tiny_run(weight_decay=0.1)
    optimizer = method.optimizer(make_optimizer(run), run)
    decay = {weight: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    decaying = {name for name, weight in run.params.items() if decay[weight] > 0}
    assert decaying == {n for n in run.params if n not in run.undecayed and n.startswith(tuple(spared) or "none")}


def test_accumulation_counts_the_penalty_once() -> None:
    recipe = replace(toys.RECIPE, adam_eps=1e-2)
    method = L2SP(alpha=1.0, beta=1.0, dropout=Dropout.ALL_OFF)
    whole, parts = (toys.toy_train(method, recipe=replace(recipe, accumulation=n))[1].steps for n in (1, 4))
    assert whole["l2_sp_penalty"] == pytest.approx(parts["l2_sp_penalty"], rel=1e-5)


def test_two_pulls_are_refused() -> None:
    for stack in ([L2SP(), PriorDecay()], [PriorDecay(), L2SP()]):
        assert "both decide about the pull" in str(toys.unsupported(stack))
