from __future__ import annotations

import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.step import View
from finetune_bench.methods.sam import SAM, climb_weights
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run


def method(name: str, **parameters: object) -> Method:
    return registry.method_class(name)(**parameters)


def test_the_climb_by_hand() -> None:
    weights, gradients = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])]
    (plain,) = climb_weights(weights, gradients, 0.5)
    torch.testing.assert_close(plain, torch.tensor([0.3, 0.4]))  # 0.5 · g / 5
    (adaptive,) = climb_weights(weights, gradients, 0.5, adaptive=True)
    # |θ|·g = (3, 8), norm √73; e = 0.5 · θ²·g / √73
    torch.testing.assert_close(adaptive, 0.5 * torch.tensor([3.0, 16.0]) / 73**0.5)


def test_the_radius_is_that_of_all_tensors_together() -> None:
    shapes = [(3, 4), (5,), (2, 2, 2)]
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    steps = climb_weights([torch.ones(shape) for shape in shapes], gradients, 0.05)
    assert torch.cat([step.flatten() for step in steps]).norm() == pytest.approx(0.05, rel=1e-5)


def test_a_gradient_of_zero_climbs_nowhere() -> None:
    (step,) = climb_weights([torch.ones(3)], [torch.zeros(3)], 0.05)
    assert torch.equal(step, torch.zeros(3))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_of_a_quadratic(adaptive: bool) -> None:
    """With L = ½ θᵀHθ + bᵀθ the gradient up there is g + He."""
    generator = torch.Generator().manual_seed(1)
    factor, slope, weight = (torch.randn(shape, generator=generator) for shape in ((5, 5), (5,), (5,)))
    hessian = factor @ factor.T
    gradient = hessian @ weight + slope
    (step,) = climb_weights([weight], [gradient], 0.2, adaptive=adaptive)
    scale = weight.abs() if adaptive else torch.ones(5)
    torch.testing.assert_close(step, 0.2 * scale**2 * gradient / (scale * gradient).norm())
    above = (weight + step).requires_grad_()
    (found,) = torch.autograd.grad(0.5 * above @ hessian @ above + slope @ above, above)
    torch.testing.assert_close(found, gradient + hessian @ step, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_that_at_moved_weights(adaptive: bool) -> None:
    """Against weights that are really moved by e, without dropout."""
    sam = SAM(rho=0.3, adaptive=adaptive)
    run = tiny_run(sam, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    sam.setup(run)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    weights = list(run.params.values())
    found = run.grad(step.objective().loss, weights)
    assert all(torch.equal(run.params[name], value) for name, value in before.items())  # they never moved

    gradients = run.grad(run.loss(step.batch, View(perturb=False)), weights)
    scales = [weight.detach().abs() if adaptive else torch.ones_like(weight) for weight in weights]
    norm = torch.cat([(scale * gradient).flatten() for scale, gradient in zip(scales, gradients, strict=True)]).norm()
    with torch.no_grad():
        for weight, scale, gradient in zip(weights, scales, gradients, strict=True):
            weight.add_(0.3 * scale**2 * gradient / norm)
    expected = run.grad(run.loss(step.batch, View(perturb=False)), weights)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-4)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, gradients, strict=True)) > 1e-4


def test_both_evaluations_have_the_same_masks() -> None:
    """With ρ = 0 the second evaluation repeats the first, dropout, noise and all."""
    hype, sam = method("hype", eps=0.1, dropout="keep"), SAM(rho=0.0)
    run = tiny_run(sam, hype)
    step = first_step(run)
    sam.setup(run)
    assert float(step.objective().logs["sam_rise"]) == 0
    different = [run.forward(step.batch).logits for _ in range(2)]
    assert not torch.equal(*different)


def test_up_there_the_masks_are_those_below_and_the_loss_is_higher() -> None:
    sam = SAM(rho=0.05)
    run = tiny_run(sam)
    step = first_step(run)
    sam.setup(run)
    masks: list[torch.Tensor] = []
    drops = [module for module in run.model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    for module in drops:
        module.register_forward_hook(lambda _module, _inputs, output: masks.append(output == 0))
    assert float(step.objective().logs["sam_rise"]) > 0
    half = len(masks) // 2
    assert half > 1
    assert any(mask.any() for mask in masks)
    assert all(torch.equal(below, above) for below, above in zip(masks[:half], masks[half:], strict=True))
    step.objective()
    assert any(not torch.equal(old, new) for old, new in zip(masks, masks[2 * half :], strict=False))


def test_what_does_not_train_does_not_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    climbed: dict[str, torch.Tensor] = {}
    run, stack = toys.toy_run([SAM(), method("child_tuning_d"), method("top_k", k=1)])
    stack.setup(run)
    run.model.train()
    step = first_step(run)
    plain = run.forward

    def spy(batch: object, view: View | None = None) -> object:
        climbed.update((view or View()).weights or {})
        return plain(batch, view)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "forward", spy)
    step.objective()
    assert "bert.embeddings.word_embeddings.weight" not in climbed  # frozen
    masked = climbing = 0
    for name, weight in climbed.items():
        moved = weight != run.params[name]
        climbing += int(moved.sum())
        if name in run.trained:
            assert not (moved & ~run.trained[name]).any()
            masked += int((~run.trained[name]).sum())
    assert masked > 0
    assert climbing > 0
    length = torch.cat([(weight - run.params[name]).flatten() for name, weight in climbed.items()]).norm()
    assert float(length.detach()) == pytest.approx(0.05, rel=1e-3)  # the radius is used up by what trains
    stack.teardown(run)


def test_what_is_refused() -> None:
    def reason(*stack: Method, **recipe: object) -> str:
        return str(toys.unsupported(list(stack), recipe=Recipe(batch_size=8, epochs=1, **recipe)))  # type: ignore[arg-type]

    assert "two sweeps" in reason(SAM(), accumulation=2)
    assert "weights below" in reason(SAM(), gradient_checkpointing=True)
    assert "loss scaling" in reason(SAM(), precision="fp16")
    for stack in ((SAM(), method("freelb")), (method("freelb"), SAM())):
        assert "both decide about the backward passes of a step" in reason(*stack)
    for stack in ((SAM(), method("recadam")), (method("recadam"), SAM())):
        assert "both decide about the point at which gradients are taken" in reason(*stack)
    assert reason(SAM()) == "None"
