"""The KL anchor: hand-computed distances, its reference, what it says of a fresh head, and ASFT."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from finetune_bench import registry
from finetune_bench.functional import kl
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.methods.dft import DFT
from finetune_bench.methods.kl_anchor import KLAnchor
from finetune_bench.methods.label_smoothing import LabelSmoothing
from finetune_bench.methods.lp_ft import LPFT
from finetune_bench.model.dropout import Dropout, evaluation_mode
from finetune_bench.runner.inputs import facts_of
from finetune_bench.task import Output
from finetune_bench.testing import toys
from finetune_bench.training.run import TrainingStep
from tests.model.checkpoints import planned
from tests.tiny_run import REGRESSION, first_step, tiny_model, tiny_run


def ready_step(*methods: Method, **options: Any) -> TrainingStep:
    """A first step whose methods know their optimiser."""
    run = tiny_run(*methods, **options)
    for method in methods:
        method.optimizer(torch.optim.SGD(run.params.values(), lr=0.1), run)
    return first_step(run)


def test_distances_by_hand() -> None:
    p, uniform = torch.tensor([[0.7, 0.2, 0.1]]).double().log(), torch.zeros(1, 3).double()
    assert float(kl(uniform, p)) == pytest.approx(0.324287, abs=1e-6)
    assert float(kl(p, uniform)) == pytest.approx(0.7 * math.log(2.1) + 0.2 * math.log(0.6) + 0.1 * math.log(0.3))
    assert float(kl(torch.cat([uniform, p]), torch.cat([p, p]))) == pytest.approx(0.324287 / 2, abs=1e-6)
    step = ready_step(KLAnchor())
    sides = Output(uniform), Output(p)
    made = [float(KLAnchor(direction=name).distance(step, *sides)) for name in ("forward", "reverse", "symmetric")]
    assert made[2] == pytest.approx(made[0] + made[1])


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_at_the_start_the_distance_and_its_gradient_are_zero(kind: str, direction: str) -> None:
    options = {"task": REGRESSION} if kind == "regression" else {}
    step = ready_step(method := KLAnchor(direction=direction), dropout=Dropout.ALL_OFF, **options)
    distance = method.distance(step, method.reference(step), step.forward())
    assert float(distance.detach()) == pytest.approx(0.0, abs=1e-7)
    gradients = torch.autograd.grad(distance, list(step.run.params.values()), allow_unused=True)
    assert max(float(gradient.abs().max()) for gradient in gradients if gradient is not None) < 1e-6


def test_the_reference_is_the_starting_model_in_evaluation() -> None:
    step = ready_step(method := KLAnchor(strength=2.0))
    with torch.no_grad():
        for weight in step.run.params.values():
            weight.add_(0.1)
        expected = tiny_model()(**step.batch.inputs).logits
    step.run.model.get_submodule("dropout").eval()  # as a method may have left it
    modes = [module.training for module in step.run.model.modules()]
    torch.testing.assert_close(method.reference(step).logits, expected)
    assert [module.training for module in step.run.model.modules()] == modes
    objective = step.objective()
    plain = F.cross_entropy(objective.output.logits, step.batch.labels)
    torch.testing.assert_close(objective.loss, plain + 2.0 * kl(expected, objective.output.logits))
    log_q = expected.log_softmax(-1)
    share = -(log_q.exp() * log_q).sum(-1).mean() / math.log(3)
    torch.testing.assert_close(objective.logs["kl_anchor_entropy"], share)
    with pytest.raises(RuntimeError, match="lost"), evaluation_mode(step.run.model):
        raise RuntimeError("lost")
    assert [module.training for module in step.run.model.modules()] == modes


def test_adapters_are_at_their_start_in_the_reference() -> None:
    pytest.importorskip("peft")
    run, stack = toys.toy_run([registry.method_class("lora")(), KLAnchor()])
    try:
        stack.setup(run)
        stack.optimizer(torch.optim.SGD(run.params.values(), lr=0.1), run)
        run.model.train()
        step = TrainingStep(run, run.examples.batch(range(6), toys.CPU))
        method = stack.methods[1]
        assert isinstance(method, KLAnchor)
        before = method.reference(step).logits
        with torch.no_grad():
            for name, weight in run.params.items():
                weight.add_(0.1 if "lora" in name else 0.0)
        assert torch.equal(method.reference(step).logits, before)
        with evaluation_mode(run.model), torch.no_grad():
            assert not torch.equal(step.forward().logits, before)
    finally:
        stack.teardown(run)


def test_outermost_it_takes_one_pass_more() -> None:
    rdrop = registry.method_class("rdrop")
    for stack, forwards in (([KLAnchor(), rdrop()], 3), ([rdrop(), KLAnchor()], 4), ([KLAnchor(strength=0.0)], 1)):
        step = ready_step(*stack)
        step.objective()
        assert step.run.counter.forwards == forwards


def test_asft_leaves_the_penalty_unweighted() -> None:
    step = ready_step(KLAnchor(strength=0.5), DFT(), dropout=Dropout.ALL_OFF)
    with torch.no_grad():
        step.run.params["classifier.weight"].mul_(-1)
    objective = step.objective()
    p = objective.output.logits.softmax(-1).gather(1, step.batch.labels[:, None])[:, 0].detach()
    losses = F.cross_entropy(objective.output.logits, step.batch.labels, reduction="none")
    expected = (p * losses).mean() + 0.5 * objective.logs["kl_anchor_distance"]
    torch.testing.assert_close(objective.loss, expected)


def test_a_fresh_head_is_said_to_make_it_label_smoothing() -> None:
    def warned(*methods: Method, keeps_head: bool = False, kind: Any = "classification") -> list[str]:
        stack = Stack(methods)
        return stack.warnings(dataclasses.replace(toys.toy_facts(stack, kind=kind), keeps_head=keeps_head))

    (said,) = warned(KLAnchor(strength=0.25))
    assert "it is label smoothing with epsilon=0.2 at a loss 1.25 times as large; start from" in said
    assert "label_smoothing beside it is the same penalty again" in warned(KLAnchor(), LabelSmoothing())[0]
    assert "towards the uniform one" in warned(KLAnchor(direction="reverse"))[0]
    assert "arbitrary" in warned(KLAnchor(), kind="regression")[0]
    assert warned(KLAnchor(), keeps_head=True) == warned(LPFT(), KLAnchor()) == warned(KLAnchor(strength=0.0)) == []
    assert warned(KLAnchor(), LPFT(probe="closed")) == []
    for fresh in (LPFT(share=0.0), LPFT(reanchor=False)):
        assert "its reference has a fresh head" in warned(fresh, KLAnchor())[0]


def test_from_a_uniform_reference_it_is_label_smoothing() -> None:
    """What the warning says, by the numbers: ℓ + λ·KL(uniform‖p) = (1 + λ)·smoothed(ε = λ/(1 + λ)) − λ·log K."""
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    anchored = F.cross_entropy(logits, labels) + 0.25 * kl(torch.zeros(5, 3), logits)
    smoothed = 1.25 * F.cross_entropy(logits, labels, label_smoothing=0.2) - 0.25 * math.log(3)
    torch.testing.assert_close(anchored, smoothed)


def test_mixup_is_refused() -> None:
    class Mixup(Method):
        name = "mixup"

    assert "mixed ones" in str(toys.unsupported([Mixup(), KLAnchor()]))


def test_the_plan_knows_whether_the_head_is_kept(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "run", ["kl_anchor"], baseline=False)
    assert any("it is label smoothing with epsilon=0.091" in note for note in plan.notes)
    (cell,) = plan.cells
    kept = dataclasses.replace(cell, weights=f"{cell.weights}-kept-head")
    assert [facts_of(each, each.make_stack()).keeps_head for each in (cell, kept)] == [False, True]
