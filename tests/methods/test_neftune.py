from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.neftune import NEFTune, draw_noise, noise_ratio
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run

MASK = torch.zeros(2, 40).long()
MASK[0], MASK[1, :10] = 1, 1
FACTS = toys.toy_facts(Stack([NEFTune()]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_text_has_its_own_bound_and_all_have_one_norm() -> None:
    noise = draw_noise(MASK, 64, 5.0, "real", generator())
    for row, tokens in enumerate((40, 10)):
        bound = 5.0 / math.sqrt(tokens * 64)
        real = noise[row, :tokens]
        assert 0.99 * bound < float(real.abs().max()) <= bound * (1 + 1e-6)
        assert float(real.std()) == pytest.approx(5.0 / math.sqrt(3 * tokens * 64), rel=0.05)
        assert float(noise[row].square().sum()) == pytest.approx(25 / 3, rel=0.1)  # α² / 3, whatever the length
        assert torch.equal(noise[row, tokens:], torch.zeros(40 - tokens, 64))


def test_the_padded_length_is_the_batchs_and_padding_gets_noise_too() -> None:
    noise = draw_noise(MASK, 64, 5.0, "padded", generator())
    bound = 5.0 / math.sqrt(40 * 64)
    for part in (noise[0], noise[1, :10], noise[1, 10:]):
        assert 0.95 * bound < float(part.abs().max()) <= bound * (1 + 1e-6)


def test_the_ratio_by_hand() -> None:
    noise, embeds = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[[6.0, 8.0], [1.0, 1.0]]])
    assert float(noise_ratio(noise, embeds, torch.tensor([[1, 0]]))) == 0.5
    assert math.isfinite(float(noise_ratio(noise, torch.zeros_like(embeds), torch.tensor([[1, 1]]))))


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "llama", "qwen3", "gpt2"])
def test_padded_equals_the_hook_of_transformers(architecture: str) -> None:
    """With the same draw, loss and gradients are those of a model with the library's own hook."""
    method = NEFTune(length="padded")
    run = tiny_run(method, architecture=architecture, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    method.setup(run)
    start = run.generator("neftune").initial_seed()
    loss = step.objective().loss
    ours = run.grad(loss, list(run.params.values()))

    table: Any = run.model.get_input_embeddings()  # type: ignore[operator]
    table.neftune_noise_alpha = 5.0
    handle = table.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(start)
    hooked = run.loss(step.batch)
    theirs = run.grad(hooked, list(run.params.values()))
    handle.remove()
    torch.testing.assert_close(loss, hooked, rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert abs(float((hooked - run.loss(step.batch)).detach())) > 1e-4  # the noise was there


def test_the_table_learns_through_the_noise() -> None:
    """As α vanishes its gradient becomes vanilla's; it is not cut off."""
    method = NEFTune(alpha=1e-6)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    method.setup(run)
    table = run.params["bert.embeddings.word_embeddings.weight"]
    (noised,) = run.grad(step.objective().loss, [table])
    (plain,) = run.grad(run.loss(step.batch), [table])
    assert float(plain.abs().max()) > 0
    torch.testing.assert_close(noised, plain, atol=1e-5, rtol=1e-3)


def test_passes_that_ask_for_no_perturbation_are_clean() -> None:
    method = NEFTune()
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    method.setup(run)
    clean = run.method.objective(step, step.task_objective, View(perturb=False))
    assert torch.equal(clean.loss, run.loss(step.batch))
    assert "neftune_ratio" not in clean.logs
    noised = step.objective()
    assert 0 < float(noised.logs["neftune_ratio"]) < math.inf
    assert not torch.equal(noised.loss, clean.loss)


def test_where_its_noise_would_be_lost_is_refused_or_said() -> None:
    def stack(*names: str) -> Stack:
        return Stack([registry.method_class(name)() if name != "neftune" else NEFTune() for name in names])

    for outer in ("r3f", "r4f"):
        assert f"write neftune+{outer}" in str(stack(outer, "neftune").unsupported(FACTS))
        assert stack("neftune", outer).unsupported(FACTS) is None
    for outer in ("smart", "lnsr"):
        told = stack(outer, "neftune").warnings(FACTS)
        assert any(f"right of {outer} its noise is in the first pass only" in text for text in told)
        assert not any("first pass only" in text for text in stack("neftune", outer).warnings(FACTS))
    cut = Recipe(batch_size=8, steps=2, accumulation=2)
    assert "gradient accumulation" in str(toys.unsupported(NEFTune(length="padded"), recipe=cut))
    assert toys.unsupported(NEFTune(), recipe=cut) is None
    told = stack("neftune", "freelb").warnings(FACTS)
    assert any("all put noise on the token embeddings" in text for text in told)


def test_noise_that_all_passes_share_makes_none_of_them_differ() -> None:
    """What is drawn once, outside of both passes, is no source of difference between them; HyPe draws in each."""
    rdrop, hype = registry.method_class("rdrop"), registry.method_class("hype")
    alone = rdrop(dropout=Dropout.ALL_OFF)
    assert "identical" in str(toys.unsupported([NEFTune(), alone]))
    assert "identical" in str(
        toys.unsupported([NEFTune(), registry.method_class("r3f")(noise="none", dropout="all_off")])
    )
    for accepted in ([alone, NEFTune()], [hype(), alone], [NEFTune(), rdrop()]):
        assert toys.unsupported(accepted) is None
