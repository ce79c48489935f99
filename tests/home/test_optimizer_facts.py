"""What is said of an own loop comes from its own optimiser, and a step that methods had no part in is refused."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Muon

from finetune_bench import home
from finetune_bench.errors import FinetuneBenchError, Unsupported
from finetune_bench.home.attached import recipe_of
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing.toys import CPU, toy_examples, toy_model
from finetune_bench.training.optimizer import Lion, MuonAndAdamW


def attached(method: str, **options: object) -> home.Attached:
    return home.attach(method, toy_model("bert", "classification", Dropout.KEEP), total_steps=500, **options)  # type: ignore[arg-type]


def batch() -> dict[str, torch.Tensor]:
    batch = toy_examples("classification").batch(range(4), CPU)
    return {**batch.inputs, "labels": batch.labels}


@pytest.mark.parametrize(("decay", "said"), [(0.0, 0), (0.01, 0), (0.1, 1), (0.3, 1)])
def test_a_warning_tells_of_the_optimisers_own_decay(decay: float, said: int) -> None:
    """`attach` took the benchmark's default of 0.1 for the user's, and warned of it."""
    with attached("recadam") as tuned:
        assert tuned.warnings == []
        tuned.optimizer(AdamW(tuned.parameters(), lr=2e-5, weight_decay=decay))
        assert len(tuned.warnings) == said
        assert all(f"weight decay of {decay:g}" in text for text in tuned.warnings)


def test_the_recipe_that_methods_see_is_the_optimisers() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    other = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "lr": 1e-5}, {"params": [other], "weight_decay": 0.2}]
    recipe = recipe_of(AdamW(groups, lr=3e-5, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.0), Recipe())
    assert (recipe.lr, recipe.weight_decay, recipe.beta1, recipe.beta2, recipe.adam_eps) == (3e-5, 0.2, 0.8, 0.95, 1e-7)
    assert recipe_of(SGD([weight], lr=0.5), Recipe()) == Recipe(lr=0.5, weight_decay=0.0)


def test_which_optimiser_it_is_its_class_says() -> None:
    """Of Muon beside AdamW, betas and epsilon are AdamW's."""
    weight, other = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    lion = Lion([{"params": [weight]}], lr=1e-5, betas=(0.8, 0.95), weight_decay=0.3)
    assert recipe_of(lion, Recipe()) == Recipe(lr=1e-5, beta1=0.8, beta2=0.95, weight_decay=0.3, optimizer="lion")
    muon = MuonAndAdamW([weight], [{"params": [other]}], lr=1e-4, weight_decay=0.2, betas=(0.7, 0.9), eps=1e-5)
    expected = Recipe(lr=1e-4, beta1=0.7, beta2=0.9, adam_eps=1e-5, weight_decay=0.2, optimizer="muon")
    assert recipe_of(muon, Recipe()) == expected
    assert recipe_of(Muon([weight], weight_decay=0.2), Recipe()).optimizer == "muon"


def test_a_method_that_needs_adamw_refuses_another_optimiser() -> None:
    """`sage` ended in a KeyError at the first step."""
    for method in ("sage", "recadam"):
        with attached(method) as tuned, pytest.raises(Unsupported, match=f"^{method}: .*, and SGD has no betas$"):
            tuned.optimizer(SGD(tuned.parameters(), lr=0.1))
        with attached(method) as tuned, pytest.raises(Unsupported, match=f"^{method}: .*, and the optimiser is lion$"):
            tuned.optimizer(Lion([{"params": tuned.parameters()}], lr=0.1, betas=(0.9, 0.99)))
        with attached(method) as tuned:
            tuned.optimizer(Adam(tuned.parameters()))
    with attached("child_tuning_f") as tuned, pytest.raises(Unsupported, match="muon makes each entry's step"):
        tuned.optimizer(Muon([weight for weight in tuned.parameters() if weight.ndim == 2]))
    with attached("rdrop") as tuned:
        tuned.optimizer(SGD(tuned.parameters(), lr=0.1))


def test_a_step_without_the_methods_is_refused() -> None:
    with attached("child_tuning_f") as tuned:
        optimizer = tuned.optimizer(AdamW(tuned.parameters()))
        tuned.backward(batch())
        with pytest.raises(FinetuneBenchError, match=r"call tuned.before_step\(\) before optimizer.step\(\)"):
            optimizer.step()
        tuned.before_step()
        optimizer.step()
        tuned.backward(batch())
        with pytest.raises(FinetuneBenchError, match=r"call tuned.after_step\(\) after each"):
            tuned.before_step()
        tuned.after_step()
        tuned.before_step()
        optimizer.step()
        tuned.after_step()
    optimizer.step()  # after the end it is the user's alone


def test_shares_that_do_not_add_up_are_refused() -> None:
    """Left out, the share of each of four micro-batches was 1, and the gradient four times what it should be."""
    with attached("rdrop", accumulation=4) as tuned:
        tuned.optimizer(AdamW(tuned.parameters()))
        for _ in range(4):
            tuned.backward(batch())
        with pytest.raises(FinetuneBenchError, match=r"add up to 4 where 1 was expected; .* share=len"):
            tuned.before_step()


@pytest.mark.parametrize("method", ["freelb", "lnsr", "smart"])
def test_without_a_mask_every_token_is_real(method: str) -> None:
    """As the model has it; these methods ended in a KeyError."""
    losses = []
    for masked in (True, False):
        inputs = {"input_ids": torch.arange(5, 25).view(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
        inputs |= {"attention_mask": torch.ones(4, 5, dtype=torch.int64)} if masked else {}
        torch.manual_seed(0)
        with attached(method) as tuned:
            tuned.optimizer(AdamW(tuned.parameters()))
            losses.append(tuned.backward(inputs))
    assert torch.equal(*losses)
