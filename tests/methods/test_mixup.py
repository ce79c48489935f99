from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune_bench import registry, testing
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.mixup import Mixup, draw_shares, mix
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import layer_outputs_changed
from finetune_bench.parameters import parameter
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.run import TrainingRun, TrainingStep
from tests.tiny_run import CLASSIFICATION, REGRESSION, first_step, tiny_run

ORDER, SHARE = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]), torch.linspace(0.5, 1.0, 8)


class MixedEmbeddings(Mixup):
    """Mixup of the token embeddings by default."""

    name = "mixup"

    where: str = parameter("embeddings", choices=("head", "embeddings"), help="as there")


def fixed(monkeypatch: pytest.MonkeyPatch, order: Tensor = ORDER, share: Tensor = SHARE) -> None:
    monkeypatch.setattr(Mixup, "draw", lambda self, run, count: (order[:count], share[:count]))


def started(method: Mixup, **options: Any) -> tuple[TrainingRun, TrainingStep]:
    run = tiny_run(method, dropout=Dropout.ALL_OFF, **options)
    step = first_step(run)
    method.setup(run)
    return run, step


def test_a_mixture_by_hand() -> None:
    values = torch.tensor([[2.0, 0.0], [4.0, 8.0]])
    mixed = mix(values, torch.tensor([1, 0]), torch.tensor([0.75, 0.5]))
    assert mixed.tolist() == [[2.5, 2.0], [3.0, 4.0]]
    assert mix(torch.tensor([1.0, 3.0]), torch.tensor([1, 0]), torch.tensor([0.75, 0.5])).tolist() == [1.5, 2.0]
    assert torch.equal(mix(values, torch.tensor([1, 0]), torch.ones(2)), values)


def test_shares_are_betas() -> None:
    torch.manual_seed(0)
    share = draw_shares(20_000, 0.4, dominant=False, device=toys.CPU)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(a, a)
    dominant = draw_shares(20_000, 0.4, dominant=True, device=toys.CPU)
    assert 0.5 <= float(dominant.min()) <= float(dominant.max()) <= 1
    for alpha in (1e-3, 1e3):
        assert torch.isfinite(draw_shares(5_000, alpha, dominant=True, device=toys.CPU)).all()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "xlnet", "mpnet", "llama", "gpt2"])
def test_mixing_logits_is_mixing_what_enters_the_last_layer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_bench.model.structure import output_layer

    fixed(monkeypatch)
    run, step = started(Mixup(), architecture=architecture)
    entered: list[Tensor] = []
    layer = output_layer(run.model)
    handle = layer.register_forward_hook(lambda module, args, output: entered.append(args[0]))
    plain = step.forward(View()).logits
    handle.remove()
    (vectors,) = entered
    bias = 0.0 if layer.bias is None else layer.bias
    torch.testing.assert_close(vectors @ layer.weight.T + bias, plain)
    by_hand = mix(vectors, ORDER, SHARE) @ layer.weight.T + bias
    objective = step.objective()
    torch.testing.assert_close(objective.output.logits, by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [Mixup, MixedEmbeddings])
def test_mixed_with_itself_it_is_vanilla(method: type[Mixup], monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, order=torch.arange(8))
    for task in (CLASSIFICATION, REGRESSION):
        run, step = started(method(), task=task)
        torch.testing.assert_close(step.objective().loss, run.loss(step.batch))


def test_the_loss_is_that_of_mixed_logits_for_both_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch)
    run, step = started(Mixup())
    objective, labels = step.objective(), step.batch.labels
    logits = mix(run.forward(step.batch).logits, ORDER, SHARE)
    each = [F.cross_entropy(logits, target, reduction="none") for target in (labels, labels[ORDER])]
    torch.testing.assert_close(objective.loss, (SHARE * each[0] + (1 - SHARE) * each[1]).mean())
    targets, given = mix(step.targets(), ORDER, SHARE), []
    Mixup().objective(step, lambda view, weight=1.0: given.append(view.targets) or objective, View(targets=targets))
    torch.testing.assert_close(given[0], mix(targets, ORDER, SHARE))  # another method's targets are mixed

    run, step = started(Mixup(), task=REGRESSION)
    predicted, numbers = mix(run.forward(step.batch).logits, ORDER, SHARE)[:, 0], step.batch.labels
    expected = (predicted - SHARE * numbers - (1 - SHARE) * numbers[ORDER]).square().mean()
    torch.testing.assert_close(step.objective().loss, expected)


