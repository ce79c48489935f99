"""The Task contract: what a data set brings to fine-tuning. The examples, the loss, the divergence and the metrics.

A task is one object with a name. `load` reads its examples; everything else works on tensors and arrays. Built-in tasks
and a stranger's are found in the same way: through the entry-point group `finetune_bench.tasks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_bench.errors import DataError
from finetune_bench.metrics import Kind

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = "held_out"  # the evaluation split that a search chooses by; no table compares it


@dataclass(frozen=True)
class Output:
    """What one forward pass yields.

    Attributes:
        logits: (batch, labels), or (batch, 1) for regression.
        hidden: where asked for, what enters the first layer and what leaves every layer, each (batch, seq, dim).
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A (micro-)batch on the training device.

    Attributes:
        inputs: the model's keyword arguments, each (batch, seq): input_ids, attention_mask, perhaps token_type_ids.
        labels: (batch,), int64 for classification, float32 for regression.
        lengths: real tokens of each sequence, known on the host, where padding stands at the end; else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
        texts: the texts.
        pairs: the second texts of a pair task; None where there is one text.
        labels: class ids from 0, or numbers for regression.
        published: rows of the split as published; None where there is no such number.
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
        """The examples at these positions, in this order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Split([self.texts[i] for i in indices], pairs, [self.labels[i] for i in indices])

    def fingerprint(self) -> str:
        """A hash of every text, label and their order."""
        rows = [list(self.texts), None if self.pairs is None else list(self.pairs), list(self.labels)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskData:
    """What a task trains on and is scored on.

    Attributes:
        train: the training examples.
        evaluation: by split name; the first is the one that the comparison table shows first.
        notes: facts about the data that a reader of the report should know, one sentence each.
    """

    train: Split
    evaluation: dict[str, Split]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of all splits."""
        parts = [
            self.train.fingerprint(),
            *(f"{name}:{split.fingerprint()}" for name, split in self.evaluation.items()),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task(ABC):
    """One data set with its loss, divergence and metrics.

    Attributes:
        name: what the user types; also the column's name in a report.
        kind: classification or regression.
        labels: names of the classes in the order of their ids; empty for regression.
        metrics: names of the metrics (see metrics.py), the first is the score that tables compare. Higher is better.
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
        """Width of the model's head: the number of classes, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Batch mean of the cross-entropy, or of the squared error; 0-dim, in float32 at least."""
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(output.logits, labels)
        return functional.cross_entropy(output.logits, labels)

    def divergence(self, p: Output, q: Output) -> Tensor:
        """Batch mean of KL(p‖q) + KL(q‖p), or of the squared difference for regression; 0-dim, gradients to both."""
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(p.logits, q.logits)
        return functional.symmetric_kl(p.logits, q.logits)

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics, in its order, each as the field quotes it before multiplying by 100.

        Args:
            predictions: (examples, outputs) logits, or (examples, 1) values for regression.
            labels: (examples,).
        """
        from finetune_bench.metrics import METRICS, compute, named_class

        predicted = predictions.reshape(-1) if self.kind == "regression" else predictions.argmax(axis=1)
        scores = {}
        for metric in self.metrics:
            name, positive = named_class(metric)
            if positive is not None:
                place = self.labels.index(positive)
                scores[metric] = compute(name, (predicted == place).astype(int), (labels == place).astype(int))
            else:
                of_logits = name in METRICS and METRICS[name].of_logits
                scores[metric] = compute(name, predictions if of_logits else predicted, labels)
        return scores


def on_both_sides(held_out: Sequence[bool], labels: Sequence[Hashable], order: Sequence[Any]) -> list[bool]:
    """A cut of examples in two, changed only where a class has no example on one side.

    Examples of one place in the order stay together. Of a class that would be held out as a whole, the last in the
    order is trained on; of one that would be trained on as a whole, the first is held out, unless a class would then
    not be trained on. What is the only one of its class is trained on.

    Args:
        held_out: whether each example is held out, (examples,).
        labels: (examples,).
        order: the smaller, the sooner an example is held out, (examples,).
    """
    side = dict(zip(order, held_out, strict=True))
    places: dict[Any, set[Any]] = defaultdict(set)
    classes: dict[Any, set[Any]] = defaultdict(set)
    for place, label in zip(order, labels, strict=True):
        places[label].add(place)
        classes[place].add(label)
    for own in places.values():
        if all(side[place] for place in own):
            side[max(own)] = False
    trained = {label: sum(not side[place] for place in own) for label, own in places.items()}
    for label in sorted(places):
        if trained[label] == len(places[label]) > 1:
            first = next((p for p in sorted(places[label]) if all(trained[other] > 1 for other in classes[p])), None)
            if first is not None:
                side[first] = True
                for other in classes[first]:
                    trained[other] -= 1
    return [side[place] for place in order]


def hold_out(data: TaskData, share: float, name: str) -> TaskData:
    """Data with a share of the training examples held out as one more evaluation split, the last.

    Which examples these are depends on their place and the task's name only: the same for every method and seed. Where
    a class would have no example on one side, one of its examples changes sides.

    Args:
        share: of the training examples, rounded; at least one is held out and one is left.
        name: the task's.

    Raises:
        DataError: fewer than two training examples.
    """
    total = len(data.train)
    if total < 2:
        raise DataError(f"'{name}' has {total} training examples; holding some out for a search needs two at least.")
    drawn = sorted(range(total), key=lambda i: hashlib.sha256(f"{HELD_OUT}:{name}:{i}".encode()).digest())
    count = min(max(1, round(share * total)), total - 1)
    rank = {place: i for i, place in enumerate(drawn)}
    order = [rank[place] for place in range(total)]
    out = [one < count for one in order]
    if all(isinstance(label, int) for label in data.train.labels):  # class ids
        out = on_both_sides(out, data.train.labels, order)
    train, held_out = (data.train.take([i for i in range(total) if out[i] == wanted]) for wanted in (False, True))
    return dataclasses.replace(data, train=train, evaluation=data.evaluation | {HELD_OUT: held_out})


def limit(split: Split, count: int, name: str) -> Split:
    """The same `count` examples of a split for every method and seed; those of a smaller count are among them.

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
