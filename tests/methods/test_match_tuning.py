from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.match_tuning import MatchTuning, match_batch
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training import evaluation
from tests.tiny_run import first_step, tiny_run


def vectors(count: int = 4, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(2))


def test_the_mixture_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    # z zᵀ = [[1, 1], [1, 2]], τ = √4 = 2
    e = float(np.exp(0.5))
    torch.testing.assert_close(match_batch(z, 1.0), torch.tensor([[0.5, 0.5], [1 / (1 + e), e / (1 + e)]]))


def test_rows_sum_to_one_and_one_example_is_itself() -> None:
    torch.testing.assert_close(match_batch(vectors(), 0.7).sum(1), torch.ones(4))
    assert match_batch(vectors(1), 1.0).item() == 1.0


def test_temperature_from_identity_to_the_mean() -> None:
    torch.testing.assert_close(match_batch(torch.eye(4), 1e-3), torch.eye(4))
    torch.testing.assert_close(match_batch(vectors(), 1e6), torch.full((4, 4), 0.25), atol=1e-4, rtol=0)


def test_reordering_the_batch_reorders_the_mixture() -> None:
    z, order = vectors(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close((match_batch(z, 1.0) @ z)[order], match_batch(z[order], 1.0) @ z[order])


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_the_head_sees_the_mixture(strength: float) -> None:
    method = MatchTuning(strength=strength)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    method.setup(run)
    pooled = run.model.bert(**step.batch.inputs).pooler_output  # type: ignore[operator, union-attr]
    mixed = (1 - strength) * pooled + strength * (match_batch(pooled, 1.0) @ pooled)
    torch.testing.assert_close(step.forward().logits, run.model.classifier(mixed))  # type: ignore[operator]
    clean = step.forward(View(perturb=False)).logits
    torch.testing.assert_close(clean, run.model.classifier(pooled))  # type: ignore[operator]
    logged = float(step.objective().logs["self_match"])
    assert logged == pytest.approx(float(match_batch(pooled, 1.0).diagonal().mean().detach()), rel=1e-5)


def test_the_mixture_is_computed_in_fp32_in_a_run_of_any_precision() -> None:
    method = MatchTuning()
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    run.dtype = torch.bfloat16
    step = first_step(run)
    method.setup(run)
    entering: list[torch.Tensor] = []
    handle = run.model.classifier.register_forward_pre_hook(lambda module, args: entering.append(args[0]), prepend=True)  # type: ignore[union-attr]
    logged = step.objective().logs["self_match"]
    handle.remove()
    assert torch.equal(logged, match_batch(entering[0], 1.0).diagonal().mean().detach())


def test_alone_an_example_is_its_own_mixture_and_a_reordered_batch_is_reordered() -> None:
    method = MatchTuning()
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    first_step(run)
    method.setup(run)
    single = run.examples.batch([3], toys.CPU)
    torch.testing.assert_close(run.forward(single).logits, run.forward(single, View(perturb=False)).logits)
    ordered, reordered = (run.forward(run.examples.batch(i, toys.CPU)).logits for i in ([0, 1, 2, 3], [2, 0, 3, 1]))
    torch.testing.assert_close(reordered, ordered[[2, 0, 3, 1]])
    mates = run.forward(run.examples.batch([0, 4, 5, 6], toys.CPU)).logits
    assert not torch.allclose(mates[0], ordered[0], atol=1e-4)  # in training the mates matter


def test_the_two_passes_of_rdrop_mix_within_themselves() -> None:
    method = MatchTuning()
    run = tiny_run(registry.method_class("rdrop")(), method)
    step = first_step(run)
    method.setup(run)
    seen: list[int] = []
    run.model.classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    assert 1 / 8 < float(step.objective().logs["self_match"]) < 1
    assert seen == [8, 8]


def test_the_record_of_a_run_says_how_much_is_mixed() -> None:
    cold, hot = (toys.toy_train(MatchTuning(temperature=t))[1].steps["self_match"] for t in (1e-3, 1e6))
    assert len(cold) == len(hot) == 6
    assert (cold > hot).all()
    assert "self_match" not in toys.toy_train(MatchTuning(strength=0.0))[1].steps


def test_predictions_do_not_depend_on_batch_mates() -> None:
    run, _, predictions = toys.toy_train(MatchTuning())
    alone = [run.forward(run.examples.batch([i], toys.CPU), View(perturb=False)).logits for i in range(3)]
    np.testing.assert_allclose(torch.cat(alone).detach().numpy(), predictions[:3], rtol=1e-4, atol=1e-5)
    assert np.array_equal(evaluation.predict(run, run.examples), predictions)


def test_a_cut_batch_is_refused() -> None:
    recipe = Recipe(batch_size=8, epochs=1, accumulation=2)
    assert "cuts the batch" in str(toys.unsupported(MatchTuning(), recipe=recipe))
    assert toys.unsupported(MatchTuning()) is None


def test_a_head_without_an_output_layer_is_refused() -> None:
    method = MatchTuning()
    facts = toys.toy_facts(Stack([method]))
    facts.skeleton.classifier = torch.nn.Identity()
    assert "ends in no linear layer" in str(method.unsupported(facts))
