"""A trimmed vocabulary is the token embeddings without the rows of tokens that no training example uses.

A row whose token never comes has no gradient: AdamW's moments of it stay 0, and all that a step does to it is weight
decay, one factor for all such rows. So they are left out of every step, and get the product of the factors at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from finetune_bench.model.unpadding import DECODERS
from finetune_bench.training.run import TrainingRun


class Vocabulary:
    """A Vocabulary is the trimmed table of a run.

    Args:
        table: the rows that train, (tokens that occur, dim).

    Attributes:
        decay: the factor that the weight decay of the steps so far comes to for a row that is left out.
    """

    def __init__(self, table: Parameter) -> None:
        self.decay = 1.0
        self._table = table

    def before_step(self, optimizer: Optimizer) -> None:
        """Multiply the decay of the step that comes into `decay`."""
        for group in optimizer.param_groups:
            if any(weight is self._table for weight in group["params"]):
                self.decay *= 1 - group["lr"] * group["weight_decay"]

    def state_dict(self) -> dict[str, float]:
        """Return the decay; the rows that train are the model's."""
        return {"decay": self.decay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.decay = state["decay"]


@contextmanager
def trimmed(run: TrainingRun) -> Iterator[Vocabulary | None]:
    """Leave only the rows of the token embeddings that the run's examples use inside; after it they are whole again.

    Yields:
        None, with nothing changed, where the embeddings don't train, or a decoder's examples have no attention mask.
    """
    lookup: Any = run.model.get_input_embeddings()  # type: ignore[operator]
    table, examples = lookup.weight, run.examples
    decoder = run.model.config.model_type in DECODERS  # type: ignore[union-attr, operator]
    # Without a mask a decoder's head looks for the padding's id, which would be another.
    if not table.requires_grad or (decoder and "attention_mask" not in examples.columns):
        yield None
        return
    padding, number = examples.padding["input_ids"], lookup.padding_idx
    # Up to the padding's, all ids stay what they are: encoders compare them with it. A decoder's may be the last.
    kept = [number or 0] if decoder else np.arange((number or 0) + 1)
    ids = [kept, [padding], *examples.columns["input_ids"]]
    used = np.unique(np.concatenate(ids))
    new_id = np.zeros(len(table), dtype=np.int64)
    new_id[used] = np.arange(len(used))
    rows = torch.from_numpy(used).to(run.device)
    small = Parameter(table.detach()[rows])
    (name,) = [name for name, weight in run.params.items() if weight is table]
    columns = examples.columns | {"input_ids": [new_id[sequence] for sequence in examples.columns["input_ids"]]}
    vocabulary = Vocabulary(small)
    lookup.weight = run.params[name] = small
    run.examples = dataclasses.replace(
        examples, columns=columns, padding=examples.padding | {"input_ids": int(new_id[padding])}
    )
    lookup.padding_idx = None if number is None else int(new_id[number])
    try:
        yield vocabulary
    finally:
        lookup.padding_idx = number
        with torch.no_grad():
            table.mul_(vocabulary.decay)
            table[rows] = small
        table.grad = None
        lookup.weight = run.params[name] = table
        run.examples = examples
