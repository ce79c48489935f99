"""This file holds tokenised examples, the order in which a run takes them, and batches of them.

A step is a list of micro-batches, and a micro-batch a list of positions of examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from finetune_bench import device as devices
from finetune_bench.metrics import Kind
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.task import Batch, Split


@dataclass(frozen=True)
class Encoded:
    """An Encoded holds the tokenised examples of one split.

    Attributes:
        columns: for each model input, the unpadded ids of every example.
        padding: for each model input, the id that fills the end (or the start).
        left: whether padding stands at the start (XLNet).
        labels: (examples,).
    """

    columns: dict[str, list[np.ndarray]]
    padding: dict[str, int]
    left: bool
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Return how many tokens every example has, (examples,)."""
        return np.array([len(ids) for ids in self.columns["input_ids"]])

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Put the examples at these positions on the device, padded to the longest of them."""
        lengths = tuple(len(self.columns["input_ids"][i]) for i in indices)
        longest = max(lengths)
        inputs = {}
        for name, column in self.columns.items():
            padded = np.full((len(indices), longest), self.padding[name], dtype=np.int64)
            for row, index in enumerate(indices):
                ids = column[index]
                padded[row, longest - len(ids) if self.left else 0 :][: len(ids)] = ids
            inputs[name] = devices.put(torch.from_numpy(padded), device)
        labels = devices.put(self.labels[torch.as_tensor(indices)], device)
        return Batch(inputs, labels, None if self.left else lengths)


def encode(split: Split, tokenizer: Any, max_length: int, kind: Kind) -> Encoded:
    """Tokenise a split; texts are cut to `max_length` tokens, the longer text of a pair first."""
    columns = tokenizer(
        list(split.texts),
        None if split.pairs is None else list(split.pairs),
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    labels = torch.tensor(list(split.labels), dtype=torch.float32 if kind == "regression" else torch.int64)
    return Encoded(
        columns={name: [np.asarray(ids) for ids in column] for name, column in columns.items()},
        padding={name: fill.get(name, 0) for name in columns},
        left=tokenizer.padding_side == "left",
        labels=labels,
    )


def one_pass(count: int, batch_size: int, stream: Generator) -> list[list[int]]:
    """Shuffle the positions of `count` examples by a stream, and cut them into batches; the last may be smaller."""
    order = torch.randperm(count, generator=stream).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def training_steps(count: int, recipe: Recipe, seed: int, task: str) -> Iterator[list[list[int]]]:
    """Yield every step of a run on `count` examples; the order depends on seed and task, not on the method."""
    stream = Generator().manual_seed(derive(seed, "order", task))
    micro, left = recipe.batch_size // recipe.accumulation, recipe.total_steps(count)
    while left > 0:
        for batch in one_pass(count, recipe.batch_size, stream)[:left]:
            yield [batch[start : start + micro] for start in range(0, len(batch), micro)]
            left -= 1
