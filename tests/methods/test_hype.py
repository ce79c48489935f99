"""HyPe: the noise's distribution, and its place, against an independent reference for four architectures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from finetune_bench import registry
from finetune_bench.errors import ModelError
from finetune_bench.method.base import Method
from finetune_bench.methods.hype import perturb_hidden, select_layers
from finetune_bench.model.dropout import Dropout, with_dropout
from finetune_bench.model.pretrained import build
from finetune_bench.model.structure import attention_blocks, layers
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.testing import toys


def hype(**parameters: Any) -> Method:
    return registry.method_class("hype")(**parameters)


def test_normal_noise_has_the_stated_moments() -> None:
    noise = perturb_hidden(torch.zeros(200, 1000), 0.3, "normal", Generator().manual_seed(0))
    assert abs(float(noise.mean())) < 0.3 * 4 / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(0.3, rel=0.01)


def test_one_sided_uniform_noise_is_what_the_official_code_draws() -> None:
    noise = perturb_hidden(torch.zeros(200, 1000), 0.3, "uniform_onesided", Generator().manual_seed(0))
    assert float(noise.min()) >= 0.0
    assert 0.2999 < float(noise.max()) < 0.3
    assert float(noise.mean()) == pytest.approx(0.15, rel=0.01)
    assert float(noise.std()) == pytest.approx(0.3 / math.sqrt(12), rel=0.01)


def test_symmetric_uniform_noise_has_no_mean() -> None:
    noise = perturb_hidden(torch.zeros(200, 1000), 0.3, "uniform_symmetric", Generator().manual_seed(0))
    assert -0.3 <= float(noise.min()) < -0.2999
    assert 0.2999 < float(noise.max()) <= 0.3
    assert abs(float(noise.mean())) < 0.3 * 4 / math.sqrt(3 * noise.numel())
    assert float(noise.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.01)


def test_noise_is_drawn_in_full_precision() -> None:
    """Drawn in bfloat16, the values themselves would be rounded to three digits."""
    low = perturb_hidden(torch.zeros(1000, dtype=torch.bfloat16), 1.0, "normal", Generator().manual_seed(0))
    full = perturb_hidden(torch.zeros(1000), 1.0, "normal", Generator().manual_seed(0))
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, full.to(torch.bfloat16))


def test_gradient_passes_through_unchanged() -> None:
    hidden = torch.randn(4, 5, requires_grad=True)
    perturb_hidden(hidden, 0.5, "normal", Generator().manual_seed(0)).mul(3.0).sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.full((4, 5), 3.0))


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [(None, None, {0, 1, 2, 3}), (1, None, {3}), (None, 2, {0, 1}), (2, 1, {0, 2, 3}), (4, 4, {0, 1, 2, 3})],
)
def test_layer_subsets(top: int | None, bottom: int | None, expected: set[int]) -> None:
    assert select_layers(4, top, bottom) == expected


# --- place: an encoder loop written here, with the noise where the official code has it -------------------------------


class Noise:
    """Draws what the method draws: the same stream, in the order of the layers."""

    def __init__(self, eps: float) -> None:
        self.generator, self.eps = Generator().manual_seed(derive(3, "method", "hype")), eps

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden + torch.empty(hidden.shape).normal_(0.0, self.eps, generator=self.generator)


def reference_bert_like(model: Any, inputs: dict[str, Tensor], noise: Noise, within: bool) -> Tensor:
    """BERT, RoBERTa, ELECTRA: embeddings, then noise before each layer; attention block, noise within, feed-forward."""
    body = model.base_model
    hidden = body.embeddings(input_ids=inputs["input_ids"])
    if hasattr(body, "embeddings_project"):
        hidden = body.embeddings_project(hidden)
    mask = (1.0 - inputs["attention_mask"][:, None, None, :].float()) * torch.finfo(torch.float32).min
    for layer in body.encoder.layer:
        hidden = hidden if within else noise(hidden)
        attended = layer.attention(hidden, mask)[0]
        attended = noise(attended) if within else attended
        hidden = layer.output(layer.intermediate(attended), attended)
    if getattr(body, "pooler", None) is not None:
        return model.classifier(body.pooler(hidden))  # type: ignore[no-any-return]
    return model.classifier(hidden)  # type: ignore[no-any-return]


def reference_xlnet(model: Any, inputs: dict[str, Tensor], noise: Noise) -> Tensor:
    """XLNet: (seq, batch, dim) content stream, noise before each layer."""
    body = model.transformer
    ids, mask = inputs["input_ids"].t(), 1.0 - inputs["attention_mask"].t().float()
    length, batch = ids.shape
    blocked = mask[None] * torch.ones(length, 1, 1)  # (query, key, batch): padding is not attended to
    blocked = ((blocked - torch.eye(length)[:, :, None]) > 0).float()[..., None]  # but by itself
    position = body.relative_positional_encoding(length, length, bsz=batch)
    hidden = body.word_embedding(ids)
    for layer in body.layer:
        hidden = layer(noise(hidden), None, attn_mask_h=blocked, attn_mask_g=None, r=position, seg_mat=None)[0]
    return model.logits_proj(model.sequence_summary(hidden.permute(1, 0, 2)))  # type: ignore[no-any-return]


def noised_logits(architecture: str, method: Method) -> tuple[Any, dict[str, Tensor], Tensor]:
    from finetune_bench.method.stack import Stack
    from finetune_bench.training.run import TrainingStep

    method = replace(method, dropout=Dropout.ALL_OFF)
    run, stack = toys.toy_run(method, architecture)
    batch = run.examples.batch(range(6), toys.CPU)
    run.model.train()
    assert isinstance(stack, Stack)
    return run.model, batch.inputs, TrainingStep(run, batch).forward().logits


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_noise_enters_every_layer_as_in_the_official_code(architecture: str) -> None:
    model, inputs, logits = noised_logits(architecture, hype(eps=0.3))
    expected = reference_bert_like(model, inputs, Noise(0.3), within=False)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    clean = model(**inputs).logits
    assert (logits - clean).abs().max() > 1e-3


def test_noise_enters_every_layer_of_xlnet() -> None:
    model, inputs, logits = noised_logits("xlnet", hype(eps=0.3))
    torch.testing.assert_close(logits, reference_xlnet(model, inputs, Noise(0.3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_noise_within_layers_enters_the_feed_forward_block(architecture: str) -> None:
    model, inputs, logits = noised_logits(architecture, hype(eps=0.3, where="within"))
    expected = reference_bert_like(model, inputs, Noise(0.3), within=True)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", sorted(toys.ARCHITECTURES))
@pytest.mark.parametrize(("options", "expected"), [({}, [0, 1]), ({"top": 1}, [1]), ({"bottom": 1}, [0])])
def test_every_selected_layer_is_noised_once(
    architecture: str, options: dict[str, int], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_bench.methods import hype as module
    from finetune_bench.training.run import TrainingStep

    places: list[int] = []
    original = module.layer_inputs_changed

    def spy(model: nn.Module, change: Any) -> Any:
        def seen(index: int, hidden: Tensor) -> Tensor:
            changed: Tensor = change(index, hidden)
            if changed is not hidden:
                assert changed.dtype == torch.float32
                places.append(index)
            return changed

        return original(model, seen)

    monkeypatch.setattr(module, "layer_inputs_changed", spy)
    run, _stack = toys.toy_run(hype(**options), architecture)
    step = TrainingStep(run, run.examples.batch(range(4), toys.CPU))
    run.model.train()
    step.forward()
    assert places == expected
    step.forward()
    assert places == expected * 2


def test_layers_and_steps_draw_independent_noise() -> None:
    from finetune_bench.model.structure import layer_inputs_changed

    run, stack = toys.toy_run(hype(eps=1.0, dropout="all_off"))
    run.model.train()
    batch = run.examples.batch(range(8), toys.CPU)
    seen: list[Tensor] = []
    for _ in range(2):
        with layer_inputs_changed(run.model, lambda _, hidden: seen.append(hidden.detach()) or hidden):  # type: ignore[func-returns-value]
            run.model(**batch.inputs)
        with stack.perturbing(run), layer_inputs_changed(run.model, lambda _, h: seen.append(h.detach()) or h):  # type: ignore[func-returns-value]
            run.model(**batch.inputs)
    first, second = (seen[2] - seen[0]).flatten(), (seen[6] - seen[4]).flatten()  # layer 0's noise in two passes
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / math.sqrt(first.numel())


def test_noise_on_padding_leaves_the_logits_alone() -> None:
    from finetune_bench.model.structure import layer_inputs_changed

    run, _ = toys.toy_run(registry.method_class("vanilla")(dropout="all_off"))
    batch = run.examples.batch(range(8), toys.CPU)
    padding = (1 - batch.inputs["attention_mask"])[..., None].float()
    assert padding.sum() > 0
    run.model.eval()
    clean = run.model(**batch.inputs).logits
    with layer_inputs_changed(run.model, lambda _, hidden: hidden + torch.randn_like(hidden) * padding):
        noised = run.model(**batch.inputs).logits
    assert torch.equal(clean, noised)


def test_within_layers_is_refused_where_no_module_has_the_place() -> None:
    with pytest.raises(ModelError, match="no module's output"):
        attention_blocks(build(toys.toy_config("modernbert", "classification", hype().dropout)))
    without = {"modernbert", "llama", "qwen3", "gpt2"}  # they normalise first, and add the residual outside
    for architecture in toys.ARCHITECTURES:
        assert bool(toys.unsupported(hype(where="within"), architecture)) == (architecture in without)


def test_within_layers_and_checkpointing_exclude_each_other() -> None:
    recipe = Recipe(gradient_checkpointing=True)
    assert "again" in str(toys.unsupported(hype(where="both"), recipe=recipe))
    assert toys.unsupported(hype(), recipe=recipe) is None


def test_more_layers_than_there_are_is_refused() -> None:
    assert "more than the 2" in str(toys.unsupported(hype(top=3)))


@pytest.mark.parametrize(
    ("architecture", "active"),
    [
        ("bert", {"attention.self.dropout"}),
        ("roberta", {"attention.self.dropout"}),
        ("electra", {"attention.self.dropout"}),
        ("deberta", {"attention.self.dropout"}),
        ("deberta_v2", {"attention.self.dropout"}),
        ("distilbert", {"attention.dropout"}),
        ("xlnet", set()),
        ("albert", set()),
        ("modernbert", set()),
    ],
)
def test_hidden_dropout_off_is_what_the_official_script_turns_off_and_the_head_s(
    architecture: str, active: set[str]
) -> None:
    """The script leaves a head's dropout on where it has a rate of its own (DistilBERT, XLNet, ALBERT)."""
    from finetune_bench.model.dropout import active_dropout

    found = active_dropout(toys.toy_model(architecture, "classification", hype().dropout))
    assert {max((end for end in active if name.endswith(end)), key=len, default=name) for name in found} == active


def test_linear_network_pays_the_noise_variance() -> None:
    """For a linear map w·h and the squared error, E[loss] = clean loss + ε²‖w‖²."""
    weight, hidden, target = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, -0.2]), 0.7
    generator = Generator().manual_seed(1)
    noised = perturb_hidden(hidden.expand(400_000, 3), 0.2, "normal", generator)
    expected = (float(weight @ hidden) - target) ** 2 + 0.2**2 * float(weight @ weight)
    assert float(((noised @ weight - target) ** 2).mean()) == pytest.approx(expected, rel=0.01)


def test_layers_are_found_by_structure() -> None:
    for architecture in toys.ARCHITECTURES:
        config = with_dropout(toys.toy_config(architecture, "classification", hype().dropout), hype().dropout)
        assert len(layers(build(config))) == 2
