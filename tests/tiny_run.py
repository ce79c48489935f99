"""Small random models of every supported architecture, and training runs on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    XLNetConfig,
)

from finetune_bench.method import Dropout, Method, Stack
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model import with_dropout
from finetune_bench.study import Recipe
from finetune_bench.task import Task, TaskData
from finetune_bench.training import Encoded, TrainingRun, TrainingStep

_SIZE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "pad_token_id": 0,
}
_BERT: dict[str, Any] = {"hidden_size": 16, "max_position_embeddings": 40, **_SIZE}
_RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**_BERT),
    "roberta": RobertaConfig(**_BERT),
    "electra": ElectraConfig(embedding_size=8, **_BERT),
    "xlnet": XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=24, vocab_size=50, pad_token_id=0),
    "deberta": DebertaConfig(**_RELATIVE, **_BERT),
    "deberta_v2": DebertaV2Config(conv_kernel_size=3, norm_rel_ebd="layer_norm", **_RELATIVE, **_BERT),
    "albert": AlbertConfig(embedding_size=8, **_BERT),
    "distilbert": DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=50, pad_token_id=0),
    "modernbert": ModernBertConfig(**_ENDS, **_BERT),
}


class ToyTask(Task):
    """Needs no data: runs get their examples from `encoded`."""

    def load(self, data_root: Path | None) -> TaskData:
        raise NotImplementedError


CLASSIFICATION = ToyTask("toy", labels=("no", "maybe", "yes"))
REGRESSION = ToyTask("toy_regression", kind="regression", metrics=("pearson",))


@cache
def encoded(examples: int, kind: str) -> Encoded:
    """Random token ids of different lengths with random labels."""
    random = np.random.default_rng(0)
    rows = [random.integers(3, 50, size=random.integers(4, 9)) for _ in range(examples)]
    labels = torch.from_numpy(random.integers(0, 3, size=examples))
    return Encoded(
        columns={"input_ids": rows, "attention_mask": [np.ones_like(row) for row in rows]},
        padding={"input_ids": 0, "attention_mask": 0},
        left=False,
        labels=labels.float() / 2 if kind == "regression" else labels,
    )


def tiny_model(architecture: str = "bert", task: Task = CLASSIFICATION, dropout: Dropout = Dropout.KEEP) -> nn.Module:
    """A model with random weights, the same at every call."""
    config = with_dropout(CONFIGS[architecture], dropout)
    config.num_labels = task.outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():  # at the usual 0.02 a model this small hardly looks at its input
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model.eval()


def tiny_run(
    architecture: str = "bert",
    *,
    task: Task = CLASSIFICATION,
    dropout: Dropout = Dropout.KEEP,
    examples: int = 16,
    seed: int = 1,
    **recipe: Any,
) -> TrainingRun:
    """A run that keeps the pre-trained weights; by default two steps of eight examples without warm-up."""
    options: dict[str, Any] = {"batch_size": 8, "epochs": 1, "warmup": 0.0, "lr": 1e-3, **recipe}
    return TrainingRun(
        tiny_model(architecture, task, dropout),
        task,
        encoded(examples, task.kind),
        Recipe(**options),
        seed=seed,
        device=torch.device("cpu"),
        keep_pretrained=True,
    )


def first_step(run: TrainingRun, *methods: Method) -> TrainingStep:
    """The first micro-batch of a run, the model in training mode; setup is the caller's."""
    run.model.train()
    return TrainingStep(run, Stack(methods or [Vanilla()]), next(run.batches("test")))
