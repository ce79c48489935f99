from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune_bench import registry
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.methods.bi_drop import BiDrop, choose_entries
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer, train
from tests.tiny_run import first_step, tiny_run


def test_the_choice_by_hand() -> None:
    first, second = torch.tensor([[1.0, 4.0], [2.0, 0.0]]), torch.tensor([[3.0, -4.0], [2.5, 0.0]])
    # |mean| / std: 2/1, 0/4, 2.25/0.25, 0/0
    assert choose_entries([first, second], 0.5).tolist() == [[True, False], [True, False]]
    assert choose_entries([first, second], 0.25).tolist() == [[False, False], [True, False]]
    assert choose_entries([first, second], 1.0).all()
    assert choose_entries([first, second], 0.01).sum() == 1  # one entry at least
    assert choose_entries([torch.zeros(3), torch.zeros(3)], 0.5).all()  # nothing tells them apart


def test_three_passes_by_hand() -> None:
    parts = [torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 4.0])]
    # 2 / √(2/3) = 2.449, 2 / √2 = 1.414
    assert choose_entries(parts, 0.5).tolist() == [True, False]


@pytest.mark.parametrize("passes", [2, 3])
def test_the_step_uses_the_mean_where_passes_agree(passes: int) -> None:
    """Against passes that are made one by one, with the same dropout masks; clipping comes before."""
    method = BiDrop(passes_per_step=passes, share=0.3)
    run = tiny_run(method)
    step = first_step(run)
    method.optimizer(make_optimizer(run), run)
    mark = step.mark()
    loss = step.objective().loss
    step.backward(loss)
    nn.utils.clip_grad_norm_(run.params.values(), 0.1)
    method.gradients(run)
    mine = {name: weight.grad for name, weight in run.params.items()}
    method.teardown(run)

    run.set_streams(mark)
    weights = list(run.params.values())
    each, losses = [], []
    for _ in range(passes):
        plain = run.loss(step.batch)
        losses.append(plain.detach())
        each.append(run.grad(plain, weights))
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean())
    means = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
    factor = min(1.0, 0.1 / float(torch.cat([mean.flatten() for mean in means]).norm()))
    shares = []
    for (name, gradient), mean, parts in zip(mine.items(), means, zip(*each, strict=True), strict=True):
        if gradient is None:
            continue
        kept = gradient != 0
        torch.testing.assert_close(gradient[kept], factor * mean[kept], atol=1e-6, rtol=1e-3)
        if name.endswith("dense.weight"):
            stacked = torch.stack(list(parts))
            ratio = mean.abs() / (stacked.std(0, correction=0) + 1e-12)
            assert float(ratio[kept].min()) >= float(ratio[~kept].max()) * 0.99
            shares.append(float(kept.float().mean()))
    assert shares
    assert shares == pytest.approx([0.3] * len(shares), abs=0.01)


def test_teardown_leaves_no_hook_on_a_weight() -> None:
    method = BiDrop()
    run = tiny_run(method)
    train(run)
    method.teardown(run)
    run.loss(run.examples.batch(range(4), toys.CPU)).backward()  # type: ignore[no-untyped-call]
    assert method.sums_ == {}
    assert method.chosen_ == {}


def test_cost() -> None:
    assert BiDrop(passes_per_step=3).passes(Passes(2, 1)) == Passes(6, 3)
    assert BiDrop(passes_per_step=3).memory(Memory()).kept == {"P": 2}


def test_what_is_refused_and_said() -> None:
    facts = toys.toy_facts(Stack([BiDrop()]))
    for name in ("freelb", "fgm", "sam", "awp"):
        partner = registry.method_class(name)
        assert "backward passes of a step" in str(Stack([BiDrop(), partner()]).unsupported(facts))
    for name in ("l2_sp", "rdrop", "r3f"):
        partner = registry.method_class(name)
        assert f"write bi_drop+{name}" in str(Stack([partner(), BiDrop()]).unsupported(facts))
        assert Stack([BiDrop(), partner()]).unsupported(facts) is None
    mixup = registry.method_class("mixup")
    for pair in ([mixup(), BiDrop()], [BiDrop(), mixup()]):
        assert Stack(pair).unsupported(facts)
    assert "identical" in str(toys.unsupported(BiDrop(dropout=Dropout.ALL_OFF)))
    assert toys.unsupported([BiDrop(dropout=Dropout.ALL_OFF), registry.method_class("hype")()]) is None
    cut = Recipe(batch_size=8, steps=2, accumulation=2)
    assert "several micro-batches" in str(toys.unsupported(BiDrop(), recipe=cut))
    stack = Stack([BiDrop(share=1.0)])
    assert "keeps every entry" in stack.warnings(facts)[0]
