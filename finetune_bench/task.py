"""The Task contract: a data set brings its examples, the loss, the divergence and the metrics to fine-tuning.

A task is one object with a name. `load` reads its examples; everything else works on tensors and arrays. Built-in tasks
and a stranger's are found in the same way: through the entry-point group `finetune_bench.tasks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_bench.errors import DataError
from finetune_bench.metrics import Kind, compute

if TYPE_CHECKING:
    from torch import Tensor

# The name of the evaluation split that a search chooses by; no table compares it.
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Output:
    """An output is what one forward pass yields.

    Attributes:
        logits: what the head puts out, (batch, labels), or (batch, 1) for regression.
        hidden: where asked for, what enters the first layer and what leaves every layer, each (batch, seq, dim).
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch, or a micro-batch, lies on the training device.

    Attributes:
        inputs: the model's keyword arguments, each (batch, seq): input_ids, attention_mask, perhaps token_type_ids.
        labels: the true values, (batch,), int64 for classification, float32 for regression.
        lengths: the real tokens of each sequence, known on the host, where padding stands at the end; else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """A split holds examples in a fixed order.

    Attributes:
        texts: the texts, one per example.
        pairs: the second texts of a pair task; None where there is one text.
        labels: class ids from 0, or numbers for regression.
        published: the number of rows of the split as published; None where there is no such number.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | Sequence[float]
    published: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_subset(self) -> bool:
        """Whether the split holds another number of rows than was published."""
        return self.published is not None and len(self) != self.published

    def take(self, indices: Sequence[int]) -> Split:
        """Return the examples at these positions, in this order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Split([self.texts[i] for i in indices], pairs, [self.labels[i] for i in indices])

    def fingerprint(self) -> str:
        """Return a hash of every text, every label and their order: 16 hexadecimal digits."""
        rows = [list(self.texts), None if self.pairs is None else list(self.pairs), list(self.labels)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskData:
    """A task trains on this, and is scored on it.

    Attributes:
        train: the training examples.
        evaluation: the splits to score, by name; the comparison table shows the first one first.
        notes: sentences that a reader of the report should know about the data.
    """

    train: Split
    evaluation: dict[str, Split]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of all splits: 16 hexadecimal digits."""
        parts = [
            self.train.fingerprint(),
            *(f"{name}:{split.fingerprint()}" for name, split in self.evaluation.items()),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task(ABC):
    """A task is a data set with its loss, divergence and metrics.

    Attributes:
        name: the text that the user types; it is also the column's name in a report.
        kind: "classification" or "regression".
        labels: the names of the classes in the order of their ids; empty for regression.
        metrics: the names of the metrics (see metrics.py); tables compare the first. Higher is better.
    """

    name: str
    kind: Kind = "classification"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)

    @abstractmethod
    def load(self, data_root: Path | None) -> TaskData:
        """Read the examples.

        Args:
            data_root: a folder in the hub's layout to read from in place of the hub; None for the hub and its cache.

        Raises:
            DataError: the data is missing or malformed; says what was looked for, where, and how to get it.
        """

    @property
    def outputs(self) -> int:
        """The width of the model's head is the number of classes, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the batch mean of the cross-entropy, or of the squared error; 0-dim, in float32 at least."""
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(output.logits, labels)
        return functional.cross_entropy(output.logits, labels)

    def divergence(self, p: Output, q: Output) -> Tensor:
        """Return the batch mean of KL(p‖q) + KL(q‖p), or of the squared difference for regression.

        Returns:
            A 0-dim tensor, in float32 at least; gradients flow to both sides.
        """
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(p.logits, q.logits)
        return functional.symmetric_kl(p.logits, q.logits)

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the task's metrics, in its order, each as the field quotes it before multiplying by 100.

        Args:
            predictions: logits, (examples, outputs), or numbers for regression, (examples, 1).
            labels: the true values, (examples,).
        """
        predicted = predictions.reshape(-1) if self.kind == "regression" else predictions.argmax(axis=1)
        return {name: compute(name, predicted, labels) for name in self.metrics}


def hold_out(data: TaskData, share: float, name: str) -> TaskData:
    """Hold a share of the training examples out, as one more evaluation split, the last.

    Which examples these are depends on their position and the task's name only: the same for every method and seed.

    Args:
        data: the data to split.
        share: the share of the training examples, rounded; at least one is held out and one is left.
        name: the task's name.

    Raises:
        DataError: fewer than two training examples.
    """
    total = len(data.train)
    if total < 2:
        raise DataError(f"'{name}' has {total} training examples; holding some out for a search needs two at least.")
    drawn = sorted(range(total), key=lambda i: hashlib.sha256(f"{HELD_OUT}:{name}:{i}".encode()).digest())
    count = min(max(1, round(share * total)), total - 1)
    train, held_out = data.train.take(sorted(drawn[count:])), data.train.take(sorted(drawn[:count]))
    return dataclasses.replace(data, train=train, evaluation=data.evaluation | {HELD_OUT: held_out})


def limit(split: Split, count: int, name: str) -> Split:
    """Draw the same `count` examples of a split for every method and seed; those of a smaller count are among them.

    The order of drawing is by a hash of the position and the task's name; the examples keep their order.

    Raises:
        DataError: the split has fewer examples.
    """
    if count > len(split):
        raise DataError(
            f"--limit-train {count} was asked for, but the training split of '{name}' has {len(split)} examples; "
            f"give a number up to {len(split)} or leave the option out."
        )
    drawn = sorted(range(len(split)), key=lambda i: hashlib.sha256(f"limit:{name}:{i}".encode()).digest())[:count]
    return split.take(sorted(drawn))
