"""Training with the rows of the token embeddings that the training examples use, in the place of the whole table.

A row whose token never comes has no gradient: AdamW's moments of it stay 0, and all that a step does to it is weight
decay, one factor for all such rows. So they are left out of every step, and get the product of the factors at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

if TYPE_CHECKING:
    from finetune_bench.training.run import TrainingRun


class Vocabulary:
    """The trimmed table of a run.

    Attributes:
        decay: what the weight decay of the steps so far comes to for a row that is left out.
    """

    def __init__(self, small: Parameter) -> None:
        self.decay = 1.0
        self._small = small

    def before_step(self, optimizer: Optimizer) -> None:
        """Take note of the decay of the step that comes."""
        for group in optimizer.param_groups:
            if any(weight is self._small for weight in group["params"]):
                self.decay *= 1 - group["lr"] * group["weight_decay"]


@contextmanager
def trimmed(run: TrainingRun) -> Iterator[Vocabulary | None]:
    """Inside, the run's token embeddings have the rows that its examples use; after it they are whole again.

    Yields:
        None, with nothing changed, where the embeddings don't train.
    """
    lookup: Any = run.model.get_input_embeddings()  # type: ignore[operator]
    table, examples = lookup.weight, run.examples
    if not table.requires_grad:
        yield None
        return
    # Up to the padding's, all ids stay what they are: models compare them with it.
    ids = [np.arange((lookup.padding_idx or 0) + 1), *examples.columns["input_ids"]]
    used = np.unique(np.concatenate(ids))
    place = np.zeros(len(table), dtype=np.int64)
    place[used] = np.arange(len(used))
    rows = torch.from_numpy(used).to(run.device)
    small = Parameter(table.detach()[rows])
    (name,) = [name for name, weight in run.params.items() if weight is table]
    columns = examples.columns | {"input_ids": [place[sequence] for sequence in examples.columns["input_ids"]]}
    vocabulary = Vocabulary(small)
    lookup.weight = run.params[name] = small
    run.examples = dataclasses.replace(examples, columns=columns)
    try:
        yield vocabulary
    finally:
        with torch.no_grad():
            table.mul_(vocabulary.decay)
            table[rows] = small
        table.grad = None
        lookup.weight = run.params[name] = table
        run.examples = examples
