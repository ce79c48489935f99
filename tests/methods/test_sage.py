from __future__ import annotations

import pytest
import torch

from finetune_bench import registry, testing
from finetune_bench.methods import sage
from finetune_bench.methods.sage import SAGE, scale_by_sensitivity, sensitive_weights
from finetune_bench.study import Recipe
from finetune_bench.training import make_optimizer
from tests.tiny_run import tiny_run


def test_the_factor_by_hand() -> None:
    sensitivity, average = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(scale_by_sensitivity(sensitivity, average, 1e-12, None), torch.tensor([1.0, 0.0, 0.0]))
    assert scale_by_sensitivity(torch.tensor([50.0]), torch.tensor([1.0]), 0.0, 10.0) == 10.0


def test_two_steps_by_hand() -> None:
    """θ = 1, gradients 1 and 3, no decay: the first step moves nothing, the second by the factor times Adam's."""
    run = tiny_run(lr=0.1, weight_decay=0.0)
    method = SAGE(beta0=0.75)
    optimizer = method.optimizer(make_optimizer(run), run)
    weight = next(iter(method.averages_))
    with torch.no_grad():
        weight.fill_(1.0)
    for gradient in (1.0, 3.0):
        for parameter in run.params.values():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = torch.full_like(weight, gradient)
        before = weight.detach().clone()
        optimizer.step()
        if gradient == 1.0:
            assert torch.equal(weight, before)  # I = Î after the correction
    average = (0.25 * 0.75 + 0.25 * 3) / (1 - 0.75**2)
    factor = (3 - average) / average
    first = (0.9 * 0.1 + 0.1 * 3) / (1 - 0.9**2)
    second = (0.99 * 0.01 + 0.01 * 9) / (1 - 0.99**2)
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 1 - 0.1 * factor * first / second**0.5))


def test_settled_sensitivity_stops_a_weight() -> None:
    run = tiny_run(lr=1e-30, weight_decay=0.0)  # θ stays, so θ·g is constant
    method = SAGE()
    optimizer = method.optimizer(make_optimizer(run), run)
    weight = next(iter(method.averages_))
    for _ in range(3):
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.step()
    corrected = method.averages_[weight] / (1 - 0.75**3)
    factor = scale_by_sensitivity((weight * 2.0).abs().detach(), corrected, 1e-12, None)
    assert float(factor.abs().max()) < 1e-5


def test_scaled_gradients_have_the_same_factor() -> None:
    first, second = torch.tensor([0.3, 2.0]), torch.tensor([0.5, 1.0])
    torch.testing.assert_close(
        scale_by_sensitivity(first, second, 1e-20, None), scale_by_sensitivity(1e3 * first, 1e3 * second, 1e-20, None)
    )


def test_with_a_factor_of_one_it_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sage, "scale_by_sensitivity", lambda sensitivity, *_: torch.ones_like(sensitivity))
    run, twin = tiny_run(weight_decay=0.1), tiny_run(weight_decay=0.1)
    optimizer = SAGE().optimizer(make_optimizer(run), run)
    plain = make_optimizer(twin)
    generator = torch.Generator().manual_seed(0)
    listed = {id(weight) for weight in sensitive_weights(run.model)}
    for _ in range(5):
        for name, weight in run.params.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            twin.params[name].grad = weight.grad.clone()
        optimizer.step()
        plain.step()
    for name, weight in run.params.items():
        torch.testing.assert_close(weight, twin.params[name], atol=1e-7, rtol=1e-5)
        if id(weight) not in listed:
            assert torch.equal(weight, twin.params[name]), name


def test_the_weights_chosen() -> None:
    for architecture in testing.ARCHITECTURES:
        run, _ = testing.toy_run(SAGE(), architecture)
        names = {
            name for name, weight in run.params.items() if id(weight) in set(map(id, sensitive_weights(run.model)))
        }
        assert names, architecture
        assert not {name for name in names if "embeddings" in name or "LayerNorm" in name or "classifier" in name}


def test_what_is_refused() -> None:
    for other in ("child_tuning_f", "recadam"):
        assert testing.unsupported([SAGE(), registry.method_class(other)()])
    assert "fp16" in str(testing.unsupported(SAGE(), recipe=Recipe(precision="fp16")))
    assert testing.unsupported([SAGE(), registry.method_class("child_tuning_d")()]) is None
