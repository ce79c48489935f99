"""Tokenised examples, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench.metrics import Kind
from finetune_bench.task import Batch, Split


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        columns: per model input, the unpadded ids of every example.
        padding: per model input, what fills the end (or the start).
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
        """Tokens of every example."""
        return np.array([len(ids) for ids in self.columns["input_ids"]])

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """These examples on the device, padded to the longest of them."""
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
    """Tokenise a split, cut to `max_length` tokens (the longer text of a pair first)."""
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
