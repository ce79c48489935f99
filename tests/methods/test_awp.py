from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.awp import AWP, climb_matrix
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.run import TrainingRun, TrainingStep
from tests.tiny_run import first_step, tiny_run


def started(run: TrainingRun) -> TrainingStep:
    """Return the first micro-batch of a run that is set up."""
    run.method.setup(run)
    return first_step(run)


def test_a_climb_by_hand() -> None:
    weight, gradient = torch.tensor([[3.0, -4.0]]), torch.tensor([[0.6, 0.8]])  # ‖W‖ = 5, ‖g‖ = 1
    torch.testing.assert_close(climb_matrix(weight, gradient, 0.1, 10.0), torch.tensor([[0.3, 0.4]]))
    # A box of a tenth of each entry: ±0.3 and ±0.4, and of a twentieth.
    torch.testing.assert_close(climb_matrix(weight, gradient, 1.0, 0.1), torch.tensor([[0.3, 0.4]]))
    torch.testing.assert_close(climb_matrix(weight, -10 * gradient, 1.0, 0.05), torch.tensor([[-0.15, -0.2]]))
    assert torch.equal(climb_matrix(weight, torch.zeros(1, 2), 1.0, 0.1), torch.zeros(1, 2))
    assert torch.equal(climb_matrix(torch.zeros(1, 2), gradient, 1.0, 0.1), torch.zeros(1, 2))


def test_the_gradient_is_that_of_the_point_above() -> None:
    """Against weights that really moved; afterwards they are where they were, to the bit."""
    method = AWP(radius=0.05, box=0.02)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = started(run)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    objective = step.objective()
    step.backward(objective.loss)
    mine = {name: weight.grad.clone() for name, weight in run.params.items() if weight.grad is not None}
    assert all(torch.equal(before[name], weight) for name, weight in run.params.items())

    matrices = [name for name, weight in run.params.items() if weight.ndim == 2]
    plain = run.loss(step.batch)
    slopes = run.grad(plain, [run.params[name] for name in matrices])
    with torch.no_grad():
        for name, slope in zip(matrices, slopes, strict=True):
            weight = run.params[name]
            moved = weight + 0.05 * weight.norm() * slope / slope.norm().clamp(min=1e-30)
            moved = torch.max(torch.min(moved, weight + 0.02 * weight.abs()), weight - 0.02 * weight.abs())
            assert float(((moved - weight).abs() - 0.02 * weight.abs()).max()) <= 1e-6
            weight.copy_(moved)
    above = run.loss(step.batch)
    expected = run.grad(above, [run.params[name] for name in mine])
    torch.testing.assert_close(objective.loss, above, atol=1e-6, rtol=1e-5)
    for name, gradient in zip(mine, expected, strict=True):
        torch.testing.assert_close(mine[name], gradient, atol=1e-6, rtol=1e-3)
    rise = float((above - plain).detach())
    assert float(objective.logs["awp_rise"]) == pytest.approx(rise, abs=1e-5)
    assert rise > 0


def test_both_evaluations_have_the_same_masks() -> None:
    """A climb so short that only other masks could change the loss."""
    method = AWP(radius=1e-7, box=1e-7)
    run = tiny_run(method)
    step = started(run)
    objective = step.objective()
    assert abs(float(objective.logs["awp_rise"])) < 1e-5
    assert abs(float((step.task_objective(View()).loss - objective.loss).detach())) > 1e-4


def test_what_is_kept_fixed_does_not_climb() -> None:
    method = AWP()
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = started(run)
    name = "classifier.weight"
    run.trained[name] = torch.zeros_like(run.params[name])
    seen: list[torch.Tensor] = []
    forward = run.forward

    def spy(batch, view=None):  # type: ignore[no-untyped-def]
        seen.append((view.weights or {}).get(name, run.params[name]).detach())
        return forward(batch, view)

    run.forward = spy  # type: ignore[method-assign]
    step.objective()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_at_zero_it_is_one_pass() -> None:
    for method in (AWP(radius=0.0), AWP(box=0.0)):
        assert method.passes(Passes()) == Passes()
        assert method.memory(Memory()) == Memory()
    assert AWP().passes(Passes()) == Passes(2, 2)


def test_the_climbs_begin_at_start() -> None:
    """Half of four steps are vanilla's; a method that goes on after the third climbs at once."""
    recipe = Recipe(batch_size=4, steps=4)
    _, result, _ = toys.toy_train(AWP(start=0.5), recipe=recipe)
    assert np.isnan(result.steps["awp_rise"]).tolist() == [True, True, False, False]  # beside the losses of its steps
    assert len(result.steps["loss"]) == 4
    declared = AWP(start=0.5).passes(Passes())
    assert declared == Passes(1.5, 1.5)
    assert (result.forwards_per_step, result.backwards_per_step) == (declared.forwards, declared.backwards)
    method = AWP(start=0.5)
    step = started(tiny_run(method, steps=4))
    assert "awp_rise" not in step.objective().logs
    method.load_state({"steps": 3})
    assert "awp_rise" in step.objective().logs


def test_what_is_refused() -> None:
    facts = toys.toy_facts(Stack([AWP()]))
    for name in ("sam", "freelb", "fgm"):
        partner = registry.method_class(name)
        for pair in ([partner(), AWP()], [AWP(), partner()]):
            assert "only one method can" in str(Stack(pair).unsupported(facts))
    cut = Recipe(batch_size=8, steps=2, accumulation=2)
    assert "two sweeps" in str(toys.unsupported(AWP(), recipe=cut))
    assert "fp16" in str(toys.unsupported(AWP(), recipe=Recipe(precision="fp16")))
    assert "layers again" in str(toys.unsupported(AWP(), recipe=Recipe(gradient_checkpointing=True)))
