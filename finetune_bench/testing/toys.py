"""This file makes tiny models, tasks and runs, on which methods are tested."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune_bench.device import DTYPES
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.observing import Observed
from finetune_bench.method.stack import Stack
from finetune_bench.metrics import Kind
from finetune_bench.model import unpadding
from finetune_bench.model.dropout import Dropout, switch_off, with_dropout
from finetune_bench.model.pretrained import build, skeleton
from finetune_bench.model.rates import active_dropout_under
from finetune_bench.model.structure import checkpoint_activations
from finetune_bench.recipe import Recipe
from finetune_bench.task import Split, Task, TaskData
from finetune_bench.training import evaluation
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.examples import Encoded
from finetune_bench.training.loop import train
from finetune_bench.training.record import TrainingResult
from finetune_bench.training.run import TrainingRun

CPU = torch.device("cpu")

KINDS: tuple[Kind, ...] = ("classification", "regression")

VOCABULARY, CLASSES, EXAMPLES = 60, 3, 24

SEED = 3

RECIPE = Recipe(lr=1e-3, batch_size=8, epochs=2, warmup=0.0)

_BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}

_PADDING = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_DECODER = _BERT_LIKE | _PADDING | {"num_key_value_heads": 1}

_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _BERT_LIKE),
    "roberta": ("roberta", _BERT_LIKE),
    "electra": ("electra", _BERT_LIKE | {"embedding_size": 12}),
    "xlnet": ("xlnet", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}),
    "deberta": ("deberta", _BERT_LIKE | _RELATIVE),
    "deberta_v2": ("deberta-v2", _BERT_LIKE | _RELATIVE | {"conv_kernel_size": 3}),
    "albert": ("albert", _BERT_LIKE | {"embedding_size": 12}),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": VOCABULARY,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 40,
        },
    ),
    "mpnet": ("mpnet", _BERT_LIKE),
    "llama": ("llama", _DECODER),
    "qwen3": ("qwen3", _DECODER | {"head_dim": 8}),
    "gpt2": (
        "gpt2",
        _PADDING
        | {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 40},
    ),
    "modernbert": (
        "modernbert",
        _BERT_LIKE | {f"{token}_token_id": number for number, token in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    ),
}


@dataclass(frozen=True)
class ToyTask(Task):
    """A ToyTask has no texts: its examples are token ids."""

    name: str = "toy"

    def load(self, data_root: Path | None) -> TaskData:
        """Return no examples: `toy_examples` makes them."""
        empty = Split([], None, [])
        return TaskData(empty, {"validation": empty})


def toy_task(kind: Kind) -> ToyTask:
    """Make the toy task of a kind."""
    return ToyTask(kind=kind, labels=tuple("abc") if kind == "classification" else ())


def toy_examples(kind: Kind, count: int = EXAMPLES, *, left: bool = False) -> Encoded:
    """Draw random token ids of ragged lengths; the label depends on the first of them."""
    random = np.random.default_rng(7)
    ids = [random.integers(5, VOCABULARY, size=random.integers(4, 12)) for _ in range(count)]
    classes = [int(example[0]) % CLASSES for example in ids]
    labels = torch.tensor(classes) if kind == "classification" else torch.tensor(classes, dtype=torch.float32) * 1.5
    columns = {"input_ids": ids, "attention_mask": [np.ones_like(example) for example in ids]}
    return Encoded(columns, {"input_ids": 0, "attention_mask": 0}, left, labels)


def toy_config(architecture: str, kind: Kind, dropout: Dropout) -> Any:
    """Make the configuration of a tiny encoder under a dropout policy."""
    # Not at the top: importing transformers takes seconds, and `finetune_bench.testing` is imported for its names, too.
    from transformers import AutoConfig

    model_type, values = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(model_type, **values)
    config.num_labels = CLASSES if kind == "classification" else 1
    return with_dropout(config, dropout)


def toy_model(architecture: str, kind: Kind, dropout: Dropout) -> nn.Module:
    """Build a tiny random classifier, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = build(toy_config(architecture, kind, dropout))
        switch_off(model, dropout)
        # At the usual 0.02 a model this small hardly looks at its input.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model


