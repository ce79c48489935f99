from __future__ import annotations

import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.step import View
from finetune_bench.methods.lora import REFUSED, LoRA, target_names
from finetune_bench.model.structure import is_linear
from finetune_bench.testing import toys
from finetune_bench.training.loop import train

pytest.importorskip("peft")


def test_it_starts_as_the_plain_model() -> None:
    run, stack = toys.toy_run(LoRA(dropout="all_off"))
    batch = run.examples.batch(range(6), toys.CPU)
    before = run.forward(batch, View()).logits
    frozen = {id(weight) for weight in run.model.parameters()}
    names, objects = list(run.params), {id(weight) for weight in run.params.values()}
    stack.setup(run)
    assert torch.equal(run.forward(batch, View()).logits, before)
    trained = {name for name, weight in run.params.items() if weight.requires_grad}
    heads = {"classifier.weight", "classifier.bias"}
    assert heads < trained
    assert all(".lora_" in name for name in trained - heads)
    assert len(trained - heads) == 2 * 2 * 2  # query and value of two layers, two matrices each
    assert {id(weight) for weight in run.params.values()} >= frozen
    stack.teardown(run)
    assert list(run.params) == names
    assert {id(weight) for weight in run.params.values()} == objects


@pytest.mark.parametrize(("architecture", "matrix"), [("bert", "query"), ("gpt2", "c_attn"), ("llama", "q_proj")])
def test_merged_predicts_what_unmerged_predicts(architecture: str, matrix: str) -> None:
    run, stack = toys.toy_run(LoRA(dropout="all_off"), architecture)
    start = {name: weight.detach().clone() for name, weight in run.params.items()}
    train(run)
    run.model.eval()
    batch = run.examples.batch(range(6), toys.CPU)
    unmerged = run.forward(batch, View()).logits
    with stack.evaluating(run):
        merged = run.forward(batch, View()).logits
        changed = {name for name in start if not torch.equal(run.params[name], start[name])}
    torch.testing.assert_close(merged, unmerged, atol=1e-6, rtol=1e-5)
    assert any(matrix in name for name in changed)
    for name, weight in run.params.items():  # the frozen ones never moved
        if name in start and not weight.requires_grad:
            assert torch.equal(weight, start[name]), name
    stack.teardown(run)


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_targets_are_linear_layers_of_the_encoder(architecture: str) -> None:
    run, _ = toys.toy_run(LoRA(), architecture)
    names = target_names(run.model)
    assert names
    for name in names:
        assert is_linear(run.model.get_submodule(name))


@pytest.mark.parametrize("other", sorted(REFUSED))
def test_what_is_refused(other: str) -> None:
    stack = [LoRA(), registry.method_class(other)()]
    assert REFUSED[other] in str(toys.unsupported(stack))  # type: ignore[arg-type]


def test_what_trains_is_chosen_once() -> None:
    stack = [LoRA(), registry.method_class("top_k")()]
    assert "lora and top_k both decide about the weights that train" in str(toys.unsupported(stack))  # type: ignore[arg-type]
