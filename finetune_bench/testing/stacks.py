"""These checks take a stack of methods: its gradient is that of its loss, and a pair trains in either order."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from finetune_bench.device import random_state_kept
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.stack import Stack
from finetune_bench.metrics import Kind
from finetune_bench.recipe import Recipe
from finetune_bench.testing.toys import CPU, same, shape, toy_run, toy_train, unsupported
from finetune_bench.training.loop import make_optimizer
from finetune_bench.training.run import TrainingStep

PAIR_RECIPE = Recipe(lr=1e-3, batch_size=8, steps=3, warmup=0.0)


class _DeclaredStep(TrainingStep):
    """A step whose early backward passes free no graph, so that the returned loss can be derived as a whole."""

    def backward(self, part: Tensor) -> Tensor:
        # A method that reads the gradient of an input needs it.
        part.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return part


def check_gradient(
    methods: list[Method],
    again: list[Method],
    architecture: str = "bert",
    kind: Kind = "classification",
    device: torch.device = CPU,
) -> None:
    """A stack's gradient, early backward passes and all, equals `autograd.grad` of the loss that it returns.

    Args:
        methods: the methods of the stack.
        again: fresh methods, equal to those.
        architecture: a name of `ARCHITECTURES`.
        kind: the kind of the toy task.
        device: the device to train on.
    """
    gradients: list[list[Tensor]] = []
    for stacked, maker in ((methods, TrainingStep), (again, _DeclaredStep)):
        run, stack = toy_run(stacked, architecture, kind, device=device)
        try:
            stack.setup(run)
            stack.optimizer(make_optimizer(run), run)
            run.model.train()
            weights = [weight for weight in run.params.values() if weight.requires_grad]
            with random_state_kept(device):
                torch.manual_seed(1)
                step = maker(run, run.examples.batch(range(6), device))
                loss = step.objective().loss
            if maker is TrainingStep:
                step.backward(loss)
                gradients.append([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            else:
                gradients.append(list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)))
        finally:
            stack.teardown(run)
    label = "+".join(method.name for method in methods)
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    worst = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    assert worst <= 1e-5 * max(largest, 1e-3), (
        f"{label} on {architecture}, {kind}: the gradient differs by {worst:.1e} from that of the loss it returns; "
        "a method that multiplies the loss of `inner` asks for inner(view, weight=factor)"
    )


def check_pair(
    left: type[Method],
    right: type[Method],
    architecture: str = "bert",
    kind: Kind = "classification",
    *,
    device: torch.device = CPU,
    thorough: bool = True,
) -> None:
    """Check one ordered pair: it trains to finite numbers with the declared passes and the gradient of its loss.

    The model that it leaves is as plain as before.

    Args:
        left: the class of the outer method.
        right: the class of the inner method.
        architecture: a name of `ARCHITECTURES`.
        kind: the kind of the toy task.
        device: the device to train on.
        thorough: whether to train a step longer, and a second time to the same numbers.
    """
    label = f"{left.name}+{right.name} on {architecture}, {kind}"
    if unsupported([left(), right()], architecture, kind):
        return
    recipe = PAIR_RECIPE if thorough else dataclasses.replace(PAIR_RECIPE, steps=2)
    first, result, predictions = toy_train([left(), right()], architecture, kind, recipe, device=device)
    assert np.isfinite(result.steps["loss"]).all(), f"{label}: the loss is not finite"
    assert np.isfinite(predictions).all(), f"{label}: the predictions are not finite"
    if thorough:
        second, _, again = toy_train([left(), right()], architecture, kind, recipe, device=device)
        assert same(first, second), f"{label}: two equal runs differ"
        assert np.array_equal(predictions, again), f"{label}: two equal runs predict differently"
    check_gradient([left(), right()], [left(), right()], architecture, kind, device)
    declared = Stack([left(), right()]).passes(Passes())
    assert (result.forwards_per_step, result.backwards_per_step) == (declared.forwards, declared.backwards), (
        f"{label}: declared {declared}, counted {result.forwards_per_step} + {result.backwards_per_step}"
    )
    plain, _ = toy_run([left(), right()], architecture, kind, device=device)
    assert shape(first.model) == shape(plain.model), f"{label}: teardown leaves something behind"
