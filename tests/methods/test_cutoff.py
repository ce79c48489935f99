from __future__ import annotations

import pytest
import torch

from finetune_bench import registry, testing
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.cutoff import Cutoff, cut_features, cut_span, cut_tokens
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import parameter
from finetune_bench.testing import toys
from finetune_bench.training.run import TrainingRun, TrainingStep
from tests.tiny_run import REGRESSION, first_step, tiny_run

MASK = torch.zeros(4, 20).long()
MASK[0], MASK[1, :10], MASK[2, 10:], MASK[3, :3] = 1, 1, 1, 1  # the third is padded on the left


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [cut_span, cut_tokens])
def test_exactly_so_many_tokens_are_cut_and_neither_the_first_nor_the_last(draw) -> None:  # type: ignore[no-untyped-def]
    met = torch.zeros_like(MASK).bool()
    for seed in range(200):
        cut = draw(MASK, 0.25, generator(seed))
        assert cut.sum(1).tolist() == [5, 2, 2, 0]  # ⌊0.25 · (20, 10, 10, 3)⌋
        met |= cut
        if draw is cut_span:
            for row in cut:
                positions = row.nonzero().flatten().tolist()
                assert positions == list(range(positions[0], positions[0] + len(positions))) if positions else True
    inner = MASK.bool().clone()
    inner[0, [0, 19]] = inner[1, [0, 9]] = inner[2, [10, 19]] = False
    inner[3] = False
    assert torch.equal(met, inner)  # every other token is cut some time


def test_a_large_share_leaves_the_ends() -> None:
    for draw in (cut_span, cut_tokens):
        assert draw(MASK, 0.99, generator()).sum(1).tolist() == [18, 8, 8, 1]
        assert not draw(MASK, 0.0, generator()).any()
        assert not draw(torch.ones(2, 1).long(), 0.9, generator()).any()  # a text of one token


def test_exactly_so_many_columns_are_cut() -> None:
    cut = cut_features(3, 16, 0.2, generator())
    assert cut.sum(1).tolist() == [3, 3, 3]
    assert not torch.equal(cut[0], cut[1])


def started(method: Cutoff, **options: object) -> tuple[TrainingRun, TrainingStep]:
    run = tiny_run(method, dropout=Dropout.ALL_OFF, **options)  # type: ignore[arg-type]
    step = first_step(run)
    method.setup(run)
    return run, step


@pytest.mark.parametrize("kind", ["span", "token", "feature"])
@pytest.mark.parametrize("architecture", ["bert", "xlnet", "gpt2"])
def test_the_loss_by_hand(kind: str, architecture: str) -> None:
    run, step = started(Cutoff(ratio=0.4, beta=3.0, kind=kind), architecture=architecture)
    mark = step.mark()
    objective = step.objective()
    run.set_streams(mark)
    embeds, mask = run.embeds(step.batch, View()), step.batch.inputs["attention_mask"]
    stream = run.generator("cutoff")
    if kind == "feature":
        kept = ~cut_features(8, embeds.shape[-1], 0.4, stream)[:, None]
    else:
        kept = ~(cut_span if kind == "span" else cut_tokens)(mask, 0.4, stream)[..., None]
    whole, part = run.forward(step.batch), run.forward(step.batch, View(embeds=embeds * kept))
    p, q = (output.logits.log_softmax(-1) for output in (whole, part))
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
    losses = [run.task.loss(output, step.batch.labels) for output in (whole, part)]
    torch.testing.assert_close(objective.loss, (losses[0] + losses[1]) / 2 + 1.5 * divergence)
    assert float(divergence.detach()) > 1e-4
    assert 0.2 < float(objective.logs["cutoff_share"]) <= 0.4


def test_hidden_tokens_are_not_seen_at_all() -> None:
    """With `mask` the second prediction doesn't depend on what stood where it was cut; without it zeros are seen."""
    for hidden, same in ((True, True), (False, False)):
        method = Cutoff(ratio=0.4, mask=hidden)
        run, step = started(method)
        view, _ = method.cut(step, View())
        assert view.embeds is not None
        cut = (view.embeds == 0).all(-1) & step.batch.inputs["attention_mask"].bool()
        assert cut.any()
        other = View(embeds=view.embeds + torch.randn_like(view.embeds) * cut[..., None], mask=view.mask)
        logits = [run.forward(step.batch, each).logits for each in (view, other)]
        assert torch.allclose(*logits, atol=1e-5) == same


def test_regression_has_the_squared_difference() -> None:
    run, step = started(Cutoff(ratio=0.4), task=REGRESSION)
    objective = step.objective()
    logged = torch.as_tensor(objective.logs["cutoff_divergence"]).detach()
    assert float(logged) > 0
    assert run.task.kind == "regression"


class Hiding(Cutoff):
    """Cutoff that hides by default."""

    name = "cutoff"

    mask: bool = parameter(True, help="as there")


def test_hiding_keeps_the_contract() -> None:
    for check in (testing.declares_its_passes, testing.gradient_is_that_of_the_loss, testing.is_deterministic):
        check(Hiding)


def test_what_is_refused() -> None:
    facts = toys.toy_facts(Stack([Cutoff()]))
    rdrop, mixup = registry.method_class("rdrop"), registry.method_class("mixup")
    for pair in ([rdrop(), Cutoff()], [Cutoff(), rdrop()]):
        assert "the same penalty" in str(Stack(pair).unsupported(facts))
    assert "write mixup+cutoff" in str(Stack([Cutoff(), mixup()]).unsupported(facts))
    assert Stack([mixup(), Cutoff()]).unsupported(facts) is None
    assert "columns can't be hidden" in str(toys.unsupported(Cutoff(kind="feature", mask=True)))
    assert "identical" in str(toys.unsupported(Cutoff(ratio=0.0, dropout=Dropout.ALL_OFF)))
    assert toys.unsupported(Cutoff(dropout=Dropout.ALL_OFF)) is None
