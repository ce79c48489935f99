from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_bench.errors import ParameterError
from finetune_bench.method.base import Method
from finetune_bench.methods.child_tuning import ChildTuningD
from finetune_bench.methods.reinit_layers import ReinitLayers
from finetune_bench.methods.top_k import TopKTuning
from finetune_bench.model.structure import layers, parameter_depths
from finetune_bench.testing import toys
from tests.tiny_run import CONFIGS, tiny_model, tiny_run


def trained(method: Method, architecture: str) -> tuple[set[str], set[str]]:
    """Names of what moved and of what stayed to the last bit, weight decay included."""
    run, _, _ = toys.toy_train(method, architecture)
    fresh = toys.toy_model(architecture, "classification", method.dropout).state_dict()
    stayed = {name for name, weight in run.params.items() if torch.equal(weight, fresh[name])}
    assert all(weight.requires_grad for weight in run.params.values())
    return set(run.params) - stayed, stayed


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_parameter_has_a_depth(architecture: str) -> None:
    model = tiny_model(architecture)
    depth_of = parameter_depths(model)
    assert set(depth_of) == set(model.parameters())
    names = {name: depth_of[weight] for name, weight in model.named_parameters()}
    top = (
        "classifier",
        "pooler",
        "head",
        "final_norm",
        "model.norm",
        "ln_f",
        "score",
        "sequence_summary",
        "logits_proj",
    )
    top += ("pre_classifier",)
    for name, depth in names.items():
        if any(word in name for word in top):
            assert depth == 2, name
        elif any(f".{number}." in name for number in (0, 1)) and "albert" not in name:
            assert depth == int(next(part for part in name.split(".") if part in ("0", "1"))), name
        elif "albert_layers" in name:
            assert depth == 1, name  # where the shared layer runs last
        else:
            assert depth == -1, name


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_what_is_below_the_top_layers_stays_to_the_last_bit(architecture: str, k: int) -> None:
    if reason := toys.unsupported(TopKTuning(k=k), architecture):
        assert (architecture, k) == ("albert", 1)
        assert "1 shared layer 2 times" in reason
        return
    _, stayed = trained(TopKTuning(k=k), architecture)
    model = tiny_model(architecture)
    depth = {name: parameter_depths(model)[weight] for name, weight in model.named_parameters()}
    frozen = {name for name in depth if depth[name] < (len(layers(model)) - k if depth[name] >= 0 else 2)}
    assert frozen <= stayed
    never_moved = trained(TopKTuning(k=None, embeddings=True), architecture)[1]
    assert stayed - frozen <= never_moved


def test_the_embeddings_can_train() -> None:
    moved, stayed = trained(TopKTuning(k=1, embeddings=True), "bert")
    assert "bert.embeddings.word_embeddings.weight" in moved
    assert {name for name in stayed if ".layer.0." in name}
    assert all(".layer.0." in name for name in stayed if not name.endswith("key.bias"))


def test_more_than_all_layers_are_all() -> None:
    runs = [toys.toy_train(TopKTuning(k=k))[0] for k in (2, 3, None)]
    assert toys.same(runs[0], runs[1])
    assert toys.same(runs[0], runs[2])


@pytest.mark.parametrize("k", [0, 1])
def test_checkpointing_changes_nothing_with_frozen_layers(k: int) -> None:
    recipe = replace(toys.RECIPE, gradient_checkpointing=True)
    plain, checkpointed = toys.toy_train(TopKTuning(k=k))[0], toys.toy_train(TopKTuning(k=k), recipe=recipe)[0]
    assert toys.same(plain, checkpointed)


def test_conflicts_are_refused() -> None:
    assert "Child-Tuning-D" in str(toys.unsupported([TopKTuning(k=0), ChildTuningD()]))
    assert toys.unsupported([TopKTuning(k=1), ChildTuningD()]) is None
    for stack in ([TopKTuning(k=1), ReinitLayers(layers=2)], [ReinitLayers(layers=2), TopKTuning(k=1)]):
        assert "2 layers would be re-drawn" in str(toys.unsupported(stack))
    toys.toy_train([ChildTuningD(), TopKTuning(k=1)])


def test_teardown_without_setup_and_wrong_values() -> None:
    TopKTuning().teardown(tiny_run())
    with pytest.raises(ParameterError, match="'k' parameter of TopKTuning must be an int"):
        TopKTuning(k=-1)
