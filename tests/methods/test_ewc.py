from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from finetune_bench import registry, testing
from finetune_bench.errors import ModelError
from finetune_bench.method.base import Facts
from finetune_bench.method.cost import Memory
from finetune_bench.method.stack import Stack
from finetune_bench.methods.ewc import EWC, draw_masked, mean_squares, penalty, scale_fisher
from finetune_bench.model import language, pretrained
from finetune_bench.parameters import parameter
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from finetune_bench.training.run import TrainingRun, TrainingStep
from tests.tiny_run import CLASSIFICATION, tiny_run

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
OF_DECODERS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "gpt2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "pad_token_id": 0},
}


@pytest.fixture(autouse=True)
def forget() -> None:
    for cached in (language.kind_of, pretrained.raw_config, pretrained.tokenizer):
        cached.cache_clear()


def made(architecture: str, folder: Path) -> Path:
    """A checkpoint with its language-modelling head; encoders with a tokenizer that has a mask token."""
    masked = architecture not in OF_DECODERS
    owner: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    config = AutoConfig.for_model(architecture, **(SIZES if masked else OF_DECODERS[architecture]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = owner.from_config(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2) if weight.ndim > 1 else None
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[MASK]", *(f"word{number}" for number in range(57))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def loaded(folder: Path, *methods: Any) -> TrainingRun:
    """A run that starts from a checkpoint's body."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=toys.CLASSES)
    recipe = Recipe(lr=1e-3, batch_size=8, epochs=1, warmup=0.0)
    stack = Stack(methods)
    return TrainingRun(
        model, CLASSIFICATION, toys.toy_examples("classification", 16), recipe, stack, seed=1, device=toys.CPU
    )


def test_the_information_of_one_softmax_layer_by_hand() -> None:
    """Two classes, p = ¾: the gradient is (p − y)·x, and over labels drawn from p the mean square is p(1 − p)·x²."""
    x = torch.tensor([1.0, -2.0])
    gradients = [[(0.75 - y) * x] for y in (1.0, 1.0, 1.0, 0.0)]
    (fisher,) = mean_squares(gradients)
    torch.testing.assert_close(fisher, 0.75 * 0.25 * x.square())


def test_scale_and_cut() -> None:
    scaled = scale_fisher([torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])])
    assert [part.tolist() for part in scaled] == [[0.5, 1.0], [[1.5]]]
    (cut,) = scale_fisher([torch.cat([torch.full((1,), 1e6), torch.zeros(999)])])
    assert float(cut.max()) == 100.0
    assert torch.equal(scale_fisher([torch.zeros(3)])[0], torch.zeros(3))


def test_a_quadratic_ends_between_both_optima() -> None:
    """½·h·(θ − a)² + λ/2 · F · (θ − θ⁰)² is least at (h·a + λ·F·θ⁰) / (h + λ·F)."""
    curvature, target, start, fisher = (torch.tensor([value, 2 * value]) for value in (1.0, 3.0, -1.0, 0.5))
    weight = start.clone().requires_grad_()
    for _ in range(400):
        loss = 0.5 * (curvature * (weight - target).square()).sum() + 0.8 / 2 * penalty([weight], [start], [fisher])
        (gradient,) = torch.autograd.grad(loss, [weight])
        with torch.no_grad():
            weight -= 0.2 * gradient
    expected = (curvature * target + 0.8 * fisher * start) / (curvature + 0.8 * fisher)
    torch.testing.assert_close(weight.detach(), expected)
    assert float(penalty([torch.tensor([3.0])], [torch.tensor([1.0])], None)) == 4.0


@pytest.mark.parametrize("architecture", list(OF_DECODERS))
def test_a_decoders_information_is_that_of_the_librarys_loss(architecture: str, tmp_path: Path) -> None:
    folder = made(architecture, tmp_path)
    method = EWC(texts=5)
    run = loaded(folder, method)
    method.setup(run)
    model = language.load(str(folder), "causal")
    weights = dict(model.named_parameters())
    assert set(method.names_) == {name for name in run.params if name != "score.weight"}
    batch = next(run.batches("ewc"))
    gradients = []
    for ids, mask in zip(batch.inputs["input_ids"][:5], batch.inputs["attention_mask"][:5], strict=True):
        real = ids[mask.bool()][None]
        loss = model(input_ids=real, labels=real).loss
        gradients.append(torch.autograd.grad(loss, [weights[name] for name in method.names_]))
    expected = [torch.stack([text[i].square() for text in gradients]).mean(0) for i in range(len(method.names_))]
    mean = sum(float(part.sum()) for part in expected) / sum(part.numel() for part in expected)
    assert method.fisher_ is not None
    for mine, other in zip(method.fisher_, expected, strict=True):
        torch.testing.assert_close(mine, (other / mean).clamp(max=100), rtol=1e-3, atol=1e-5)


def test_an_encoder_is_measured_where_tokens_are_masked(tmp_path: Path) -> None:
    folder = made("bert", tmp_path)
    assert language.kind_of(str(folder)) == "masked"
    methods = [EWC(texts=6), EWC(texts=6), EWC(texts=6, labels="sampled")]
    for method in methods:
        method.setup(loaded(folder, method))
        assert not any("pooler" in name for name in method.names_)  # the language model has none
        assert "bert.encoder.layer.1.output.dense.weight" in method.names_
    first, again, sampled = (method.fisher_ for method in methods)
    assert first is not None
    assert again is not None
    assert sampled is not None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, sampled, strict=True))
    assert sum(float(part.double().sum()) for part in first) > 0


def test_what_is_masked() -> None:
    ids, special = torch.tensor([2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 3]), torch.tensor([2, 3])
    for seed in range(20):
        masked = draw_masked(ids, special, torch.Generator().manual_seed(seed))
        assert masked.sum() == 2  # 15 % of 13
        assert not masked[[0, 14]].any()
    assert draw_masked(ids[:2], special, torch.Generator()).tolist() == [False, True]
    assert not draw_masked(torch.tensor([2, 3]), special, torch.Generator()).any()


def test_training_is_held_back_where_pre_training_needs_it(tmp_path: Path) -> None:
    folder = made("llama", tmp_path)
    distances = []
    for strength in (0.0, 100.0):
        method = EWC(strength=strength)
        run = loaded(folder, method)
        start = {name: weight.detach().clone() for name, weight in run.params.items()}
        result = train(run)
        assert ("ewc_penalty" in result.steps) == (strength > 0)
        measured = EWC()
        measured.setup(loaded(folder, measured))
        moved = penalty([run.params[n] for n in measured.names_], [start[n] for n in measured.names_], measured.fisher_)
        distances.append(float(moved.detach()))
    assert distances[1] < 0.5 * distances[0]


def test_the_loss_is_the_tasks_and_the_penalty(tmp_path: Path) -> None:
    method = EWC(strength=0.7)
    run = loaded(made("gpt2", tmp_path), method)
    method.setup(run)
    optimizer = torch.optim.AdamW([{"params": list(run.params.values()), "weight_decay": 0.1}])
    method.optimizer(optimizer, run)
    decays = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert {name for name, weight in run.params.items() if decays[id(weight)] > 0} == {"score.weight"}
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(0.01)
    run.model.eval()
    step = TrainingStep(run, next(run.batches("test")))
    objective = step.objective()
    assert method.fisher_ is not None
    expected = 0.7 / 2 * sum(float(part.sum()) for part in method.fisher_) * 0.01**2
    assert float((objective.loss - run.loss(step.batch)).detach()) == pytest.approx(expected, rel=1e-2)


def test_what_was_drawn_anew_is_not_pulled_and_other_weights_are_an_error(tmp_path: Path) -> None:
    folder = made("llama", tmp_path)
    method = EWC()
    run = loaded(folder, method)
    drawn = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        run.params[drawn].add_(1.0)
    run.reanchor([drawn])
    method.setup(run)
    assert drawn not in method.names_
    assert "model.layers.0.mlp.up_proj.weight" in method.names_
    other = loaded(folder, EWC())
    with torch.no_grad():
        for weight in other.params.values():
            weight.add_(1.0)
    other.reanchor(list(other.params))
    with pytest.raises(ModelError, match="the weights are not those of"):
        EWC().setup(other)


def test_without_information_it_is_l2_sp() -> None:
    l2_sp = registry.method_class("l2_sp")
    mine, _, _ = toys.toy_train(EWC(strength=0.05, fisher="none"))
    other, _, _ = toys.toy_train(l2_sp(alpha=0.05, beta=0.0))
    assert toys.same(mine, other)
    assert not toys.same(mine, toys.toy_train(registry.method_class("vanilla")())[0])


class Flat(EWC):
    """EWC with F = 1 by default, which needs no checkpoint."""

    name = "ewc"

    fisher: str = parameter("none", choices=("lm", "none"), help="as there")


@pytest.mark.parametrize(
    "check",
    [
        testing.neutral_is_vanilla,
        testing.is_alive,
        testing.declares_its_passes,
        testing.declares_its_memory,
        testing.gradient_is_that_of_the_loss,
        testing.leaves_a_plain_model,
    ],
    ids=lambda check: check.__name__,
)
def test_it_keeps_the_contract_without_a_checkpoint(check: Any) -> None:
    check(Flat)


def test_a_method_that_the_tiny_models_cannot_have_is_skipped() -> None:
    for check in (testing.is_alive, testing.is_deterministic, testing.declares_its_passes, testing.declares_its_memory):
        with pytest.raises(testing.Skip, match="no language-modelling head"):
            check(EWC)
    assert EWC().memory(Memory()).kept == {"P": 1, "P_body": 1}


def test_what_is_refused(tmp_path: Path) -> None:
    stack = Stack([EWC()])
    facts = toys.toy_facts(stack)
    assert "no language-modelling head" in str(stack.unsupported(facts))
    assert toys.unsupported(EWC(fisher="none")) is None
    for name in ("l2_sp", "prior_decay", "recadam"):
        partner = registry.method_class(name)
        assert "pull to the pre-trained weights" in str(toys.unsupported([EWC(fisher="none"), partner()]))
    assert toys.unsupported([EWC(fisher="none"), registry.method_class("lora")()])
    skeleton = tiny_run().model
    skeleton.config.name_or_path = str(made("llama", tmp_path / "with"))  # type: ignore[union-attr]
    known = Facts(skeleton, (), CLASSIFICATION, Recipe(), torch.float32)
    assert EWC().unsupported(known) is None
    skeleton.config.name_or_path = str(toys.tiny_checkpoint(tmp_path / "without"))  # type: ignore[union-attr]
    assert "no language-modelling head" in str(EWC().unsupported(known))
