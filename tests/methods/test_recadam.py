from __future__ import annotations

import math

import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.methods.recadam import RecAdam, anneal_task
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer, make_scheduler
from finetune_bench.training.run import TrainingRun
from tests.tiny_run import tiny_run


def test_the_share_of_the_task() -> None:
    assert anneal_task("sigmoid", 250, 0.5, 250) == 0.5
    assert anneal_task("sigmoid", 252, 0.5, 250) == pytest.approx(0.7310586)  # 1 / (1 + e⁻¹)
    assert anneal_task("sigmoid", 1, 1.0, 1e6) == 0.0  # no overflow
    assert anneal_task("sigmoid", 10**6, 1.0, 1) == 1.0
    assert [anneal_task("linear", step, 0.5, 4) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert anneal_task("linear", 1, 0.5, 0) == 1.0
    assert anneal_task("none", 1, 0.5, 250) == 1.0


def still(run: TrainingRun) -> None:
    for weight in run.params.values():
        weight.grad = torch.zeros_like(weight)


def test_without_a_gradient_the_way_shrinks_by_the_stated_factor() -> None:
    run = tiny_run(steps=8, lr=1e-4, weight_decay=0.0)
    method = RecAdam(anneal="linear", t0=4, gamma=5000.0)
    optimizer = method.optimizer(make_optimizer(run), run)
    scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(0.5)
    head = run.params["classifier.weight"].detach().clone()
    left = 0.5
    for step in range(1, 5):
        still(run)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        left *= 1 - rate * (1 - step / 4) * 5000
        for name, weight in run.params.items():
            if name.startswith("bert."):
                way = weight.detach() - run.pretrained[name]
                torch.testing.assert_close(way, torch.full_like(way, left), atol=1e-6, rtol=1e-5)
        assert {group["lr"] for group in optimizer.param_groups} == {rate}  # put back for the scheduler
        scheduler.step()
    assert 0 < left < 0.3
    assert torch.equal(run.params["classifier.weight"], head)


def test_the_pull_ends_at_the_anchor() -> None:
    """At a learning rate where the official rule would overshoot 50 times over."""
    run = tiny_run(steps=4, lr=1e-2, weight_decay=0.0)
    optimizer = RecAdam(t0=250).optimizer(make_optimizer(run), run)
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(0.5)
    still(run)
    optimizer.step()
    for name, weight in run.params.items():
        if name.startswith("bert."):
            torch.testing.assert_close(weight.detach(), run.pretrained[name], atol=1e-7, rtol=0)


def test_rate_and_decay_within_the_step() -> None:
    """The body's rate is λ times the schedule's; its decay, the product of both settings, is what it was."""
    run = tiny_run(steps=8, lr=1e-3, weight_decay=0.2)
    optimizer = RecAdam(anneal="linear", t0=4, gamma=0.0).optimizer(make_optimizer(run), run)
    seen: list[tuple[bool, float, float]] = []
    optimizer.register_step_pre_hook(
        lambda one, *_: seen.extend((g["recalls"], g["lr"], g["weight_decay"]) for g in one.param_groups)
    )
    still(run)
    optimizer.step()
    for recalls, rate, decay in seen:
        assert rate == pytest.approx(1e-3 * (0.25 if recalls else 1.0))
        assert decay == 0 or rate * decay == pytest.approx(2e-4)
    assert {recalls for recalls, *_ in seen} == {True, False}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}


def test_the_whole_rule_against_one_written_out() -> None:
    """Random gradients, decay and pull, in float64; the head is AdamW's, and the anchor stays."""
    run, plain = (tiny_run(steps=9, lr=1e-3, weight_decay=0.1) for _ in range(2))
    optimizer = RecAdam(k=1.0, t0=3, gamma=200.0).optimizer(make_optimizer(run), run)
    adamw = make_optimizer(plain)
    anchors = {name: weight.clone() for name, weight in run.pretrained.items()}
    generator = torch.Generator().manual_seed(0)
    expected = {name: weight.double() for name, weight in anchors.items()}
    first, second = ({name: torch.zeros_like(weight) for name, weight in expected.items()} for _ in range(2))
    for step in range(1, 7):
        share = 1 / (1 + math.exp(3 - step))
        for name, weight in run.params.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            plain.params[name].grad = weight.grad.clone()
            gradient = weight.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            direction = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.99**step)).sqrt() + 1e-6)
            decay = 0.0 if name in run.undecayed else 0.1
            moved = expected[name] * (1 - 1e-3 * decay) - 1e-3 * share * direction
            expected[name] = moved - 1e-3 * (1 - share) * 200 * (moved - anchors[name])
        optimizer.step()
        adamw.step()
    for name, weight in run.params.items():
        assert torch.equal(run.pretrained[name], anchors[name])
        if name.startswith("bert."):
            torch.testing.assert_close(weight.double(), expected[name], atol=1e-6, rtol=1e-5)
            assert not torch.equal(weight, plain.params[name])
        else:
            assert torch.equal(weight, plain.params[name]), name


def test_the_anchor_is_the_clean_point_under_noisytune() -> None:
    run = tiny_run(steps=4, lr=1e-2, weight_decay=0.0)
    clean = {name: weight.detach().clone() for name, weight in run.params.items()}
    stack = Stack([RecAdam(), registry.method_class("noisytune")()])
    stack.setup(run)
    optimizer = stack.optimizer(make_optimizer(run), run)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(run.params[name], clean[name])
    still(run)
    optimizer.step()
    torch.testing.assert_close(run.params[name].detach(), clean[name], atol=1e-7, rtol=0)


def test_t0_may_be_a_share_of_the_run() -> None:
    runs = [toys.toy_train(RecAdam(t0=t0, k=1.0))[0] for t0 in (0.5, 3.0)]  # of six steps
    assert toys.same(*runs)


def test_what_is_refused_and_said() -> None:
    for other in ("l2_sp", "prior_decay", "sage", "sam"):
        for stack in ([RecAdam(), registry.method_class(other)()], [registry.method_class(other)(), RecAdam()]):
            assert "both" in str(toys.unsupported(stack)), other
    refused = str(toys.unsupported([RecAdam(), registry.method_class("lora")()]))
    assert "recadam holds weights to their pre-trained values, and its adapters have none" in refused
    assert "fp16" in str(toys.unsupported(RecAdam(), recipe=Recipe(precision="fp16")))
    stack = Stack([RecAdam()])
    (said,) = stack.warnings(toys.toy_facts(stack, recipe=Recipe(steps=100)))
    assert "hardly trains before step t0=250, and there are 100" in said
    (said,) = stack.warnings(toys.toy_facts(stack, recipe=Recipe(weight_decay=0.1)))
    assert "pulls to zero" in said
    assert stack.warnings(toys.toy_facts(stack, recipe=Recipe(weight_decay=0.01))) == []
    short = Recipe(steps=100, weight_decay=0.01)
    for quiet in (RecAdam(t0=0.3), RecAdam(anneal="none"), RecAdam(t0=100)):
        stack = Stack([quiet])
        assert stack.warnings(toys.toy_facts(stack, recipe=short)) == []
    for idle in (RecAdam(gamma=0.0), RecAdam(anneal="none")):  # nothing pulls to the pre-trained weights
        stack = Stack([idle])
        assert stack.warnings(toys.toy_facts(stack, recipe=Recipe(weight_decay=0.1))) == []
