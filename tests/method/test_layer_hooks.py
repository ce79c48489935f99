"""Whatever layout a model has inside, a method is handed hidden states as (batch, seq, dim)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune_bench.methods.hype import perturb_hidden
from finetune_bench.model.structure import attention_outputs_changed, layer_inputs_changed, layer_outputs_changed
from finetune_bench.testing import toys
from tests.tiny_run import tiny_run

HOOKS = [layer_inputs_changed, attention_outputs_changed, layer_outputs_changed]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_a_change_of_one_example_changes_its_prediction_alone(architecture: str, hook: type) -> None:
    if architecture in ("modernbert", "llama", "qwen3", "gpt2") and hook is attention_outputs_changed:
        pytest.skip("no module has the place: these normalise first and add the residual outside")
    run = tiny_run(architecture=architecture)
    batch = next(run.batches("test"))
    count, length = batch.inputs["input_ids"].shape
    assert count != length
    run.model.eval()
    shapes: list[tuple[int, ...]] = []

    def change(index: int, *states: Tensor) -> Tensor:
        hidden = states[-1]
        shapes.extend(tuple(state.shape) for state in states)
        changed = hidden.clone()
        changed[2] = hidden[2].flip(-1)
        return changed if index == 1 else hidden

    with torch.no_grad():
        plain = run.model(**batch.inputs).logits
        with hook(run.model, change):
            changed = run.model(**batch.inputs).logits
        again = run.model(**batch.inputs).logits
    assert {shape[:2] for shape in shapes} == {(count, length)}
    assert len(shapes) == (4 if hook is layer_outputs_changed else 2)
    differs = (plain - changed).abs().amax(1) > 1e-6
    assert differs.tolist() == [row == 2 for row in range(count)]
    assert torch.equal(plain, again)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_pass_inside_is_changed(hook: type) -> None:
    """ALBERT's layers are one: which of them runs is counted, and begins anew with each pass."""
    run = tiny_run(architecture="albert")
    batch = next(run.batches("test"))
    run.model.eval()
    indices: list[int] = []

    def change(index: int, *states: Tensor) -> Tensor:
        indices.append(index)
        return states[-1] * 2 if index == 1 else states[-1]

    with torch.no_grad(), hook(run.model, change):
        first, second = (run.model(**batch.inputs).logits for _ in range(2))
    assert indices == [0, 1, 0, 1]
    assert torch.equal(first, second)


@pytest.mark.parametrize("noise", ["normal", "uniform_symmetric"])
def test_noise_follows_the_memory_of_the_states(noise: str) -> None:
    """XLNet's states have had these draws before they were handed over the other way round."""
    inside = torch.zeros(7, 3, 16)
    streams = (torch.Generator().manual_seed(4) for _ in range(2))
    before, after = (
        perturb_hidden(h, 0.5, noise, g) for h, g in zip((inside, inside.transpose(0, 1)), streams, strict=True)
    )
    assert torch.equal(before, after.transpose(0, 1))
    assert after.transpose(0, 1).is_contiguous()