@pytest.mark.parametrize("architecture", ["bert", "xlnet", "llama", "qwen3", "gpt2", "mpnet"])
def test_of_embeddings_both_texts_are_seen_and_learn(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text mixed with a longer one: its prediction depends on the last token of either."""
    left = architecture == "xlnet"
    run, step = started(MixedEmbeddings(), architecture=architecture)
    lengths = run.examples.lengths()
    short, long = int(lengths.argmin()), int(lengths.argmax())
    fixed(monkeypatch, torch.tensor([1, 0]), torch.tensor([0.7, 0.6]))
    step = TrainingStep(run, run.examples.batch([short, long], toys.CPU))
    lookup = run.model.get_input_embeddings()  # type: ignore[operator]
    kept: list[Tensor] = []
    handle = lookup.register_forward_hook(lambda module, args, output: (output.retain_grad(), kept.append(output))[0])
    step.objective().loss.backward()  # type: ignore[no-untyped-call]
    handle.remove()
    gradient = kept[0].grad
    assert gradient is not None
    last = 0 if left else -1  # of the longer text: beyond the shorter one's end
    assert float(gradient[1, last].abs().max()) > 0
    # Also of the loss of the shorter one alone, which sees the longer by the mask of both.
    mixed = mix(step.embeds(), torch.tensor([1, 0]), torch.tensor([0.7, 0.6]))
    mask = step.batch.inputs["attention_mask"]
    seen = run.forward(step.batch, View(embeds=mixed, mask=torch.maximum(mask, mask[[1, 0]]))).logits
    torch.testing.assert_close(step.objective().output.logits, seen)
    assert not torch.allclose(seen[0], run.forward(step.batch, View(embeds=mixed)).logits[0], atol=1e-4)


def check_layouts(owner: type[Mixup]) -> None:
    """Its losses are the same in every batch layout."""
    losses = [
        toys.toy_train(owner(dropout=Dropout.ALL_OFF), recipe=recipe)[1].steps["loss"]
        for layout in ("padded", "unpadded", "unpadded_trimmed")
        for recipe in [Recipe(lr=1e-3, batch_size=8, steps=2, warmup=0.0, batch_layout=layout)]
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


def check_contract(owner: type[Mixup]) -> None:
    """It keeps what the contract says of every method, where it isn't at its default place."""
    for check in (
        testing.neutral_is_vanilla,
        testing.declares_its_memory,
        testing.declares_its_passes,
        testing.leaves_a_plain_model,
        testing.gradient_is_that_of_the_loss,
    ):
        check(owner)


def test_a_pass_with_a_mask_of_its_own_is_the_same_in_every_batch_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch)
    check_layouts(MixedEmbeddings)


def test_embeddings_keep_the_contract() -> None:
    check_contract(MixedEmbeddings)


@pytest.mark.parametrize(
    ("where", "architecture"), [("head", "bert"), ("embeddings", "bert"), ("layer", "bert"), ("layer", "albert")]
)
def test_all_passes_inside_have_one_mixture(where: str, architecture: str) -> None:
    """Without dropout R-Drop's two passes are equal, mixture and all; ALBERT's one layer is told by its turn."""
    rdrop = registry.method_class("rdrop")()
    run = tiny_run(Mixup(where=where), rdrop, dropout=Dropout.ALL_OFF, architecture=architecture)
    step = first_step(run)
    run.method.setup(run)
    logs = step.objective().logs
    assert torch.equal(torch.as_tensor(logs["rdrop_divergence"]), torch.tensor(0.0))


def test_one_share_for_the_batch() -> None:
    run, _ = started(Mixup(per="batch"))
    method = Mixup(per="batch")
    draws = [method.draw(run, 8) for _ in range(3)]
    assert all(len(set(share.tolist())) == 1 for _, share in draws)
    assert len({float(share[0]) for _, share in draws}) == 3
    assert all(sorted(order.tolist()) == list(range(8)) for order, _ in draws)
    assert len(set(Mixup().draw(run, 8)[1].tolist())) == 8