def toy_run(
    methods: Method | list[Method],
    architecture: str = "bert",
    kind: Kind = "classification",
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
    *,
    seed: int = SEED,
) -> tuple[TrainingRun, Stack]:
    """Make a run on a tiny random encoder, equal for equal dropout policies, and its stack; ready for `train`."""
    # As in the runs of a grid.
    stack = Observed({"toy": Stack(methods if isinstance(methods, list) else [methods])})
    model = toy_model(architecture, kind, stack.dropout).to(device)
    unpadding.prepare_for(model, device, recipe.batch_layout)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    examples = toy_examples(kind, left=architecture == "xlnet")
    return TrainingRun(model, toy_task(kind), examples, recipe, stack, seed=seed, device=device), stack


def toy_train(
    methods: Method | list[Method],
    architecture: str = "bert",
    kind: Kind = "classification",
    recipe: Recipe = RECIPE,
    checkpoints: Checkpoints | None = None,
    *,
    device: torch.device = CPU,
    seed: int = SEED,
) -> tuple[TrainingRun, TrainingResult, np.ndarray]:
    """Train, predict and tear down; return the run, what `train` gave, and the predictions."""
    run, stack = toy_run(methods, architecture, kind, recipe, device, seed=seed)
    try:
        result = train(run, checkpoints)
        with stack.evaluating(run):
            predictions = evaluation.predict(run, run.examples)
    finally:
        stack.teardown(run)
    return run, result, predictions


def toy_facts(
    stack: Stack, architecture: str = "bert", kind: Kind = "classification", recipe: Recipe = RECIPE
) -> Facts:
    """Collect what is known of a stack on a tiny encoder before any weight is loaded."""
    return _facts(stack, _structure(architecture, kind, stack.dropout), kind, recipe)


def unsupported(
    methods: Method | list[Method], architecture: str = "bert", kind: Kind = "classification", recipe: Recipe = RECIPE
) -> str | None:
    """Return why a stack can't run on a tiny encoder, as its `unsupported` says; None where it can."""
    stack = Stack(methods if isinstance(methods, list) else [methods])
    return stack.unsupported(_facts(stack, _kept_structure(architecture, kind, stack.dropout), kind, recipe))


def _structure(architecture: str, kind: Kind, dropout: Dropout) -> nn.Module:
    model = skeleton(toy_config(architecture, kind, dropout))
    switch_off(model, dropout)
    return model


# `unsupported` is asked before every training of a check, and only reads: to build a structure each time is a tenth of
# what all checks take.
_kept_structure = cache(_structure)


def _facts(stack: Stack, model: nn.Module, kind: Kind, recipe: Recipe) -> Facts:
    return Facts(
        model, tuple(active_dropout_under(model, stack.rates)), toy_task(kind), recipe, DTYPES[recipe.precision]
    )


def weights(run: TrainingRun) -> dict[str, Tensor]:
    """Return the model's weights by name."""
    return dict(run.model.state_dict())


def same(left: TrainingRun, right: TrainingRun) -> bool:
    """Compare two runs: whether they ended with the same weights, to the last bit."""
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shape(model: nn.Module) -> list[Any]:
    """Return what teardown has to leave as it was: modules, hooks, names, and which weights train."""
    modules = [
        (name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    ]
    return [modules, list(model.state_dict()), [(name, p.requires_grad) for name, p in model.named_parameters()]]


def tiny_checkpoint(folder: Path) -> Path:
    """Make a checkpoint's folder: a random BERT of 2 layers × 16 and a tokenizer of words; return it."""
    # Not at the top, as above.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(40)), "good", "bad"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        sizes = _BERT_LIKE | {"vocab_size": len(words), "max_position_embeddings": 128}
        build(AutoConfig.for_model("bert", **sizes)).save_pretrained(folder)  # type: ignore[operator]
    fast.save_pretrained(folder)
    return folder


def tiny_texts(path: Path, count: int = 60) -> Path:
    """Write a JSONL file of short texts with two labels that can be learnt; return it."""
    lines = [
        {"text": f"word{i % 40} {'good' if i % 2 else 'bad'} word{(7 * i) % 40}" + " word1" * (i % 5), "label": i % 2}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return path
