from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator

from finetune_bench import registry
from finetune_bench.methods.drophead import DropHead, draw_scales
from finetune_bench.model.structure import attention_heads_scaled, attention_output_layers, layers
from finetune_bench.testing import toys
from tests.tiny_run import tiny_run


def test_factors_of_two_heads_by_hand() -> None:
    """At p = 1/2 the draws that count, (1, 0), (0, 1) and (1, 1), are as likely as each other."""
    scales = draw_scales(30_000, 2, 0.5, Generator().manual_seed(3))
    seen, counts = scales.unique(dim=0, return_counts=True)
    assert seen.tolist() == [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]
    assert (counts / 10_000 - 1).abs().max() < 0.03


@pytest.mark.parametrize("p", [0.02, 0.2, 0.95])
def test_factors_have_the_mean_one_and_a_head_is_always_left(p: float) -> None:
    scales = draw_scales(20_000, 12, p, Generator().manual_seed(3))
    torch.testing.assert_close(scales.mean(1), torch.ones(20_000))
    dropped = (p - p**12) / (1 - p**12)  # given that not all are
    assert abs(float((scales == 0).float().mean()) - dropped) < 0.01
    assert float((scales == 0).float().mean(0).std()) < 0.01  # every head as often as the others


VALUES = {
    "bert": "attention.self.value",
    "mpnet": "attention.attn.v",
    "distilbert": "attention.v_lin",
    "deberta_v2": "attention.self.value_proj",
    "albert": "albert_layers.0.attention.value",
}


@pytest.mark.parametrize("architecture", VALUES)
def test_a_dropped_head_is_one_whose_values_are_zero(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    batch = next(run.batches("test"))
    with torch.no_grad(), attention_heads_scaled(run.model, lambda count: torch.tensor([[1.0, 0.0]]).expand(count, 2)):
        dropped = run.model(**batch.inputs).logits
    with torch.no_grad():
        plain = run.model(**batch.inputs).logits
        for layer in layers(run.model):
            values = layer.get_submodule(VALUES[architecture])
            values.weight[8:] = 0  # type: ignore[operator, index]
            values.bias[8:] = 0  # type: ignore[operator, index]
        expected = run.model(**batch.inputs).logits
    torch.testing.assert_close(dropped, expected)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("architecture", [name for name in toys.ARCHITECTURES if name != "xlnet"])
def test_an_example_has_heads_of_its_own(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    batch = next(run.batches("test"))
    calls = []

    def draw(count: int) -> torch.Tensor:
        calls.append(count)
        scales = torch.ones(count, 2)
        scales[3] = torch.tensor([2.0, 0.0])
        return scales

    with torch.no_grad():
        plain = run.model(**batch.inputs).logits
        with attention_heads_scaled(run.model, draw):
            changed = run.model(**batch.inputs).logits
    assert calls == [len(batch.labels)] * 2
    assert ((plain - changed).abs().amax(1) > 1e-6).tolist() == [row == 3 for row in range(len(batch.labels))]
    assert len(attention_output_layers(run.model)) == 2


@pytest.mark.parametrize("kind", ["lora", "dora", "oft", "ia3", "vera"])
def test_beside_adapters_the_same_layers_are_dropped_from(kind: str) -> None:
    """Where no adapter is, and where one is put around every linear layer: its matrices take no heads."""
    for architecture in ("bert", "albert", "distilbert", "mpnet", "modernbert", "llama", "gpt2"):
        method = registry.make_stack(f"peft(kind={kind})")
        if toys.unsupported(list(method.methods), architecture):
            continue
        run, stack = toys.toy_run(list(method.methods), architecture)
        found = attention_output_layers(run.model)
        names = [name for name, module in run.model.named_modules() if module in found]
        stack.setup(run)
        adapted = attention_output_layers(run.model)
        assert [name for name, module in run.model.named_modules() if module in adapted] == names
        stack.teardown(run)


def test_what_is_refused() -> None:
    assert "takes what its attention heads give" in str(toys.unsupported(DropHead(), "xlnet"))
    recipe = replace(toys.RECIPE, gradient_checkpointing=True)
    assert "when no head is dropped" in str(toys.unsupported(DropHead(), recipe=recipe))
    assert not DropHead(p=0).stochastic
    assert toys.unsupported(DropHead(p=0), recipe=recipe) is None