def test_what_is_refused_and_said() -> None:
    facts = toys.toy_facts(Stack([Mixup()]))
    for outer in ("rdrop", "sam", "freelb", "r3f", "smart", "lnsr"):
        partner = registry.method_class(outer)
        assert f"write mixup+{outer}" in str(Stack([partner(), Mixup()]).unsupported(facts))
        assert Stack([Mixup(), partner()]).unsupported(facts) is None
    matching = registry.method_class("match_tuning")
    for pair in ([matching(), Mixup()], [Mixup(), matching()]):
        assert "mixes the examples of the batch, too" in str(Stack(pair).unsupported(facts))

    def warnings(**recipe: int) -> list[str]:
        stack = Stack([Mixup()])
        return stack.warnings(toys.toy_facts(stack, recipe=Recipe(steps=2, **recipe)))

    assert warnings(batch_size=8) == []
    assert "the 4 examples of a micro-batch" in warnings(batch_size=8, accumulation=2)[0]
    assert "it does nothing" in warnings(batch_size=8, accumulation=8)[0]


class MixedLayer(Mixup):
    """TMix: mixup of what leaves a layer."""

    name = "mixup"

    where: str = parameter("layer", choices=("head", "embeddings", "layer"), help="as there")


@pytest.mark.parametrize("architecture", ["bert", "albert", "xlnet", "llama", "gpt2", "modernbert"])
@pytest.mark.parametrize("chosen", [0, 1])
def test_what_leaves_the_chosen_layer_is_mixed(architecture: str, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: what left the layer in a plain pass is mixed and put in its place; the layers above go on from it."""
    fixed(monkeypatch)
    monkeypatch.setattr(Mixup, "draw_layer", lambda self, run: torch.tensor(chosen))
    run, step = started(MixedLayer(), architecture=architecture)
    kept: list[Tensor] = []

    def keep(index: int, entered: Tensor, left: Tensor) -> Tensor:
        kept.append(left)
        return left

    with layer_outputs_changed(run.model, keep):
        plain = run.forward(step.batch).logits
    by_hand = mix(kept[chosen], ORDER, SHARE)

    def put(index: int, entered: Tensor, left: Tensor) -> Tensor:
        return by_hand if index == chosen else left

    with layer_outputs_changed(run.model, put):
        expected = run.forward(step.batch).logits
    found = step.objective().output.logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=1e-4)


def test_of_a_layer_mixed_with_itself_it_is_vanilla_and_else_both_texts_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, order=torch.arange(8))
    for task in (CLASSIFICATION, REGRESSION):
        run, step = started(MixedLayer(), task=task)
        torch.testing.assert_close(step.objective().loss, run.loss(step.batch))
    fixed(monkeypatch, share=torch.full((8,), 0.6))
    run, step = started(MixedLayer())
    lookup = run.model.get_input_embeddings()  # type: ignore[operator]
    entered: list[Tensor] = []
    handle = lookup.register_forward_hook(
        lambda module, args, output: (output.retain_grad(), entered.append(output))[0]
    )
    step.objective().output.logits[0].sum().backward()  # type: ignore[no-untyped-call]
    handle.remove()
    gradient = entered[0].grad
    assert gradient is not None
    assert [index for index in range(8) if float(gradient[index].abs().max()) > 0] == [0, 1]


def test_the_layer_is_one_of_the_upper_half_and_drawn_anew() -> None:
    run, _ = started(MixedLayer())
    run.model.config.num_hidden_layers = 5  # type: ignore[union-attr]
    run.model.bert.encoder.layer = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(5))  # type: ignore[union-attr]
    drawn = [int(MixedLayer().draw_layer(run)) for _ in range(40)]
    assert set(drawn) == {2, 3, 4}


def test_of_a_layer_it_is_the_same_in_every_batch_layout_and_keeps_the_contract() -> None:
    check_layouts(MixedLayer)
    check_contract(MixedLayer)


def test_of_a_layer_gradient_checkpointing_is_refused() -> None:
    """It computes layers again after the mixture is over, and the gradients would be those of another pass."""
    recipe = Recipe(steps=2, gradient_checkpointing=True)
    assert "gradient checkpointing computes the layers again" in str(toys.unsupported(MixedLayer(), recipe=recipe))
    assert toys.unsupported(Mixup(), recipe=recipe) is None
