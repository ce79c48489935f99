from __future__ import annotations

import torch

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.r3f import R3F, R4F, iterate_power
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import output_layer
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from tests.tiny_run import first_step, tiny_run


def test_the_power_method_finds_the_largest_singular_value() -> None:
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(4))
    left, right = iterate_power(weight, torch.ones(3), 200)
    torch.testing.assert_close(left @ weight @ right, torch.linalg.svdvals(weight)[0])
    torch.testing.assert_close(left.norm(), torch.tensor(1.0))


def test_what_is_used_and_kept_has_a_norm_of_one() -> None:
    for kind in toys.KINDS:
        run, stack = toys.toy_run(R4F(), kind=kind)
        train(run)
        layer = output_layer(run.model)
        with stack.evaluating(run):
            inside = layer.weight.detach().clone()
        assert float(torch.linalg.matrix_norm(inside, 2)) == 1.0 or abs(torch.linalg.matrix_norm(inside, 2) - 1) < 1e-3
        raw = layer.weight.detach().clone()
        torch.testing.assert_close(inside, raw / (stack.methods[0].left_ @ raw @ stack.methods[0].right_))  # type: ignore[attr-defined]
        stack.teardown(run)


def test_a_pass_divides_by_the_singular_value_with_its_gradient() -> None:
    """Without the penalty, against the exact matrix norm, whose gradient treats the vectors as constants too."""
    method = R4F(strength=0.0)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    method.setup(run)
    method.left_, method.right_ = iterate_power(output_layer(run.model).weight.detach(), method.left_, 500)
    head, bias = run.params["classifier.weight"], run.params["classifier.bias"]
    pooled = run.model.bert(**step.batch.inputs).pooler_output  # type: ignore[operator, union-attr]
    expected = pooled @ (head / torch.linalg.matrix_norm(head, 2)).T + bias
    logits = run.forward(step.batch, View()).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    for own, other in zip(
        run.grad(logits.square().sum(), [head, bias]), run.grad(expected.square().sum(), [head, bias]), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-3)
    method.teardown(run)


def test_a_low_precision_run_trains_the_head_that_is_evaluated() -> None:
    method = R4F()
    run = tiny_run(method)
    run.dtype = torch.bfloat16
    method.setup(run)
    used: list[torch.Tensor] = []
    layer = output_layer(run.model)
    handle = layer.register_forward_pre_hook(lambda module, args: used.append(module.weight))
    first_step(run).forward()
    handle.remove()
    with method.evaluating(run):
        assert torch.equal(used[0], layer.weight)
    method.teardown(run)


def test_the_vectors_move_once_per_step() -> None:
    method = R4F()
    run = tiny_run(method)
    step = first_step(run)
    method.setup(run)
    left = method.left_.clone()
    step.objective()  # two passes
    assert torch.equal(method.left_, left)
    with torch.no_grad():
        run.params["classifier.weight"].add_(torch.randn_like(run.params["classifier.weight"]))
    method.after_step(run)
    expected, _ = iterate_power(run.params["classifier.weight"].detach(), left, 1)
    assert torch.equal(method.left_, expected)
    method.teardown(run)


def test_mixed_weights_are_divided_last() -> None:
    r4f, mixout = R4F(strength=0.0), registry.method_class("mixout")(p=0.5, include_head=True)
    run = tiny_run(r4f, mixout, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    run.method.setup(run)
    with torch.no_grad():
        run.params["classifier.weight"].add_(0.5)
    mixout.mixing_ = True  # type: ignore[attr-defined]
    logits = [step.forward().logits for _ in range(4)]
    assert not all(torch.equal(logits[0], other) for other in logits[1:])  # the mixed matrix is what is divided
    run.method.teardown(run)


def test_r3f_says_when_its_noise_does_nothing() -> None:
    def said(**parameters: object) -> list[str]:
        stack = Stack([R3F(**parameters)])  # type: ignore[arg-type]
        return stack.warnings(toys.toy_facts(stack))

    assert "next to 0" in said(dropout="all_off")[0]
    assert said() == said(dropout="all_off", eps=0.1) == []
    assert list(R3F().effects()) == ["two passes", "noise"]
    assert list(R3F(noise="none").effects()) == ["r3f"]
