from __future__ import annotations

import pytest
import torch

from finetune_bench import registry, testing
from finetune_bench.method.cost import Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.fgm import FGM, move_embeddings
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.run import TrainingRun, TrainingStep
from tests.tiny_run import first_step, tiny_run

Gradients = dict[str, torch.Tensor]


def gradients_of(step: TrainingStep, run: TrainingRun) -> tuple[torch.Tensor, Gradients]:
    """The loss of a step, and the gradients that its backward passes leave."""
    loss = step.objective().loss
    step.backward(loss)
    return loss.detach(), {name: weight.grad.clone() for name, weight in run.params.items() if weight.grad is not None}


def started(spec: str, **options: str) -> tuple[TrainingRun, TrainingStep]:
    stack = registry.make_stack(spec)
    run = tiny_run(*stack.methods, **options)  # type: ignore[arg-type]
    step = first_step(run)
    run.method.setup(run)
    return run, step


def test_a_move_by_hand() -> None:
    gradient = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[6.0, 8.0], [5.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]])
    move = move_embeddings(gradient, torch.tensor([[1, 1], [1, 0], [1, 1]]), 0.5)
    expected = [[[0.3, 0.0], [0.0, 0.4]], [[0.3, 0.4], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    torch.testing.assert_close(move, torch.tensor(expected))
    assert torch.linalg.vector_norm(move, dim=(1, 2)).tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "llama", "gpt2"])
def test_it_is_one_step_of_freelb_from_zero(architecture: str) -> None:
    """With dropout on, too: both passes have the same masks."""
    mine = gradients_of(*started("fgm(epsilon=0.1)", architecture=architecture)[::-1])
    same = "freelb(steps=2,init_magnitude=0,learning_rate=0.1,max_norm=0)"
    other = gradients_of(*started(same, architecture=architecture)[::-1])
    torch.testing.assert_close(mine[0], other[0])
    for name, gradient in mine[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=1e-6, rtol=1e-4)


def test_the_loss_is_that_of_both_points() -> None:
    for combine, factor in (("mean", 0.5), ("sum", 1.0)):
        run, step = started(f"fgm(epsilon=0.2,combine={combine},dropout=all_off)")
        run.model.eval()  # without dropout, whatever the model was built with
        objective = step.objective()
        embeds = run.embeds(step.batch, View()).detach().requires_grad_()
        clean = run.loss(step.batch, View(embeds=embeds))
        (gradient,) = torch.autograd.grad(clean, [embeds])
        norms = gradient.flatten(1).norm(dim=1)[:, None, None]
        moved = run.loss(step.batch, View(embeds=embeds + 0.2 * gradient / norms))
        torch.testing.assert_close(objective.loss, factor * (clean + moved), atol=1e-5, rtol=1e-5)
        assert float(objective.logs["fgm_rise"]) == pytest.approx(float((moved - clean).detach()), abs=1e-5)
        assert float(moved.detach()) > float(clean.detach())


def test_outer_weights_reach_the_early_backward_pass() -> None:
    rdrop = registry.method_class("rdrop")
    testing.check_gradient([rdrop(), FGM()], [rdrop(), FGM()])
    testing.check_gradient([FGM(combine="sum")], [FGM(combine="sum")])


def test_at_zero_it_is_one_pass() -> None:
    assert FGM(epsilon=0.0).passes(Passes()) == Passes()
    assert FGM().passes(Passes()) == Passes(2, 2)


def test_what_is_refused_and_said() -> None:
    assert "fp16" in str(toys.unsupported(FGM(), recipe=Recipe(precision="fp16")))
    facts = toys.toy_facts(Stack([FGM()]))
    for name in ("freelb", "sam"):
        partner = registry.method_class(name)
        for pair in ([partner(), FGM()], [FGM(), partner()]):
            assert "backward passes of a step" in str(Stack(pair).unsupported(facts))
    told = Stack([registry.method_class("r3f")(), FGM()]).warnings(facts)
    assert any("all put noise on the token embeddings" in text for text in told)
