from __future__ import annotations

import pytest
import torch

from finetune_bench import registry
from finetune_bench.methods import sage
from finetune_bench.methods.sage import SAGE, scale_by_sensitivity, sensitive_weights
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer
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


def test_the_first_step_only_decays_and_so_do_masked_entries() -> None:
    """A gradient of 0 all along is a factor of 0/e: no movement, and no NaN."""
    run = tiny_run(lr=0.1, weight_decay=0.5)
    method = SAGE()
    optimizer = method.optimizer(make_optimizer(run), run)
    weight = run.params["bert.encoder.layer.0.output.dense.weight"]
    start = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad[0] = 0
    optimizer.step()
    torch.testing.assert_close(weight.detach(), start * 0.95)
    weight.grad[1:] *= 3
    optimizer.step()
    torch.testing.assert_close(weight.detach()[0], start[0] * 0.95**2)
    assert bool(((weight.detach()[1:] - start[1:] * 0.95**2).abs() > 1e-3).all())


@pytest.mark.parametrize(("cap", "largest"), [(None, float("inf")), (0.5, 0.5)])
def test_the_whole_rule_against_one_written_out(cap: float | None, largest: float) -> None:
    """In float64; the weights that are not listed are AdamW's to the last bit."""
    run, plain = (tiny_run(steps=9, lr=1e-3, weight_decay=0.1) for _ in range(2))
    optimizer = SAGE(beta0=0.6, cap=cap).optimizer(make_optimizer(run), run)
    adamw = make_optimizer(plain)
    listed = {name for name, weight in run.params.items() if id(weight) in set(map(id, sensitive_weights(run.model)))}
    generator = torch.Generator().manual_seed(0)
    expected = {name: run.pretrained[name].double() for name in listed}
    average, first, second = ({name: torch.zeros_like(weight) for name, weight in expected.items()} for _ in range(3))
    for step in range(1, 6):
        for name, weight in run.params.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            plain.params[name].grad = weight.grad.clone()
            if name not in listed:
                continue
            gradient = weight.grad.double()
            sensitivity = (expected[name] * gradient).abs()
            average[name] = 0.6 * average[name] + 0.4 * sensitivity
            corrected = average[name] / (1 - 0.6**step)
            factor = ((sensitivity - corrected).abs() / (corrected + 1e-12)).clamp(max=largest)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            direction = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.99**step)).sqrt() + 1e-6)
            decay = 0.0 if name in run.undecayed else 0.1
            expected[name] = expected[name] * (1 - 1e-3 * decay) - 1e-3 * factor * direction
        optimizer.step()
        adamw.step()
    for name, weight in run.params.items():
        if name in listed:
            torch.testing.assert_close(weight.double(), expected[name], atol=1e-6, rtol=1e-4)
        else:
            assert torch.equal(weight, plain.params[name]), name


def test_without_memory_nothing_listed_moves() -> None:
    """β₀ = 0: the average is the sensitivity itself, U = 0."""
    run = tiny_run(lr=0.1, weight_decay=0.0)
    optimizer = SAGE(beta0=0.0).optimizer(make_optimizer(run), run)
    listed = set(map(id, sensitive_weights(run.model)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight in run.params.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    for name, weight in run.params.items():
        assert torch.equal(weight, run.pretrained[name]) == (id(weight) in listed), name


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


def test_scaled_gradients_have_the_same_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: dict[float, list[torch.Tensor]] = {1.0: [], 1000.0: []}
    for scale, found in factors.items():

        def spy(*arguments: object, found: list[torch.Tensor] = found) -> torch.Tensor:
            found.append(scale_by_sensitivity(*arguments))  # type: ignore[arg-type]
            return found[-1].clone().zero_()  # θ stays, so that only the gradients differ

        monkeypatch.setattr(sage, "scale_by_sensitivity", spy)
        run = tiny_run(weight_decay=0.0)
        optimizer = SAGE().optimizer(make_optimizer(run), run)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for weight in run.params.values():
                weight.grad = scale * torch.randn(weight.shape, generator=generator)
            optimizer.step()
    for one, other in zip(factors[1.0], factors[1000.0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert max(float(factor.max()) for factor in factors[1.0]) > 0.5


def test_with_a_factor_of_one_it_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sage, "scale_by_sensitivity", lambda sensitivity, *_: torch.ones_like(sensitivity))
    run, twin = tiny_run(weight_decay=0.1), tiny_run(weight_decay=0.1)
    optimizer = SAGE().optimizer(make_optimizer(run), run)
    plain = torch.optim.AdamW(make_optimizer(twin).param_groups, fused=False, foreach=False)
    for group in plain.param_groups:
        group |= {"fused": False, "foreach": False}
    for _ in range(5):
        gradients = run.grad(run.loss(next(run.batches("test"))), list(run.params.values()))
        for name, gradient in zip(run.params, gradients, strict=True):  # one gradient for both: Adam blows up the rest
            run.params[name].grad, twin.params[name].grad = gradient, gradient.clone()
        optimizer.step()
        plain.step()
    for name, weight in run.params.items():
        torch.testing.assert_close(weight, twin.params[name], atol=1e-7, rtol=1e-6)
        assert not torch.equal(weight, run.pretrained[name]), name


def test_the_weights_chosen() -> None:
    for architecture in toys.ARCHITECTURES:
        run, _ = toys.toy_run(SAGE(), architecture)
        names = {
            name for name, weight in run.params.items() if id(weight) in set(map(id, sensitive_weights(run.model)))
        }
        assert names, architecture
        assert not {name for name in names if "embeddings" in name or "LayerNorm" in name or "classifier" in name}
        if architecture == "bert":
            parts = ("attention.self.", "attention.output.dense", "output.dense", "intermediate.dense")
            assert names == {name for name in run.params if any(part in name for part in parts)}
        if architecture == "xlnet":
            assert {f"transformer.layer.0.rel_attn.{key}" for key in "qkvor"} <= names


def test_what_is_refused() -> None:
    for other, reason in (("child_tuning_f", "read as insensitivity"), ("recadam", "decide about the update rule")):
        for stack in ([SAGE(), registry.method_class(other)()], [registry.method_class(other)(), SAGE()]):
            assert reason in str(toys.unsupported(stack))
    assert "frozen" in str(toys.unsupported([SAGE(), registry.method_class("lora")()]))
    assert "fp16" in str(toys.unsupported(SAGE(), recipe=Recipe(precision="fp16")))
    assert toys.unsupported([SAGE(), registry.method_class("child_tuning_d")()]) is None
