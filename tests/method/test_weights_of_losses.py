"""The weight of `inner` reaches the loss that comes back, and the backward passes that are run within it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from finetune_bench import registry, testing
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.functional import weigh
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import parameter
from tests.tiny_run import first_step, tiny_run

FreeLB = registry.method_class("freelb")


class Weighted(Method):
    """Multiplies the loss of what is to the right of it."""

    name = "weighted"
    factor: float = parameter(0.3, help="by what")
    as_tensor: bool = parameter(False, help="as a 0-dim tensor")

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        return inner(view, torch.tensor(self.factor) if self.as_tensor else self.factor)


class Halved(Method):
    """Runs the backward pass of the loss in two parts, the first of them early."""

    name = "halved"

    def passes(self, inner: Passes) -> Passes:
        return Passes(2 * inner.forwards, 2 * inner.backwards)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        early = step.backward(inner(view, weight=0.75).loss)
        last = inner(view, weight=0.25)
        return replace(last, loss=early + last.loss)


@pytest.mark.parametrize("weight", [0.3, 1 / 3, 1.0, 2.0, 0.0, torch.tensor(0.3)])
def test_the_loss_comes_multiplied(weight: float | Tensor) -> None:
    step = first_step(tiny_run(dropout=Dropout.ALL_OFF))
    plain, weighted = step.task_objective(View()), step.task_objective(View(), weight)
    assert float(weighted.loss.detach()) == pytest.approx(float(weight) * float(plain.loss.detach()))
    assert step.task_losses[0] == step.task_losses[1]  # the trace keeps the task's own loss


def test_shares_are_exact() -> None:
    """Seven shares of 1/7 are seven losses divided by 7, which a rounded factor would miss."""
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(weigh(loss, 1 / 7), loss / 7) for loss in losses)
    assert not all(torch.equal(loss * (1 / 7), loss / 7) for loss in losses)


def test_several_weights_of_one_loss_are_refused() -> None:
    with pytest.raises(FinetuneBenchError, match=r"a 0-dim tensor; a method gave a tensor of the shape \(8,\)"):
        first_step(tiny_run()).task_objective(View(), torch.ones(8))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("kind", testing.KINDS)
def test_early_backward_passes_are_weighted(kind: str, as_tensor: bool) -> None:
    """Weights of several outer methods are multiplied, also around methods that pass them on in parts."""

    def stack() -> list[Method]:
        return [registry.method_class("rdrop")(), Weighted(as_tensor=as_tensor), Halved(), FreeLB(steps=3)]

    testing.check_gradient(stack(), stack(), kind=kind)  # type: ignore[arg-type]


def test_an_early_part_by_hand() -> None:
    """0.3 of a loss of which three quarters are run early: the gradient is 0.3 times that of the plain loss."""
    run = tiny_run(Weighted(), Halved(), dropout=Dropout.ALL_OFF)
    step = first_step(run)
    plain = run.grad(run.loss(step.batch), list(run.params.values()))
    objective = step.objective()
    early = {name: weight.grad.clone() for name, weight in run.params.items() if weight.grad is not None}
    step.backward(objective.loss)
    for (name, weight), expected in zip(run.params.items(), plain, strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(early[name], 0.3 * 0.75 * expected, atol=1e-7, rtol=1e-4)
            torch.testing.assert_close(weight.grad, 0.3 * expected, atol=1e-7, rtol=1e-4)
    assert float(objective.loss.detach()) == pytest.approx(0.3 * float(run.loss(step.batch).detach()), rel=1e-5)


def test_a_weight_does_not_outlive_its_evaluation() -> None:
    """After an inner evaluation, and after one that raised, a method's own early pass has its own weight again."""

    class Failing(Method):
        name = "failing"

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            raise ValueError("on purpose")

    run = tiny_run(Weighted(), Failing())
    step = first_step(run)
    with pytest.raises(ValueError, match="on purpose"):
        step.objective()
    weight = next(iter(run.params.values()))
    step.backward((weight * 1.0).sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))
