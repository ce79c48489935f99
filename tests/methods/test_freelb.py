from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from finetune_bench import registry, testing
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.methods.freelb import FreeLB, climb_noise, sentence_norm, start_noise
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_the_first_noise_is_bounded_by_the_real_tokens() -> None:
    noise = start_noise(MASK.repeat(1, 1), 50, 0.5, torch.Generator().manual_seed(0))
    for row, tokens in enumerate((4, 2)):
        bound = 0.5 / (tokens * 50) ** 0.5
        assert 0.95 * bound < float(noise[row].abs().max()) <= bound
        assert torch.equal(noise[row, tokens:], torch.zeros(4 - tokens, 50))


def test_a_step_of_the_climb_by_hand() -> None:
    noise, gradient = torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    moved = climb_noise(noise, gradient, 0.5, 0.0)
    torch.testing.assert_close(moved, torch.tensor([[[0.3, 0.4]], [[0.0, 0.0]]]))  # a gradient of 0 moves nothing
    cut = climb_noise(noise, gradient, 0.5, 0.1)
    torch.testing.assert_close(cut, torch.tensor([[[0.06, 0.08]], [[0.0, 0.0]]]))


def test_the_default_is_the_published_run() -> None:
    """fairseq's --adv-steps 3 (STS-B): a pass at the first noise and one after each step, every loss times 1/4."""
    freelb = FreeLB()
    run = tiny_run(freelb, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    freelb.setup(run)
    mark = step.mark()
    step.backward(step.objective().loss)
    gradients = {name: weight.grad.clone() for name, weight in run.params.items() if weight.grad is not None}
    run.model.zero_grad()
    run.set_streams(mark)
    real = step.batch.inputs["attention_mask"][..., None]
    drawn = torch.rand((*real.shape[:2], 16), generator=run.generator("freelb")) * 2 - 1
    delta = 0.16 * drawn * real / (real.sum(1, keepdim=True) * 16).sqrt()
    adversarial_steps = 3
    for _ in range(1 + adversarial_steps):
        delta = delta.detach().requires_grad_()
        loss = run.loss(step.batch, View(embeds=run.embeds(step.batch, View()) + delta, perturb=False))
        (loss / (1 + adversarial_steps)).backward()
        assert delta.grad is not None
        norm = delta.grad.flatten(1).norm(dim=1)[:, None, None]
        with torch.no_grad():
            delta = (delta + 0.1 * delta.grad / norm) * real
            length = delta.flatten(1).norm(dim=1)[:, None, None]
            delta = torch.where(length > 0.28, delta * 0.28 / length, delta)
    for name, gradient in gradients.items():
        expected = run.params[name].grad
        assert expected is not None
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert 1 + adversarial_steps == freelb.passes(Passes()).forwards == 4
    assert freelb.version == 2  # rows whose default was three passes don't mix with those of four


class Spy(Method):
    """Keeps the embeddings of every pass of the methods to its right."""

    name = "spy"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        assert view.embeds is not None
        found = inner(view)
        self.seen_ = [*getattr(self, "seen_", []), (view.embeds.detach().clone(), found.output.logits.detach().clone())]
        return found


def test_the_gradient_is_the_mean_over_the_climb() -> None:
    """Against K separate passes at the noises that were met, and the norm stays in the ball."""
    freelb, spy = FreeLB(steps=3, max_norm=0.2), Spy()
    run = tiny_run(freelb, spy, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    freelb.setup(run)
    step.backward(step.objective().loss)
    found = {name: weight.grad.clone() for name, weight in run.params.items() if weight.grad is not None}
    plain = run.embeds(step.batch, View()).detach()
    sums: dict[str, Tensor] = {}
    losses = []
    assert len(spy.seen_) == 3
    for number, (embeds, _) in enumerate(spy.seen_):
        delta = embeds - plain
        assert torch.equal(delta * (1 - step.batch.inputs["attention_mask"][..., None]), torch.zeros_like(delta))
        assert number == 0 or float(sentence_norm(delta).max()) <= 0.2 + 1e-5
        loss = run.loss(step.batch, View(embeds=run.embeds(step.batch, View()) + delta, perturb=False))
        losses.append(float(loss.detach()))
        for name, gradient in zip(run.params, run.grad(loss, list(run.params.values())), strict=True):
            sums[name] = sums.get(name, 0) + gradient / 3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, sums[name], atol=1e-6, rtol=1e-4)
    assert losses[0] < losses[-1]  # it climbs


def test_all_passes_have_the_same_masks() -> None:
    freelb, spy = FreeLB(init_magnitude=0.0, learning_rate=0.0), Spy()
    run = tiny_run(freelb, spy)
    step = first_step(run)
    freelb.setup(run)
    step.objective()
    first, *others = (logits for _, logits in spy.seen_)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, step.forward().logits)  # a fresh pass has fresh masks


def test_outer_weights_reach_the_early_backward_passes() -> None:
    rdrop = registry.method_class("rdrop")
    testing.check_gradient([rdrop(), FreeLB()], [rdrop(), FreeLB()])


def test_without_the_weight_the_check_would_fail() -> None:
    class Careless(Method):
        name = "careless"

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            found = inner(view)
            return replace(found, loss=0.5 * found.loss)

    with pytest.raises(AssertionError, match=r"differs .* asks for inner\(view, weight=factor\)"):
        testing.check_gradient([Careless(), FreeLB()], [Careless(), FreeLB()])


def test_what_is_refused_and_said() -> None:
    assert "fp16" in str(toys.unsupported(FreeLB(), recipe=Recipe(precision="fp16")))
    stack = Stack([FreeLB(init_magnitude=0.0, learning_rate=0.0)])
    assert ["stays 0" in text for text in stack.warnings(toys.toy_facts(stack))] == [True]
    both = Stack([FreeLB(), registry.method_class("r3f")()])
    assert any("all put noise on the token embeddings" in text for text in both.warnings(toys.toy_facts(both)))
    assert Stack([FreeLB()]).warnings(toys.toy_facts(Stack([FreeLB()]))) == []


@pytest.mark.parametrize("name", ["freelb", "sam"])
def test_a_method_outside_may_pass_embeddings_in(name: str) -> None:
    """NEFTune and its like hand over embeddings with a graph, which must outlive the early backward passes."""

    class Scaled(Method):
        name = "scaled"

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            return inner(replace(view, embeds=1.5 * step.embeds(view)))

    def stack() -> list[Method]:
        return [Scaled(), registry.method_class(name)()]

    testing.check_gradient(stack(), stack())
