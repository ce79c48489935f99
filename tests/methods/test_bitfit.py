from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.methods.bitfit import BitFit, biases, query_and_mlp_biases
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.pretrained import skeleton
from finetune_bench.model.structure import body
from finetune_bench.testing import toys
from tests.tiny_run import tiny_run

# Biases of one layer of two, of what lies below the layers, and of what the body has above them.
LIKE_BERT = 8
BIASES = {
    "bert": 2 * LIKE_BERT + 2,  # the embeddings' norm, the pooler
    "roberta": 2 * LIKE_BERT + 1,
    "electra": 2 * LIKE_BERT + 2,  # the embeddings' norm and projection
    "mpnet": 2 * LIKE_BERT + 1,  # and not its table of relative positions
    "distilbert": 2 * LIKE_BERT + 1,
    "deberta": 2 * LIKE_BERT + 1,  # the keys have none, the queries of positions have one
    "deberta_v2": 2 * (LIKE_BERT + 2) + 3,  # and those of the convolution and its norm
    "albert": LIKE_BERT + 3,  # one layer; the embeddings' norm and projection, the pooler
    "xlnet": 2 * 7,
    "gpt2": 2 * 6 + 1,
    "llama": 0,
    "qwen3": 0,
    "modernbert": 0,
}


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_biases_of_the_body(architecture: str) -> None:
    model = skeleton(toys.toy_config(architecture, "classification", Dropout.KEEP))
    named = biases(model)
    assert len(named) == BIASES[architecture]
    assert {id(weight) for weight in named.values()} <= {id(weight) for weight in body(model).parameters()}
    refused = toys.unsupported(BitFit(), architecture)
    assert ("has no biases outside the head" in str(refused)) == (not named)


def test_biases_of_bert_base_by_hand() -> None:
    """Eleven times the width a layer: four for attention, two for norms, four and one for the feed-forward block."""
    from transformers import AutoConfig

    model = skeleton(AutoConfig.for_model("bert"))
    assert sum(weight.numel() for weight in biases(model).values()) == 768 * (12 * (4 + 2 + 4 + 1) + 1 + 1)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert", "distilbert", "deberta", "deberta_v2", "mpnet"])
def test_the_small_set(architecture: str) -> None:
    model = skeleton(toys.toy_config(architecture, "classification", Dropout.KEEP))
    layers = 1 if architecture == "albert" else 2
    pooler = architecture in ("bert", "albert")
    assert len(query_and_mlp_biases(model)) == 2 * layers + pooler
    assert toys.unsupported(BitFit(terms="query_mlp"), architecture) is None


@pytest.mark.parametrize("architecture", ["gpt2", "xlnet"])
def test_queries_without_biases_of_their_own_are_refused(architecture: str) -> None:
    assert "have no biases of their own" in str(toys.unsupported(BitFit(terms="query_mlp"), architecture))


@pytest.mark.parametrize("terms", ["all", "query_mlp"])
def test_what_is_frozen_stays_to_the_last_bit(terms: str) -> None:
    run, _, _ = toys.toy_train(BitFit(terms=terms))
    fresh = toys.toy_model("bert", "classification", Dropout.KEEP).state_dict()
    moved = {name for name, weight in run.params.items() if not torch.equal(weight, fresh[name])}
    trained = set(biases(run.model) if terms == "all" else query_and_mlp_biases(run.model))
    heads = {"classifier.weight", "classifier.bias"}
    assert moved <= trained | heads
    # The softmax does not see a key's bias.
    assert trained | heads == moved | {name for name in trained if name.endswith("key.bias")}
    assert all(weight.requires_grad for weight in run.params.values())


def test_checkpointing_changes_nothing_where_no_embedding_trains() -> None:
    """GPT-2 has no bias below its layers, so that what enters them needs no gradient."""
    recipe = replace(toys.RECIPE, steps=2, epochs=None)
    checkpointed = replace(recipe, gradient_checkpointing=True)
    runs = [toys.toy_train(BitFit(), "gpt2", recipe=used)[0] for used in (recipe, checkpointed)]
    # Vanilla, too, differs in the last bits there: gradients are added up in another order.
    for name, weight in runs[0].params.items():
        torch.testing.assert_close(runs[1].params[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("top_k", "bitfit and top_k both decide about the weights that train"),
        ("lora", "bitfit and lora both decide about the weights that train"),
        ("mixout", "mixout acts on matrices, and they are frozen"),
        ("child_tuning_f", "child_tuning_f acts on matrices"),
        ("child_tuning_d", "child_tuning_d acts on matrices"),
        ("reinit_layers", "would stay random"),
    ],
)
def test_what_is_refused(other: str, said: str) -> None:
    assert said in str(toys.unsupported([BitFit(), registry.method_class(other)()]))


def test_anchors_are_warned_of() -> None:
    methods: list[Method] = [registry.method_class("l2_sp")(), BitFit()]
    stack = Stack(methods)
    assert "bitfit: l2_sp acts on biases alone: the matrices are frozen" in stack.warnings(toys.toy_facts(stack))


def test_teardown_without_setup() -> None:
    BitFit().teardown(tiny_run())
