from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods import layerdrop
from finetune_bench.methods.layerdrop import LayerDrop, draw_kept
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import layer_inputs_changed, layers
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run

Keep = Callable[[list[bool]], None]


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Keep:
    """Say which layers run, in the place of the draw."""

    def use(kept: list[bool]) -> None:
        def draw(count: int, p: float, generator: Generator) -> Tensor:
            assert count == len(kept)
            return torch.tensor(kept)

        monkeypatch.setattr(layerdrop, "draw_kept", draw)

    return use


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_layers_are_skipped_as_often_as_p_says(p: float) -> None:
    kept = draw_kept(20_000, p, Generator().manual_seed(3))
    assert abs(float((~kept).float().mean()) - p) < 0.01


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_a_skipped_layer_hands_its_input_on_and_learns_nothing(architecture: str, keep: Keep) -> None:
    keep([True, False])
    run = tiny_run(LayerDrop(), architecture=architecture)
    step = first_step(run)
    entered: list[Tensor] = []
    with layer_inputs_changed(run.model, lambda index, hidden: entered.append(hidden) or hidden):  # type: ignore[func-returns-value]
        output = step.forward(View(hidden=True))
    assert torch.equal(output.hidden[2], entered[1])
    assert not torch.equal(output.hidden[1], entered[0])
    run.task.loss(output, step.batch.labels).backward()  # type: ignore[no-untyped-call]
    lower, upper = layers(run.model)
    if lower is not upper:  # ALBERT's
        assert all(weight.grad is None or not weight.grad.any() for weight in upper.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in lower.parameters())


def test_a_pass_may_lose_all_layers(keep: Keep) -> None:
    keep([False, False])
    states = first_step(tiny_run(LayerDrop())).forward(View(hidden=True)).hidden
    assert torch.equal(states[0], states[2])


def test_noise_on_a_skipped_layers_input_stays(keep: Keep) -> None:
    keep([False, False])
    run = tiny_run(registry.method_class("hype")(eps=0.5), LayerDrop())
    states = first_step(run).forward(View(hidden=True)).hidden
    assert (states[2] - states[0]).std().item() == pytest.approx(
        0.5, rel=0.1
    )  # the second layer's; the first is in both


@pytest.mark.parametrize("architecture", ["bert", "llama", "mpnet"])
def test_the_last_layer_can_be_skipped_without_padding(architecture: str, keep: Keep) -> None:
    keep([True, False])

    def logits(layout: str) -> Tensor:
        recipe = replace(toys.RECIPE, batch_layout=layout)
        run, _ = toys.toy_run(LayerDrop(dropout=Dropout.ALL_OFF), architecture, recipe=recipe)
        return first_step(run).forward().logits

    torch.testing.assert_close(logits("unpadded"), logits("padded"), atol=1e-5, rtol=1e-5)


def test_partners() -> None:
    for stack in ([LayerDrop(), registry.method_class("lnsr")()], [registry.method_class("lnsr")(), LayerDrop()]):
        assert "each pass would skip others" in str(toys.unsupported(stack))
    pair = Stack([LayerDrop(), registry.method_class("top_k")()])
    assert pair.warnings(toys.toy_facts(pair)) == ["layerdrop: the layers that top_k freezes are skipped, too"]
    assert not LayerDrop(p=0).stochastic
